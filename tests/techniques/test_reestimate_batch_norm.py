import pytest
import torch
from torch import nn

import hasten
from hasten.errors import Unsupported
from hasten.techniques.reestimate_batch_norm import ReestimateBatchNorm


def test_statistics_become_those_of_the_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(64, 3, 9, 9) * 3 + 1
    task = hasten.Task(model.eval(), (x[:2],), holdout=[x], calibration=list(x.split(16)))
    before = hasten.capture(model, (x[:2],))
    untouched = before(x).clone()
    graph = ReestimateBatchNorm(samples=64).apply(before, task)
    with torch.no_grad():
        y = graph(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    assert torch.equal(before(x), untouched)


def test_it_brings_back_most_of_what_pruning_loses(digits_task: hasten.Task) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    inputs = torch.cat([x for x, _ in digits_task.holdout])
    labels = torch.cat([y for _, y in digits_task.holdout])

    def accuracy(*steps: object) -> float:
        changed = graph
        for step in steps:
            changed = step.apply(changed, digits_task)  # type: ignore[attr-defined]
        with torch.no_grad():
            return float((changed(inputs).argmax(1) == labels).float().mean())

    whole, prune = accuracy(), hasten.PruneWeights(sparsity=0.7)
    pruned, recovered = accuracy(prune), accuracy(prune, ReestimateBatchNorm())
    assert pruned < whole - 0.03
    assert recovered > pruned + 0.5 * (whole - pruned)
    # And what it makes can be quantized.
    assert accuracy(prune, ReestimateBatchNorm(), hasten.Quantize()) > recovered - 0.02


def test_a_graph_without_batch_norm_is_refused() -> None:
    x = torch.randn(4, 3)
    task = hasten.Task(nn.Linear(3, 2), (x,), holdout=[x])
    with pytest.raises(Unsupported, match="no batch norm"):
        ReestimateBatchNorm().apply(hasten.capture(task.model, (x,)), task)
