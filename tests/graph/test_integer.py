"""Integer arithmetic against the quantized graph it was made from."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.integer import Dense, IntegerNet, Rescale
from hasten.graph.plan import plan
from hasten.graph.to_integers import integer_net
from hasten.recipe import make_technique
from hasten.task import Task


def quantized(model: nn.Module, x: Tensor, placement: str) -> torch.fx.GraphModule:
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(len(x), dtype=torch.int64))])
    return make_technique("quantize", {"placement": placement}).apply(capture(model, (x,)), task)


@pytest.mark.parametrize("placement", ["fuse_clamps", "symmetric"])
def test_integers_agree_with_the_graph_to_one_step(placement: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU6(), nn.Linear(8, 4))
    x = torch.randn(64, 4, 4)
    graph = quantized(model.eval(), x, placement)
    net = integer_net(plan(graph, (x,)), multiplier_bits=16)
    found = net.dequantize(net.run(net.quantize(x.numpy())))
    with torch.no_grad():
        expected = graph(x).numpy()
        original = model(x).numpy()
    assert [layer.weight.shape for layer in net.layers] == [(12, 16), (8, 12), (4, 8)]
    # One step of a hidden value, and no more than the quantization itself lost.
    assert np.abs(found - expected).max() < 0.02 * np.ptp(original)
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.9


def test_rescaling_rounds_half_up_and_clips() -> None:
    layer = Dense(np.array([[1]]), np.array([0]), Rescale(np.array([1]), 1, 3, 0, 5), np.array([0]))
    net = IntegerNet(1.0, 0, -128, 127, (layer,), np.array([1.0]), 0)
    q = np.array([[-9], [-3], [-2], [-1], [0], [1], [2], [3], [90]])
    np.testing.assert_array_equal(net.run(q)[:, 0], [0, 2, 2, 3, 3, 4, 4, 5, 5])


def test_a_float_graph_is_refused_with_the_remedy() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(Unsupported, match="Apply Quantize first"):
        integer_net(plan(capture(nn.Linear(3, 2), (x,)), (x,)))


@pytest.mark.parametrize("convolution", [False, True])
def test_a_nearly_dead_filter_keeps_its_bias(convolution: bool) -> None:
    """Its quantized weights have a scale so small that one shift for all filters would round its factor away."""
    torch.manual_seed(0)
    first: nn.Conv2d | nn.Linear = nn.Conv2d(4, 4, 3) if convolution else nn.Linear(16, 4)
    with torch.no_grad():
        first.weight[2] = 1e-7 * torch.randn_like(first.weight[2])
        first.get_parameter("bias")[2] = 0.3
    after = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()] if convolution else [nn.ReLU()]
    model = nn.Sequential(first, *after, nn.Linear(4, 4)).eval()
    x = torch.rand(64, 4, 6, 6) if convolution else torch.rand(64, 16)
    graph = quantized(model, x, "fuse_clamps")
    net = integer_net(plan(graph, (x,)))
    with torch.no_grad():
        expected, original = graph(x).numpy(), model(x).numpy()
    found = net.dequantize(net.run(net.quantize(x.numpy())))
    assert np.abs(found - expected).max() < 0.02 * np.abs(original).max()
    rescale = net.layers[0].rescale
    assert rescale is not None
    assert rescale.multiplier.min() >= 32
