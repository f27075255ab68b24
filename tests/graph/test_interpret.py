"""The interpreter against torch, over hand-written nets and Hugging Face architectures with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import Unsupported
from hasten.graph import interpret
from hasten.graph.aten.neural import convolution_padding
from hasten.graph.capture import as_tuple, capture
from hasten.graph.plan import Plan, plan
from hasten.task import Inputs


class Fn(nn.Module):
    """A function with a few parameters as a module."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **dict(self.named_parameters()))


def check_agrees(model: nn.Module, example: Inputs, tolerance: float = 1e-5) -> Plan:
    graph = capture(model, example)
    made = plan(graph, example)
    inputs = tuple(torch.cat([x, x[:1]]) for x in example)
    with torch.no_grad():
        expected = as_tuple(graph(*inputs)) if made.fixed_batch is None else as_tuple(graph(*example))
    arrays = [x.numpy() for x in (inputs if made.fixed_batch is None else example)]
    found = interpret.run(made, arrays)
    for y, z in zip(expected, found, strict=True):
        assert z.shape == tuple(y.shape)
        assert str(z.dtype) == str(y.dtype).removeprefix("torch.")
        np.testing.assert_allclose(z, y.numpy(), rtol=tolerance * 10, atol=tolerance * max(1.0, y.abs().max().item()))
    return made


