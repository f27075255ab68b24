"""Scores by the error that is left when the other units are refitted, against a refit by brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hasten
from hasten.errors import Unsupported
from hasten.graph.channels import find_channels
from hasten.pruning.replaceability import replaceability


class Convolutions(nn.Module):
    """Six filters, of which the last is the sum of the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3, padding=1)
        self.a.weight.data[5] = self.a.weight.data[0] + self.a.weight.data[1]
        assert self.a.bias is not None
        self.a.bias.data[5] = self.a.bias.data[0] + self.a.bias.data[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_what_others_can_say_goes_first_and_for_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 8, 8)
    channels = find_channels(hasten.capture(Convolutions().eval(), (x[:2],)))
    scores = replaceability(channels, channels.groups, [(x,)])
    values = [scores[unit.id] for unit in channels.groups[0].units]
    ranked = sorted(range(6), key=lambda i: values[i])
    assert ranked[0] in (0, 1, 5)
    assert values[ranked[0]] < 0.02 * values[ranked[1]]
    assert sorted(values) == [values[i] for i in ranked]


def test_errors_are_those_of_a_refit() -> None:
    """The score of the unit that goes first is the relative error of the next layer, fitted again by `lstsq`."""
    torch.manual_seed(0)
    mix = torch.randn(8, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    x = torch.randn(3000, 8) @ mix
    channels = find_channels(hasten.capture(model.eval(), (x[:2],)))
    scores = replaceability(channels, channels.groups, [(x,)])
    units = channels.groups[0].units
    with torch.no_grad():
        hidden = F.relu(model[0](x)).double()
        wanted = model(x).double()
    left = list(range(8))
    for unit in sorted(units, key=lambda u: scores[u.id])[:4]:
        left.remove(units.index(unit))
        read = torch.cat([hidden[:, left], torch.ones(len(hidden), 1).double()], 1)
        error = wanted - read @ torch.linalg.lstsq(read, wanted).solution
        assert scores[unit.id] == pytest.approx(float((error.var(0) / wanted.var(0)).mean()), rel=0.1, abs=1e-3)


def test_heads_and_neurons_have_scores_and_what_nothing_reads_goes_by_weight(digits_task: hasten.Task) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    x = torch.randn(32, 5, 16)
    task = hasten.Task(model, (x,), holdout=[x])
    graph = hasten.capture(model, (x,))
    pruned = hasten.PruneNeurons(0.5, "replaceability").apply(graph, task)
    assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(p.numel() for p in graph.parameters())
    filters = hasten.PruneFilters(0.3, "replaceability", "layer")
    assert filters.apply(hasten.capture(digits_task.model, digits_task.example), digits_task)(*digits_task.example).ndim
    with pytest.raises(Unsupported):
        filters.apply(graph, task)
