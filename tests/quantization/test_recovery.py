"""Recovery without training: what plain rounding loses on hard networks, these bring back."""

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.quantization.equalize import pairs
from hasten.recipe import Technique
from hasten.task import Task
from hasten.techniques.equalize_layers import EqualizeLayers
from hasten.techniques.quantize import Quantize
from hasten.techniques.smooth_quant import SmoothQuant


def noise_db(task: Task, *chain: Technique) -> float:
    """Signal to noise of the network after `chain`, against the float network, in dB."""
    graph = capture(task.model, task.example)
    x = torch.randn(torch.Size((64, *task.example[0].shape[1:])), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        reference = graph(x)
        for technique in chain:
            graph = technique.apply(graph, task)
        return float(10 * torch.log10(reference.square().mean() / (graph(x) - reference).square().mean()))


def task_of(model: nn.Module, *shape: int) -> Task:
    torch.manual_seed(0)
    batches = [torch.randn(8, *shape) for _ in range(8)]
    return Task(model.eval(), (batches[0],), holdout=batches, calibration=batches)


def depthwise(ill: bool) -> Task:
    """A separable network; `ill`: its channels differ in range by up to 300, which the next layer undoes."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    if ill:
        for before, after in ((model[0], model[2]), (model[2], model[4])):
            assert isinstance(before, nn.Conv2d)
            assert isinstance(after, nn.Conv2d)
            s = torch.logspace(-1.2, 1.2, 16)[torch.randperm(16)]
            with torch.no_grad():
                before.weight.div_(s.view(-1, 1, 1, 1))
                assert before.bias is not None
                before.bias.div_(s)
                after.weight.mul_(s.view((-1, 1, 1, 1) if after.groups > 1 else (1, -1, 1, 1)))
    return task_of(model, 3, 12, 12)


class Outliers(nn.Module):
    """A transformer's feed-forward part with two outlier channels behind its layer norm, as large ViTs have."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        with torch.no_grad():
            self.norm.weight[:2] = 80.0
            self.up.weight[:, :2] /= 80.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = self.down(nn.functional.gelu(self.up(y)))
        return result + y if self.residual else result


def test_equalizing_brings_back_a_depthwise_net_with_ill_scaled_channels() -> None:
    plain, healthy = noise_db(depthwise(ill=True), Quantize()), noise_db(depthwise(ill=False), Quantize())
    recovered = noise_db(depthwise(ill=True), EqualizeLayers(), Quantize())
    assert plain < healthy - 10
    assert recovered > healthy - 0.2 * (healthy - plain)


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_brings_back_a_transformer_with_outliers(residual: bool) -> None:
    torch.manual_seed(2)
    task = task_of(Outliers(residual), 5, 32)
    plain = noise_db(task, Quantize(observer="min_max"))
    assert noise_db(task, SmoothQuant(), Quantize()) > plain + 10


def test_scaling_alone_keeps_the_function() -> None:
    torch.manual_seed(2)
    assert noise_db(depthwise(ill=True), EqualizeLayers()) > 90
    assert noise_db(task_of(Outliers(True), 5, 32), SmoothQuant()) > 90


def test_smoothing_folds_into_the_layer_norm_where_nothing_else_reads_it() -> None:
    torch.manual_seed(2)
    task = task_of(Outliers(False), 5, 32)
    graph = SmoothQuant(insert=False).apply(capture(task.model, task.example), task)
    assert torch.ops.aten.mul.Tensor not in [n.target for n in graph.graph.nodes]


def test_nothing_to_scale_is_unsupported() -> None:
    task = task_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)), 3, 8, 8)
    with pytest.raises(Unsupported, match="homogeneous"):
        EqualizeLayers().apply(capture(task.model, task.example), task)


def test_a_shared_weight_is_not_scaled() -> None:
    layer = nn.Linear(8, 8)
    task = task_of(nn.Sequential(layer, nn.ReLU(), layer), 8)
    with pytest.raises(Unsupported):
        EqualizeLayers().apply(capture(task.model, task.example), task)


class OverTime(nn.Module):
    """A linear layer over the time axis of what a convolution makes: its inputs are not the convolution's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv1d(3, channels, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(torch.relu(self.convolution(x)))
        return y


@pytest.mark.parametrize("channels", [8, 6])
def test_layers_that_mean_different_axes_are_no_pair(channels: int) -> None:
    torch.manual_seed(0)
    model, x = OverTime(channels).eval(), torch.randn(16, 3, 8)
    task = Task(model, (x,), holdout=[(x, None)], calibration=[x])
    graph = capture(model, (x,))
    assert not pairs(graph)
    torch.testing.assert_close(SmoothQuant().apply(graph, task)(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(Unsupported, match="no two layers connected"):
        EqualizeLayers().apply(graph, task)