def image(channels: int = 4, size: int = 9) -> Inputs:
    return (torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0)),)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Inputs]] = {
    "leaky": (lambda x: F.leaky_relu(x, 0.1) + F.elu(x, 0.5) + F.softplus(x) + F.mish(x), image()),
    "hard": (lambda x: F.hardswish(x) * F.hardsigmoid(x) + F.relu6(x) - F.hardtanh(x, -0.5, 0.5), image()),
    "gelu": (lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + torch.sigmoid(x), image()),
    "clamp": (lambda x: x.clamp(min=-0.3) + x.clamp(max=0.2) + x.clamp(-1, 1) ** 3, image()),
    "math": (lambda x: torch.rsqrt(x.abs() + 1) + x.exp().log1p() - x.cos() / (x.sin() + 2), image()),
    "rounding": (
        lambda x: x.floor() + x.ceil() * 2 + x.round() * 4 + torch.div(x, 0.3, rounding_mode="floor"),
        image(),
    ),
    "integer": (lambda x: (x * 3).to(torch.int64) * 0.5 + (x > 0).sum(1, keepdim=True) / 2, image()),
    "reduce": (lambda x: x.amax(1) + x.mean((1,)) + x.sum(1) + x.var(1) + x.std(1), image()),
    "softmax": (lambda x: x.softmax(1) + x.log_softmax(-1), image()),
    "argmax": (lambda x: x.flatten(1).argmax(1), image()),
    "where": (lambda x: torch.where(x > 0, x, -x).masked_fill(x > 1, 7.0).cumsum(2), image()),
    "reflect": (lambda x: F.pad(F.pad(x, (1, 2, 0, 3), mode="reflect"), (1, 0, 0, 0), mode="replicate"), image()),
    "crop": (lambda x: F.pad(x, (-1, 2, 1, -2), value=3.0), image()),
    "shapes": (lambda x: torch.stack(x.permute(0, 2, 3, 1).unbind(-1), 1).flip(2).roll(2, 3).chunk(2, 1)[1], image()),
    "index": (lambda x: x[:, 1:, ::2, -3:].narrow(1, 0, 2).transpose(1, 3), image()),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 5).repeat(1, 2, 1, 1), image()),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) + F.max_pool2d(x, 3, 2, 1), image()),
    "max_pool_ceil": (lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), image()),
    "avg_pool": (lambda x: F.avg_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), image()),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (4, 7)), image()),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), image()),
    "bilinear": (lambda x: F.interpolate(x, size=(5, 14), mode="bilinear", align_corners=False), image()),
    "bilinear_corners": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True), image()),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), image()),
    "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), image()),
    "grouped": (lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), image()),
    "einsum": (
        lambda x: torch.einsum("nchw,nkhw->nck", x, x).bmm(torch.ones(1, 4, 2).expand(x.shape[0], 4, 2)),
        image(),
    ),
    "two_inputs": (lambda x, i: x.flatten(1).gather(1, i), (image()[0], torch.tensor([[1, 5], [7, 2]]))),
    "float and integer": (lambda x: (x > 0).long() * 2.5 + 3 - (x > 1).int() / 2, image()),
    "integer tensors and float tensors": (lambda x: (x > 0).long() * x + x * (x > 0).int(), image()),
    "windows without their padding": (
        lambda x: (
            F.avg_pool2d(x, 2, 2, count_include_pad=False)
            + F.avg_pool2d(x, 2, 2, 1, count_include_pad=False)[..., 1:, 1:]
        ),
        image(),
    ),
    "variances": (
        lambda x: x.var((1, 2)) + x.var((1, 2), unbiased=False) + x.flatten(1).var(1, correction=3)[:, None],
        image(),
    ),
    "two widths the other way": (lambda x: (x > 0).int() + (x > 1).long(), image()),
    "two widths": (lambda x: (x > 0).long() + (x > 1).int() * (x > 0).long(), image()),
    "a number from the left": (lambda x: 2.5 - (x > 0).long() + torch.rsub(x, 1.5, alpha=2), image()),
    "a tensor without dimensions": (
        lambda x: (x > 0).int() * torch.tensor(3) + x * torch.tensor(2.0).double(),
        image(),
    ),
    "truth plus a number": (lambda x: (x > 0) + 2, image()),
    "truncated": (lambda x: torch.div(x, 0.3, rounding_mode="trunc") + torch.add(x, x, alpha=3), image()),
    "whole division": (lambda x: (x * 9).int() // 2 + (x * 9).int() % 3, image()),
    "norms": (
        lambda x: torch.linalg.vector_norm(x, float("inf"), 1) + torch.linalg.vector_norm(x, 3, 1) + x.norm(2, 1),
        image(),
    ),
    "a norm as float64": (lambda x: torch.linalg.vector_norm(x, 2, (2, 3), True, dtype=torch.float64), image()),
    "sum of products": (
        lambda x: torch.baddbmm(x.flatten(1, 2), x.flatten(1, 2), x[:, 0], beta=0.5, alpha=2.0),
        image(),
    ),
    "flattened in the middle": (lambda x: x.flatten(1, 2).unflatten(1, (2, 2, 9)), image()),
    "narrowed": (lambda x: x.narrow(2, 3, 4), image()),
    "chunks": (lambda x: x.chunk(4, -1)[2], image()),
    "filled": (lambda x: x + torch.full((9,), 3) * torch.full((9, 1), 2.5) + torch.scalar_tensor(7), image()),
    "largest integers": (lambda x: F.max_pool2d((x * 9).int().float(), 3, 2, 1, dilation=2), image()),
    "windows without divisor": (lambda x: F.avg_pool2d(x, 2, 2, divisor_override=3), image()),
    "group_norm": (lambda x: F.group_norm(x, 2) + F.rms_norm(x, (9,)) + F.normalize(x, dim=1), image()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree_with_torch(name: str) -> None:
    function, example = FUNCTIONS[name]
    check_agrees(Fn(function), example)


CONVOLUTIONS: dict[str, tuple[nn.Module, Inputs]] = {
    "plain": (nn.Conv2d(4, 6, 3), image()),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), image()),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), image()),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=2), image()),
    "conv1d": (nn.Conv1d(9, 5, 3, padding=2, stride=2), (torch.randn(2, 9, 11),)),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3)), (torch.randn(2, 2, 4, 4, 4),)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), image()),
    "transposed_dilated": (nn.ConvTranspose2d(4, 3, (2, 3), stride=(1, 3), dilation=2), image()),
    "batch_norm": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), image()),
    "prelu": (nn.PReLU(4, 0.3), image()),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree_with_torch(name: str) -> None:
    check_agrees(*CONVOLUTIONS[name])


