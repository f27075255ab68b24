"""A metric of a whole set, judged by what its parts contribute: the metric itself, and a bound that keeps its word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.measure.certificate import BCA, certify, upper_bound
from hasten.measure.holdout import store_holdout
from hasten.measure.jackknife import MOST_PARTS, pseudo_values
from hasten.recipe import Recipe, make_target
from hasten.search.bench import Bench
from hasten.task import Task


def area(output: Tensor, target: Tensor) -> float:
    """Under the receiver operating characteristic; scikit-learn's takes ten times as long."""
    ranks, positive = stats.rankdata(output), target.numpy() == 1
    ones, zeros = positive.sum(), (~positive).sum()
    if not ones:
        raise ValueError("one class")
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def rank_correlation(output: Tensor, target: Tensor) -> float:
    return float(stats.spearmanr(output, target).statistic)


@pytest.mark.parametrize("count", [60, MOST_PARTS, 1037])
def test_the_mean_is_the_metric_of_the_whole_set(count: int) -> None:
    target = torch.arange(count) % 2
    output = torch.randn(count, generator=torch.Generator().manual_seed(0)) + target
    found = pseudo_values(area, output, target)
    assert len(found) == min(count, MOST_PARTS)
    assert found.mean() == pytest.approx(area(output, target))


@pytest.mark.parametrize("count", [150, MOST_PARTS])
def test_of_a_mean_they_are_the_samples(count: int) -> None:
    hits = torch.randn(count, dtype=torch.float64)
    np.testing.assert_allclose(pseudo_values(lambda o, t: o.mean(), hits, hits), hits, atol=1e-9)


def test_outputs_and_targets_may_be_several_tensors() -> None:
    outputs = torch.randn(70, 3), torch.randn(70)
    found = pseudo_values(lambda o, t: (o[0].sum(1) * o[1] * t["weight"]).mean(), outputs, {"weight": torch.ones(70)})
    assert found.mean() == pytest.approx(float((outputs[0].sum(1) * outputs[1]).mean()), rel=1e-5)


@pytest.mark.parametrize(("metric", "noise"), [(area, 0.6), (rank_correlation, 0.3)])
def test_the_bound_holds_in_most_of_many_sets(metric: Any, noise: float) -> None:
    """Of 60 sets drawn from one population, a 95% bound may miss the population's drop in few: 8 has chance 0.01."""

    def draw(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        signal = torch.randn(count, generator=random)
        target = (signal > 0).long() if metric is area else signal
        base = signal + torch.randn(count, generator=random)
        return base, base + noise * torch.randn(count, generator=random), target

    base, changed, target = draw(400_000, 1)
    true_drop = metric(base, target) - metric(changed, target)
    missed = 0
    for seed in range(60):
        base, changed, target = draw(400, seed + 10)
        bound, method = upper_bound(pseudo_values(metric, base, target), pseudo_values(metric, changed, target), 0.05)
        assert method == BCA
        missed += bound < true_drop
    assert true_drop > 0.003
    assert missed < 8


def test_the_bound_is_what_resampling_the_set_gives() -> None:
    random = np.random.default_rng(0)
    human = random.normal(size=600)
    base = human + random.normal(size=600)
    changed = base + 0.3 * random.normal(size=600)
    own, other = (
        pseudo_values(rank_correlation, torch.from_numpy(x), torch.from_numpy(human)) for x in (base, changed)
    )
    bound, _ = upper_bound(own, other, 0.05)
    drops = []
    for _ in range(1000):
        rows = random.integers(0, 600, 600)
        drops.append(stats.spearmanr(base[rows], human[rows])[0] - stats.spearmanr(changed[rows], human[rows])[0])
    drop = stats.spearmanr(base, human)[0] - stats.spearmanr(changed, human)[0]
    assert bound - drop == pytest.approx(np.percentile(drops, 95) - drop, rel=0.25)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda o, t: float("nan"), r"`metric` must give a finite number .* gave nan for 80 samples"),
        (lambda o, t: 1 / 0, "for 80 samples it raised ZeroDivisionError"),
        (lambda o, t: o, "it raised ValueError"),
    ],
)
def test_what_is_no_number_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        pseudo_values(metric, torch.randn(80), torch.randn(80))


def test_a_set_whose_part_holds_all_of_a_class_is_refused() -> None:
    target = torch.zeros(100)
    target[0] = 1
    with pytest.raises(InvalidInput, match="any part of the holdout"):
        pseudo_values(area, torch.randn(100), target)


def macro_f1(output: Tensor, target: Tensor) -> float:
    return float(f1_score(target, output.argmax(1), average="macro"))


def test_a_candidate_is_judged_and_certified_by_the_metric(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(800, 6)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        y = (net(x) + 0.05 * torch.randn(800, 3)).argmax(1)
    batches = list(zip(x.split(50), y.split(50), strict=True))
    task = Task(net, (x[:50],), batches, metric=macro_f1)
    holdout = store_holdout(task, tmp_path / "data", seed=0)
    with Bench(task, capture(net, task.example), holdout, tmp_path / "trials") as bench:
        found = bench.try_recipe(1, Recipe((), make_target("onnxruntime")))
        rows = holdout.search
        assert found.failure == ""
        assert found.score == pytest.approx(macro_f1(net(x[rows]), y[rows]))
        assert found.drop == pytest.approx(0, abs=1e-6)
        worse = bench.baseline_certify - np.linspace(0, 0.1, len(bench.baseline_certify))
        certificate = certify(
            bench.baseline_certify, worse, max_drop=0.01, confidence=0.95, indices=holdout.certify, seed=0
        )
    rows = holdout.certify
    assert certificate.n == 600
    assert certificate.baseline_score == pytest.approx(macro_f1(net(x[rows]), y[rows]))
    assert not certificate.passed


def test_a_score_and_a_metric_exclude_each_other() -> None:
    task = Task(nn.Linear(2, 2), (torch.randn(4, 2),), [(torch.randn(4, 2), torch.zeros(4))], metric=macro_f1)
    with pytest.raises(InvalidInput, match="`score` or `metric` must be left out"):
        replace(task, score=lambda output, target: output)
    with pytest.raises(InvalidInput, match="`metric` must be callable"):
        replace(task, metric="f1")  # type: ignore[arg-type]
