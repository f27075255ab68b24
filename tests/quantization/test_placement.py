"""Where Q/DQ stands decides the speed, so these tests look at the operators that the runtime really chose."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.graph.onnx import write_onnx
from hasten.recipe import make_technique
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize import Quantize


class Residual(nn.Module):
    """Padding, depthwise, residual addition, max and average pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pointwise = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.pointwise(self.depthwise(x)))
        x = nn.functional.max_pool2d(x, 2)
        pooled: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return pooled


class Block(nn.Module):
    """A transformer layer with a mask."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], 4, -1).transpose(1, 2)

        y = self.norm_a(x)
        y = nn.functional.scaled_dot_product_attention(
            heads(self.q(y)), heads(self.k(y)), heads(self.v(y)), keep[:, None, None]
        )
        x = x + self.out(y.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm_b(x))))
        return result


def task_of(model: nn.Module, *example: Tensor) -> Task:
    torch.manual_seed(0)
    calibration = [example, *(tuple(x if x.dtype == torch.bool else torch.randn_like(x) for x in example),) * 3]
    return Task(model.eval(), example, holdout=[(example, None)], calibration=calibration)


@pytest.fixture
def residual() -> Task:
    torch.manual_seed(0)
    return task_of(Residual(), torch.randn(2, 3, 16, 16))


@pytest.fixture
def block() -> Task:
    torch.manual_seed(0)
    return task_of(Block(), torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.bool))


def run_onnxruntime(task: Task, technique: Quantize, folder: Path) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Outputs of the torch graph and of its file, and the operators that ONNX Runtime runs."""
    graph = technique.apply(capture(task.model, task.example), task)
    write_onnx(graph, task.example, folder / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, task.example, strict=True)}
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    operators = Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
    return expected, session.run(None, feed)[0], operators


def test_a_convolutional_network_runs_on_integers_from_end_to_end(residual: Task, tmp_path: Path) -> None:
    expected, actual, operators = run_onnxruntime(residual, Quantize(), tmp_path)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QGemm"] == 1
    assert not {"Conv", "Gemm", "Add", "Relu", "Clip", "Pad", "BatchNormalization"} & set(operators)
    step = (expected.max() - expected.min()) / 255
    assert np.abs(expected - actual).max() <= step


def test_a_transformer_runs_its_layers_on_integers_and_attention_in_float(block: Task, tmp_path: Path) -> None:
    expected, actual, operators = run_onnxruntime(block, Quantize(), tmp_path)
    assert operators["MatMulIntegerToFloat"] == 6
    assert operators["IsNaN"] == 0
    # Query, key and value read one quantized tensor.
    assert operators["QuantizeLinear"] == 4
    step = (expected.max() - expected.min()) / 255
    assert np.abs(expected - actual).max() <= step


@pytest.fixture
def gpt2() -> Task:
    """GPT-2's layers are products with weights stored as [in, out]."""
    config = GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1, use_cache=False)
    torch.manual_seed(0)
    model = FirstOutput(GPT2Model(config)).eval()
    tokens = torch.randint(0, 32, (4, 8))
    return Task(model, (tokens,), holdout=[tokens], calibration=[tokens])


class FirstOutput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.model(x, return_dict=False)[0]
        return first


def test_gpt2_runs_its_layers_on_integers_in_onnx_runtime(gpt2: Task, tmp_path: Path) -> None:
    expected, actual, operators = run_onnxruntime(gpt2, Quantize(), tmp_path)
    assert operators["QGemm"] == 4
    assert operators["Gemm"] == 0
    assert np.abs(expected - actual).max() <= (expected.max() - expected.min()) / 255


def test_gpt2_runs_its_layers_on_integers_in_openvino(gpt2: Task, tmp_path: Path) -> None:
    graph = Quantize(placement="fuse_activations").apply(capture(gpt2.model, gpt2.example), gpt2)
    OpenVino(threads=1).compile(graph, gpt2, tmp_path)
    compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU")
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    ran = [info["runtimePrecision"].astype(str) for info in told if info["layerType"].astype(str) == "FullyConnected"]
    assert ran == ["u8"] * 4


