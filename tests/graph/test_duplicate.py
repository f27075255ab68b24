"""Copies that share tensors for a while, and own them in the end."""

import torch
from torch import nn

import hasten
from hasten.graph.channels import find_channels
from hasten.graph.duplicate import duplicate, separate
from hasten.graph.surgery import remove
from hasten.recipe import make_technique


class Tied(nn.Module):
    """Two layers with one weight, an embedding, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x))) + self.shift))


def _pointers(module: nn.Module) -> set[int]:
    return {x.data_ptr() for x in (*module.parameters(), *module.buffers())}


def test_a_sharing_copy_holds_the_same_tensors_until_it_is_separated() -> None:
    graph = hasten.capture(Tied().eval(), (torch.rand(4, 8),))
    copied = duplicate(graph, share_tensors=True)
    assert _pointers(copied) == _pointers(graph)
    assert copied.graph is not graph.graph
    separate(copied, graph)
    assert not _pointers(copied) & _pointers(graph)
    assert copied.get_parameter("first.weight") is copied.get_parameter("second.weight")
    x = torch.rand(4, 8)
    assert torch.equal(copied(x), graph(x))


def test_weight_only_quantization_and_removal_share_nothing_with_what_they_were_given() -> None:
    task = hasten.Task(Tied().eval(), (torch.rand(4, 8),), holdout=[(torch.rand(8, 8), None)])
    graph = hasten.capture(task.model, task.example)
    before = {name: x.clone() for name, x in graph.state_dict().items()}
    channels = find_channels(graph)
    quantized = make_technique("quantize_weights", {}).apply(graph, task)
    removed = remove(channels, [group.units[0] for group in channels.groups if len(group.units) > 1])
    for made in (quantized, removed):
        assert not _pointers(made) & _pointers(graph)
    assert all(torch.equal(x, before[name]) for name, x in graph.state_dict().items())
