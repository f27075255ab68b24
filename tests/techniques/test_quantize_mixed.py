"""Mixed precision: the layers that disturb most stay precise, as few as the measured score needs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

import hasten
from hasten.errors import Unsupported
from hasten.quantization.islands import islands
from hasten.quantization.mixed import by_noise_per_cost, fewest_precise
from hasten.quantization.placement import PLACEMENTS
from hasten.quantization.static import inference_form
from hasten.recipe import make_target
from hasten.task import Task
from hasten.techniques.quantize_mixed import QuantizeMixed


class Spiky(nn.Module):
    """Four layers; the third is given one value far above all others, which takes the 8 bits for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(4))
        self.gain = torch.ones(96)
        self.gain[0] = 3000.0
        with torch.no_grad():
            weight: Tensor = self.layers[2].weight  # type: ignore[assignment]
            weight[:, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x * self.gain if index == 2 else x)
            x = torch.relu(x) if index < 3 else x
        return x


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    batches = [torch.randn(64, 96) for _ in range(6)]
    return Task(Spiky().eval(), (batches[0],), holdout=[(x, None) for x in batches], calibration=batches)


@pytest.fixture(scope="module")
def graph(task: Task) -> GraphModule:
    return hasten.capture(task.model, task.example)


def layers_on_integers(graph: GraphModule) -> int:
    return sum("dequantize_per_tensor" in str(n.args[0].target) for n in graph.graph.nodes if "linear" in str(n.target))


def test_sensitivity_names_the_layer_that_disturbs_most(graph: GraphModule, task: Task) -> None:
    found = hasten.sensitivity(graph, task)
    assert list(found) == sorted(found, key=lambda name: found[name])
    assert next(iter(found)) == "linear_2"
    assert len(found) == 4
    assert found["linear_2"] < found["linear_1"] - 20
    # Fewer bits disturb more; without rounded activations the outlier does no harm.
    weights_alone = hasten.sensitivity(graph, task, activations=False)
    assert weights_alone["linear_2"] > found["linear_2"] + 20
    four = hasten.sensitivity(graph, task, weight_bits=4, group=8, activations=False)
    assert all(four[name] < weights_alone[name] for name in four)


def test_only_the_sensitive_layer_stays_in_float(graph: GraphModule, task: Task) -> None:
    plain = hasten.Quantize().apply(graph, task)
    mixed = QuantizeMixed(max_drop=0.05).apply(graph, task)
    x = torch.randn(512, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        same = [float((g(x).argmax(1) == graph(x).argmax(1)).float().mean()) for g in (plain, mixed)]
    assert same[0] < 0.7
    assert same[1] > 0.93
    assert layers_on_integers(plain) == 4
    assert layers_on_integers(mixed) == 3


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "int4_weights"])
def test_a_mix_compiles(precision: str, target: str, graph: GraphModule, task: Task, tmp_path: Path) -> None:
    mixed = QuantizeMixed(precision=precision, max_drop=0.1, group=16).apply(graph, task)  # type: ignore[arg-type]
    chosen = make_target(target)
    chosen.compile(mixed, task, tmp_path)
    x = task.example[0]
    with torch.no_grad():
        expected = mixed(x).numpy()
    error = np.abs(chosen.load(tmp_path)(x.numpy())[0] - expected)
    # Packed kernels round activations to 8 bits in blocks, and in a few samples the spike has its block to itself.
    assert np.quantile(error, 0.8) < 0.03 * np.abs(expected).max()


def test_a_limit_that_cannot_be_kept_is_unsupported(graph: GraphModule, task: Task) -> None:
    def ruin(graph: GraphModule) -> float:
        return 0.5

    with pytest.raises(Unsupported, match=r"within 0.1; the smallest found is 0.5"):
        fewest_precise(["a", "b"], lambda kept: graph, ruin, 0.1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.01, 2))
def test_the_shortest_prefix_is_found(noises: list[float], limit: float) -> None:
    names = [str(i) for i in range(len(noises))]
    made: list[tuple[str, ...]] = []

    def quantize(kept: tuple[str, ...]) -> GraphModule:
        made.append(kept)
        return GraphModule(nn.Module(), torch.fx.Graph())

    def drop(_: GraphModule) -> float:
        return sum(noises[len(made[-1]) :])

    shortest = next(k for k in range(len(noises) + 1) if sum(noises[k:]) <= limit)
    fewest_precise(names, quantize, drop, limit)
    assert min(len(kept) for kept in made if sum(noises[len(kept) :]) <= limit) == shortest


def test_noise_counts_by_what_precision_costs() -> None:
    assert by_noise_per_cost({"a": 20.0, "b": 20.0, "c": 40.0}, {"a": 100, "b": 10, "c": 10}) == ["b", "a", "c"]


def test_a_lone_depthwise_layer_is_an_island_but_a_product_is_not() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Softplus(), nn.Conv2d(8, 64, 3, padding=1), nn.Softplus()
    )
    x = torch.randn(2, 8, 8, 8)
    graph = inference_form(hasten.capture(model, (x,)), (x,))
    assert islands(graph, PLACEMENTS["fuse_clamps"], frozenset()) == {"conv2d"}
    # In a chain the integers come for free.
    chain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    graph = inference_form(hasten.capture(chain, (x,)), (x,))
    assert islands(graph, PLACEMENTS["fuse_clamps"], frozenset()) == frozenset()
    assert islands(graph, PLACEMENTS["fuse_clamps"], frozenset({"conv2d"})) == {"conv2d_1"}