class Patches(nn.Module):
    """As a vision transformer begins: a convolution and linear layers with as many outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        result: Tensor = self.b(nn.functional.gelu(self.a(tokens))).mean(1)
        return result


def test_layers_that_share_a_zero_point_with_a_convolution_run_on_integers_in_openvino(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = task_of(Patches(), torch.randn(4, 3, 16, 16))
    graph = Quantize(placement="fuse_activations").apply(capture(task.model, task.example), task)
    OpenVino(threads=1).compile(graph, task, tmp_path)
    compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU")
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = {"Convolution", "FullyConnected"}
    ran = [info["runtimePrecision"].astype(str) for info in told if info["layerType"].astype(str) in kinds]
    assert len(ran) == 3
    assert set(ran) <= {"u8", "i8"}


def test_the_symmetric_placement_has_zero_points_in_the_middle_and_quantizes_attention(block: Task) -> None:
    graph = Quantize(placement="symmetric").apply(capture(block.model, block.example), block)
    quantizers = [n for n in graph.graph.nodes if str(n.target).startswith("quantized_decomposed.quantize_")]
    assert len(quantizers) == 4 + 4
    assert {n.args[2] for n in quantizers} <= {0, 128}


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(nn.functional.silu(self.a(x)))
        return result


def test_a_smooth_activation_is_rounded_after_or_around_as_the_placement_says() -> None:
    torch.manual_seed(0)
    task = task_of(Swish(), torch.randn(2, 3, 5, 5))
    graph = capture(task.model, task.example)

    def rounded(placement: str) -> list[str]:
        nodes = Quantize(placement=placement).apply(graph, task).graph.nodes
        return [n.args[0].name for n in nodes if str(n.target).startswith("quantized_decomposed.quantize_per_tensor")]

    assert rounded("fuse_activations") == ["x", "silu"]
    assert rounded("fuse_clamps") == ["x", "conv2d", "silu", "conv2d_1"]


def test_openvino_runs_it_within_a_step(residual: Task, tmp_path: Path) -> None:
    graph = Quantize(placement="fuse_activations").apply(capture(residual.model, residual.example), residual)
    target = OpenVino()
    target.compile(graph, residual, tmp_path)
    actual = target.load(tmp_path)(*(x.numpy() for x in residual.example))[0]
    with torch.no_grad():
        expected = graph(*residual.example).numpy()
    assert np.abs(expected - actual).max() <= (expected.max() - expected.min()) / 255


def test_weights_are_int8_per_channel_and_other_batch_sizes_run(residual: Task) -> None:
    graph = Quantize().apply(capture(residual.model, residual.example), residual)
    integers = [b for b in graph.buffers() if b.dtype == torch.int8]
    assert sorted(b.shape[0] for b in integers) == [5, 8, 8, 8]
    assert len(graph(torch.randn(5, 3, 16, 16))) == 5


def test_the_input_graph_stays_as_it_is(residual: Task) -> None:
    graph = capture(residual.model, residual.example)
    before, code = graph(*residual.example), graph.code
    Quantize().apply(graph, residual)
    assert graph.code == code
    assert torch.equal(graph(*residual.example), before)


def test_quantized_is_close_to_float(residual: Task) -> None:
    graph = capture(residual.model, residual.example)
    reference, result = graph(*residual.example), Quantize().apply(graph, residual)(*residual.example)
    noise_db = 10 * torch.log10(reference.square().mean() / (reference - result).square().mean())
    assert noise_db > 25


def test_a_channel_without_weights_keeps_its_bias(residual: Task) -> None:
    model = residual.model
    assert isinstance(model, Residual)
    with torch.no_grad():
        model.head.weight[2] = 0
        model.head.bias[2] = 3.0
    result = Quantize().apply(capture(model, residual.example), residual)(*residual.example)
    torch.testing.assert_close(result[:, 2], torch.full((2,), 3.0), rtol=1e-3, atol=1e-3)


def test_a_layer_can_stay_in_float(residual: Task) -> None:
    graph = Quantize(keep_float=("linear",)).apply(capture(residual.model, residual.example), residual)
    assert sum(b.dtype == torch.int8 for b in graph.buffers()) == 3
    with pytest.raises(Unsupported, match=r"`keep_float` must name nodes .* no 'head'"):
        Quantize(keep_float=("head",)).apply(capture(residual.model, residual.example), residual)


def test_nothing_to_quantize_is_unsupported() -> None:
    task = task_of(nn.Sequential(nn.ReLU()), torch.randn(2, 3))
    with pytest.raises(Unsupported, match="no convolution"):
        Quantize().apply(capture(task.model, task.example), task)


def test_no_calibration_batches_is_named() -> None:
    task = Task(nn.Linear(3, 2), (torch.randn(2, 3),), holdout=[torch.randn(2, 3)], calibration=[])
    with pytest.raises(InvalidInput, match="`calibration` must yield at least one batch"):
        Quantize().apply(capture(task.model, task.example), task)


def test_options_are_checked_and_come_from_the_file_name() -> None:
    assert make_technique("quantize", {"placement": "symmetric"}) == Quantize(placement="symmetric")
    with pytest.raises(InvalidInput, match="`samples` must be in"):
        Quantize(samples=0)
