"""Where there is time for a few timings only: pixels, narrower layers and blocks are tried, and the best is trained."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hasten
from hasten.recipe import name_of, options_of
from hasten.search import candidates, heat
from hasten.search.journal import Journal
from hasten.task import Budget


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def _task() -> hasten.Task:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    net = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), *(Block(16) for _ in range(4)), *head)
    x = torch.randn(256, 1, 32, 32) * torch.rand(256, 1, 1, 1) + torch.randn(256, 1, 1, 1)
    with torch.no_grad():
        net.train()(x)
        y = net.eval()(x).argmax(1)
    return hasten.Task(
        net, (x[:4],), list(zip(x[:192].split(32), y[:192].split(32), strict=True)),
        train=list(zip(x[192:].split(16), y[192:].split(16), strict=True)),
    )  # fmt: skip


def test_a_few_changes_of_the_whole_network_are_timed_and_the_best_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heat, "_ENTRANTS", (1,))
    monkeypatch.setattr(candidates, "_MOST_PROBES", 3)
    budget = Budget(max_drop=0.5, objective="size")  # for size, because a time depends on how busy the machine is
    result = hasten.run(_task(), budget, targets=["onnxruntime"], out=tmp_path / "run")
    journal = Journal(result.folder / "journal.jsonl")
    probes = [probe for probe in journal.read("probe") if "failure" not in probe]
    timed = ["; ".join(probe["steps"]) for probe in probes]
    assert len(timed) == 4  # half of every layer sets what a timing takes, and is not timed twice
    assert timed[0].startswith("prune_filters(ratio=0.5")
    assert timed[1] == "lower_resolution(side=0.72)"
    assert timed[2] == "lower_resolution(side=0.58)"
    assert timed[3] == "shrink(depth=0.75)"
    chosen = {d["what"]: d for d in journal.read("decision") if "measured damage" in d["why"]}
    half, blocks = chosen["cut all by 50%"], chosen["shrink(depth=0.75)"]
    assert half["predicted_gain"] > blocks["predicted_gain"] > 1.07
    # Fewer pixels make no file smaller, so nobody asks what they would damage further.
    assert not any(name.startswith("lower_resolution") for name in chosen)
    trained = [t for t in result.trials if any(name_of(step) == "distill" for step in t.recipe.steps)]
    assert trained
    assert not any(t.failure for t in trained)
    recovery = next(step for step in trained[0].recipe.steps if name_of(step) == "distill")
    assert options_of(recovery)["features"] == "last"
