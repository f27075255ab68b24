"""What every target promises; a new file in `hasten/targets/` is picked up by itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten import judged
from hasten.errors import HastenError, Unsupported
from hasten.graph.capture import as_tuple, capture
from hasten.recipe import Recipe, Target, make_target, options_of, targets
from hasten.search.limits import judges
from hasten.task import Task

TARGETS = targets()
_ABOUT = {"bf16": 0.02, "fp16": 0.005, "fp32": 1e-4, "int8": 0.05}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(torch.relu(self.convolution(x)).mean((2, 3)))
        return y


def task(model: nn.Module, example: Tensor) -> Task:
    return Task(model=model, example=(example,), holdout=[(example, torch.zeros(len(example), dtype=torch.int64))])


def small() -> Task:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    return task(Net().eval(), torch.randn(2, 1, 8, 8, generator=generator))


class Tokens(nn.Module):
    """Embeddings of tokens, averaged where the mask says so."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).to(self.linear.weight.dtype)
        y: Tensor = self.linear((self.embedding(tokens) * weights).sum(1) / weights.sum(1))
        return y


def words() -> Task:
    torch.manual_seed(0)
    example = (torch.randint(0, 50, (2, 6)), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]))
    return Task(model=Tokens().eval(), example=example, holdout=[(example, None)])


def with_marks(*without: str) -> list[pytest.ParameterSet | str]:
    """Targets as parameters; one that runs in an environment of its own carries the mark of that stack."""
    stacks = {name: getattr(TARGETS[name], "stack", "") for name in TARGETS if name not in without}
    return [pytest.param(name, marks=pytest.mark.stack(stack)) if stack else name for name, stack in stacks.items()]


def usable(name: str) -> Target:
    target = make_target(name)
    if missing := target.missing():
        pytest.skip(f"{name} needs: {missing}")
    return target


@pytest.mark.parametrize("name", TARGETS)
def test_says_what_its_measurements_are(name: str) -> None:
    assert TARGETS[name].evidence in ("timed", "simulated", "estimated")
    stated = judges(TARGETS[name])
    # What is timed is compared by time; of what is not, a search needs something else to go by.
    assert not stated or TARGETS[name].evidence != "timed"
    assert set(stated) <= set(judged.QUANTITIES)
    for options in stated.values():
        make_target(name, options)


@pytest.mark.parametrize("name", TARGETS)
def test_options_survive_yaml(name: str) -> None:
    recipe = Recipe((), make_target(name, options_of(make_target(name))))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", TARGETS)
def test_missing_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_ENVS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = make_target(name).missing()
    assert missing == "" if name == "null" else "install" in missing or "compiler" in missing


@pytest.mark.parametrize("of", [small, words])
@pytest.mark.parametrize("name", with_marks("null"))
def test_what_is_compiled_agrees_with_the_graph(name: str, of: Callable[[], Task], tmp_path: Path) -> None:
    target = usable(name)
    made = of()
    graph = capture(made.model, made.example)
    with torch.no_grad():
        expected = as_tuple(graph(*made.example))
    try:
        target.compile(graph, made, tmp_path)
    except Unsupported as error:
        # A target for integers alone says what to do first; its own tests compile quantized graphs. Accelerators of
        # images need not know tokens.
        if "Quantize" not in str(error) and (of is small or target.evidence == "timed"):
            raise
        pytest.skip(f"{name} says: {error}")
    assert any(tmp_path.iterdir())
    assert set(judged.read(tmp_path)) <= set(judges(target))
    found = target.load(tmp_path)(*(x.numpy() for x in made.example))
    assert len(found) == len(expected)
    tolerance = _ABOUT[getattr(target, "precision", "fp32")]
    for y, z in zip(expected, found, strict=True):
        assert z.shape == tuple(y.shape)
        np.testing.assert_allclose(z, y.numpy(), atol=tolerance * float(y.abs().max()))


class Strange(nn.Module):
    """An operator that no target but PyTorch itself knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x.double()).float()


@pytest.mark.parametrize("name", with_marks("null", "eager", "inductor"))
def test_an_unsupported_operator_is_named(name: str, tmp_path: Path) -> None:
    target = usable(name)
    made = task(Strange(), torch.rand(2, 3))
    with pytest.raises(HastenError, match=r"airy|Quantize"):
        target.compile(capture(made.model, made.example), made, tmp_path)
