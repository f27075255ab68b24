import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.graph.duplicate import duplicate
from hasten.training import Epoch, Training, train

FP32 = Training(precision="fp32", device="cpu", lr=0.1, seed=3)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(1)


def cut(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Noise from all three global generators."""

    def __init__(self) -> None:
        self.x, self.y = data()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(6) + float(np.random.rand())
        return self.x[index] + 0.1 * noise, self.y[index]


def loader(generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=8, shuffle=True, generator=generator)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def graph() -> Any:
    return capture(net(), (data()[0][:4],))


def accuracy(model: nn.Module) -> float:
    x, y = data()
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    "options",
    [
        FP32,
        replace(FP32, optimizer="adamw", lr=0.01, schedule="onecycle"),
        replace(FP32, warmup=0.2, clip_norm=1.0, accumulate=2, ema=0.9),
        replace(FP32, precision="bf16"),
    ],
    ids=["sgd", "adamw-onecycle", "accumulate-ema-clip", "bf16"],
)
def test_learns_and_leaves_the_given_graph_alone(graph: Any, options: Training) -> None:
    before, code = weights(graph), graph.code
    epochs: list[Epoch] = []
    trained = train(graph, loader(), F.cross_entropy, replace(options, epochs=12), on_epoch=epochs.append)
    assert all(torch.equal(before[name], value) for name, value in weights(graph).items())
    assert graph.code == trained.code == code
    assert accuracy(trained) > accuracy(graph) + 0.2
    assert [epoch.index for epoch in epochs] == list(range(12))
    assert epochs[-1].loss < epochs[0].loss


def test_graph_trains_like_the_module_it_was_captured_from(graph: Any) -> None:
    options = replace(FP32, epochs=2)
    expected = train(net(), loader(), F.cross_entropy, options)
    actual = train(graph, loader(), F.cross_entropy, options)
    expected_weights = weights(expected)
    del expected_weights["1.num_batches_tracked"]  # a captured graph does not count
    torch.testing.assert_close({k: weights(actual)[k] for k in expected_weights}, expected_weights)


def test_same_seed_same_bits_and_the_global_generators_are_left_alone(graph: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train(graph, loader(), F.cross_entropy, FP32)
    assert torch.equal(torch.rand(1), expected)
    assert same(first, train(graph, loader(), F.cross_entropy, FP32))
    assert not same(first, train(graph, loader(), F.cross_entropy, replace(FP32, seed=4)))


class Killed(BaseException):
    """Like a signal: nothing below may catch it."""


OPTIONS = [
    FP32,
    replace(FP32, optimizer="adamw", lr=0.01, accumulate=2, ema=0.9, clip_norm=0.5),
]


@settings(deadline=None, max_examples=8)
@given(
    kill_at=st.integers(1, 14),
    every=st.integers(1, 4),
    options=st.sampled_from(OPTIONS),
    own_generator=st.booleans(),
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
    graph: Any,
    kill_at: int,
    every: int,
    options: Training,
    own_generator: bool,
) -> None:
    def batches() -> DataLoader[Any]:
        return loader(torch.Generator().manual_seed(9) if own_generator else None)

    options = replace(options, epochs=3)
    expected = train(graph, batches(), F.cross_entropy, options)

    def kill(model: nn.Module, steps: int) -> None:
        if steps == kill_at:
            raise Killed

    saved = replace(options, checkpoint=tmp_path_factory.mktemp("run") / "state.pt", checkpoint_every=every)
    try:
        train(graph, batches(), F.cross_entropy, saved, after_step=kill)
    except Killed:
        torch.manual_seed(123)  # a new process starts with other global generators
    assert same(train(graph, batches(), F.cross_entropy, saved), expected)


CHILD = """
import os, sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
import torch.nn.functional as F
from test_train import FP32, data, loader, net
from hasten.graph.capture import capture
from hasten.training import train

graph = capture(net(), (data()[0][:4],))
def kill(model, steps):
    if steps == 8:
        os.kill(os.getpid(), 9)
options = replace(FP32, epochs=3, checkpoint=Path({path!r}), checkpoint_every=3)
train(graph, loader(), F.cross_entropy, options, after_step=kill)
"""


@pytest.mark.slow
def test_sigkill_in_another_process(tmp_path: Path, graph: Any) -> None:
    path = tmp_path / "state.pt"
    code = CHILD.format(tests=str(Path(__file__).parent), path=str(path))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert child.returncode == -9, child.stderr
    assert path.exists()
    resumed = train(graph, loader(), F.cross_entropy, replace(FP32, epochs=3, checkpoint=path, checkpoint_every=3))
    assert same(resumed, train(graph, loader(), F.cross_entropy, replace(FP32, epochs=3)))


def test_checkpoint_of_another_run_is_refused(tmp_path: Path, graph: Any) -> None:
    options = replace(FP32, checkpoint=tmp_path / "state.pt")
    train(graph, loader(), F.cross_entropy, options)
    with pytest.raises(InvalidInput, match="must belong to the same run"):
        train(graph, loader(), F.cross_entropy, replace(options, lr=0.2))
    with pytest.raises(InvalidInput, match="must belong to the same run"):
        train(capture(net(1), (data()[0][:4],)), loader(), F.cross_entropy, options)
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="must be a file that training wrote"):
        train(graph, loader(), F.cross_entropy, options)


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_equal_one_large_batch(accumulate: int) -> None:
    x, y = data(40)
    small = cut(x, y, 5)
    large = cut(x, y, 5 * accumulate)
    options = replace(FP32, epochs=2)
    accumulated = train(plain(), small, F.cross_entropy, replace(options, accumulate=accumulate))
    torch.testing.assert_close(weights(accumulated), weights(train(plain(), large, F.cross_entropy, options)))


def test_incomplete_group_at_the_end_of_an_epoch_is_a_mean_too() -> None:
    x, y = data(15)
    batches = cut(x, y, 5)
    seen: list[int] = []
    options = replace(FP32, accumulate=2, momentum=0.0, weight_decay=0.0, schedule="constant")
    trained = train(plain(), batches, F.cross_entropy, options, after_step=lambda model, steps: seen.append(steps))
    model = plain()
    for part in (slice(0, 10), slice(10, 15)):
        grads = torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(0.1 * grad)
    assert seen == [1, 2]
    torch.testing.assert_close(weights(trained), weights(model))


def test_clipping_bounds_the_step() -> None:
    x, y = data()
    options = replace(FP32, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=1e-3)
    trained = train(plain(), [(x, y)], F.cross_entropy, options)
    change = sum(float((weights(trained)[k] - v).square().sum()) for k, v in weights(plain()).items())
    assert change**0.5 == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_spares_vectors(graph: Any) -> None:
    options = replace(FP32, weight_decay=0.5, momentum=0.0, schedule="constant")
    x, y = data()
    trained = train(plain(), [(x, y)], lambda output, target: output.sum() * 0.0, options)
    for name, value in weights(plain()).items():
        factor = 1.0 if value.ndim < 2 else 1 - 0.1 * 0.5
        torch.testing.assert_close(weights(trained)[name], value * factor)


def test_moving_average_is_the_result() -> None:
    x, y = data()
    seen: list[dict[str, Tensor]] = [weights(plain())]
    options = replace(FP32, epochs=3, ema=0.5)
    trained = train(plain(), [(x, y)], F.cross_entropy, options, after_step=lambda m, s: seen.append(weights(m)))
    mean = seen[0]
    for step, current in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * current[name] for name in mean}
    torch.testing.assert_close(weights(trained), mean)


def test_patience_stops_and_returns_the_best_epoch(graph: Any) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> float:
        kept.append(weights(model))
        return next(scores)

    trained = train(graph, loader(), F.cross_entropy, replace(FP32, epochs=5, patience=2), validate=validate)
    assert len(kept) == 4
    assert all(torch.equal(kept[1][name], value) for name, value in weights(trained).items())


def test_masks_reapplied_after_each_step_hold(graph: Any) -> None:
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) > 0.5

    def remask(model: nn.Module, steps: int) -> None:
        model.get_parameter("0.weight").mul_(mask)

    start = duplicate(graph)
    with torch.no_grad():
        remask(start, 0)
    for options in (FP32, replace(FP32, ema=0.5)):
        weight = train(start, loader(), F.cross_entropy, options, after_step=remask).get_parameter("0.weight")
        assert weight[~mask].eq(0).all()
        assert weight[mask].ne(0).all()


def test_loss_module_is_trained_along(graph: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target) + (self.scale - 1).square()

    loss = Scaled()
    epochs: list[Epoch] = []
    train(graph, loader(), loss, replace(FP32, epochs=5), on_epoch=epochs.append)
    assert float(loss.scale.detach()) == 0.0
    assert epochs[0].loss - epochs[-1].loss > 0.5


def test_frozen_parameters_stay_frozen_unless_all_are() -> None:
    model = plain()
    model[0].requires_grad_(False)  # type: ignore[index]
    graph = capture(model, (data()[0],))
    trained = train(graph, loader(), F.cross_entropy, FP32)
    assert torch.equal(trained.get_parameter("0.weight"), graph.get_parameter("0.weight"))
    assert not torch.equal(trained.get_parameter("2.weight"), graph.get_parameter("2.weight"))
    assert [p.requires_grad for p in trained.parameters()] == [p.requires_grad for p in graph.parameters()]
    graph = capture(model.requires_grad_(False), (data()[0],))
    trained = train(graph, loader(), F.cross_entropy, FP32)
    assert not torch.equal(trained.get_parameter("0.weight"), graph.get_parameter("0.weight"))
    assert not any(p.requires_grad for p in trained.parameters())


def test_single_sample_batch_does_not_poison_batch_norm(graph: Any) -> None:
    x, y = data(9)
    trained = train(graph, cut(x, y, 4), F.cross_entropy, FP32)
    assert all(torch.isfinite(value).all() for value in weights(trained).values())


def test_max_steps_and_loader_without_length(graph: Any) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return itertools.islice(iter(loader()), 3)

    steps: list[int] = []
    train(graph, Endless(), F.cross_entropy, replace(FP32, epochs=2), after_step=lambda m, s: steps.append(s))
    assert steps == [1, 2, 3, 4, 5, 6]
    steps.clear()
    train(
        graph, Endless(), F.cross_entropy, replace(FP32, epochs=9, max_steps=4), after_step=lambda m, s: steps.append(s)
    )
    assert steps == [1, 2, 3, 4]


def test_refusals(graph: Any) -> None:
    with pytest.raises(Unsupported, match="finite loss"):
        train(graph, loader(), lambda output, target: output.sum() * float("nan"), FP32)
    with pytest.raises(InvalidInput, match="at least one batch"):
        train(graph, [], F.cross_entropy, FP32)
    with pytest.raises(InvalidInput, match="`patience` must come with `validate`"):
        train(graph, loader(), F.cross_entropy, replace(FP32, patience=1))
    with pytest.raises(InvalidInput, match="parameters to train"):
        train(nn.ReLU(), loader(), F.cross_entropy, FP32)
    with pytest.raises(InvalidInput, match="usable torch device"):
        train(graph, loader(), F.cross_entropy, replace(FP32, device="nowhere"))
    with pytest.raises(InvalidInput, match="fp32 or bf16 on a CPU"):
        train(graph, loader(), F.cross_entropy, replace(FP32, precision="fp16"))
    with pytest.raises(InvalidInput, match="`epochs` must be in"):
        Training(epochs=0)


def test_channels_last_gives_the_same_result() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    x, y = torch.randn(32, 2, 6, 6), torch.randint(3, (32,))
    batches = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    first = train(capture(model, (x,)), batches, F.cross_entropy, FP32)
    second = train(capture(model, (x,)), batches, F.cross_entropy, replace(FP32, channels_last=True))
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-4, atol=1e-5)
    assert second.get_parameter("0.weight").is_contiguous()