class First(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.model(x)[0]
        return first


_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_PIXELS = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)
_WORDS = (torch.randint(2, 60, (2, 8), generator=torch.Generator().manual_seed(1)),)
ARCHITECTURES: dict[str, tuple[dict[str, object], Inputs]] = {
    "bert": ({"vocab_size": 64, **_SMALL}, _WORDS),
    "gpt2": ({"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}, _WORDS),
    "llama": ({"vocab_size": 64, "num_key_value_heads": 1, "use_cache": False, **_SMALL}, _WORDS),
    "deberta-v2": ({"vocab_size": 64, **_SMALL}, _WORDS),
    "vit": ({"image_size": 32, "patch_size": 8, **_SMALL}, _PIXELS),
    "swin": (
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4},
        _PIXELS,
    ),
    "resnet": ({"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "bottleneck"}, _PIXELS),
    "convnext": ({"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}, _PIXELS),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_agree_with_torch(name: str) -> None:
    from transformers import AutoConfig, AutoModel

    options, example = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(name, **options)).eval()
    check_agrees(First(model), example, tolerance=1e-4)


def test_a_plan_survives_its_files(tmp_path: Path) -> None:
    made = plan(capture(nn.Linear(3, 2), (torch.randn(2, 3),)), (torch.randn(2, 3),))
    made.save(tmp_path)
    read = Plan.load(tmp_path)
    assert (read.inputs, read.outputs) == (made.inputs, made.outputs)
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(interpret.run(read, [x])[0], interpret.run(made, [x])[0])


def test_unknown_operators_are_all_named() -> None:
    made = plan(
        capture(Fn(lambda x: torch.fft.rfft(x).abs().kthvalue(1).values), (torch.randn(2, 8),)), (torch.randn(2, 8),)
    )
    with pytest.raises(Unsupported, match=r"aten.*fft_rfft.*aten.kthvalue"):
        interpret.check(made)


def test_quantize_and_dequantize_agree_with_torch() -> None:
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    scales, zeros = torch.tensor([0.1, 0.02, 0.3, 0.07]), torch.tensor([0, 3, -2, 1])

    def both(x: Tensor) -> Tensor:
        q = ops.quantize_per_tensor(x, 0.03, 5, -128, 127, torch.int8)
        y = ops.dequantize_per_tensor(q, 0.03, 5, -128, 127, torch.int8)
        p = ops.quantize_per_channel(y, scales, zeros, 1, -128, 127, torch.int8)
        return ops.dequantize_per_channel(p, scales, zeros, 1, -128, 127, torch.int8)

    check_agrees(Fn(both), image())


@pytest.mark.parametrize("factor", [1.0, 1.4, 2.0, 2.5, 0.6])
def test_nearest_pixels_follow_the_factor(factor: float) -> None:
    for size in (7, 9, 10):
        check_agrees(nn.Upsample(scale_factor=factor), image(3, size))
    check_agrees(nn.Upsample(size=(13, 5)), image(3, 9))


def test_a_type_is_taken_from_another_tensor() -> None:
    check_agrees(Fn(lambda x: (x > 0).type_as(x) + x.abs().to(torch.int64).to(x)), image())


def test_padding_by_name_is_that_of_a_convolution() -> None:
    assert convolution_padding("valid", (3, 4), (1, 1)) == [(0, 0), (0, 0)]
    assert convolution_padding("same", (3, 4), (2, 1)) == [(2, 2), (1, 2)]
    assert convolution_padding([1], (3, 4), (1, 1)) == [(1, 1), (1, 1)]
    assert convolution_padding([1, 2], (3, 4), (1, 1)) == [(1, 1), (2, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_weights_that_numpy_does_not_have_are_refused(dtype: torch.dtype) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.ones(3, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.get_buffer("held").real.float() if dtype.is_complex else x + self.get_buffer("held")

    x = torch.randn(2, 3)
    with pytest.raises(Unsupported, match="numpy has"):
        plan(capture(Held(), (x,)), (x,))
