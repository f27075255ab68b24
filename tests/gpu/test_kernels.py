"""The int8 convolution without a GPU: its machine code, and its numbers by the interpreter."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hasten import environments
from hasten.gpu.products import convolution_reference, int8_conv2d, int8_linear


@pytest.mark.stack("triton")
@pytest.mark.parametrize(
    ("capability", "ptx", "sass"), [(80, "mma.sync", "IMMA"), (89, "mma.sync", "IMMA"), (90, "wgmma", "IGMMA")]
)
def test_machine_code_multiplies_int8_on_tensor_cores(capability: int, ptx: str, sass: str) -> None:
    found = environments.call("triton", "machine_code", capability=capability, channels=64, filters=128, kernel=3)
    products = found["products"]
    assert any(name.startswith(ptx) and "s32.s8.s8" in name for name in products)
    assert any(name.startswith(sass) for name in products)
    assert found["shared_bytes"] <= 100 * 1024


@pytest.mark.stack("triton")
@pytest.mark.parametrize(("stride", "padding", "dilation", "zero_point"), [(1, 1, 1, -128), (2, 0, 1, 3), (1, 2, 2, 0)])
def test_the_interpreter_equals_the_reference(
    stride: int, padding: int, dilation: int, zero_point: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-128, 128, (2, 7, 6, 20), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (33, 3, 3, 20), dtype=torch.int8, generator=generator)
    scale, bias = torch.rand(33, generator=generator), torch.randn(33, generator=generator)
    for name, value in (("image", image), ("weight", weight), ("scale", scale), ("bias", bias)):
        np.save(tmp_path / f"{name}.npy", value.numpy())
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    environments.call("triton", "interpret", folder=tmp_path, zero_point=zero_point, **options)
    pairs = ([stride] * 2, [padding] * 2, [dilation] * 2)
    expected = convolution_reference(image, weight, scale, bias, *pairs, zero_point, torch.float32)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.numpy(), rtol=1e-6, atol=1e-4)


def test_products_of_the_cpu_equal_sums_of_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-128, 128, (3, 5, 16), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (8, 16), dtype=torch.int8, generator=generator)
    scale, bias = torch.rand(8, generator=generator), torch.randn(8, generator=generator)
    expected = (q.double() @ weight.double().t()).float() * scale + bias
    torch.testing.assert_close(int8_linear(q, weight, scale, bias, torch.float32), expected)
    image = q.reshape(3, 5, 4, 4).permute(0, 1, 2, 3)
    taps = torch.randint(-127, 128, (8, 3, 3, 5), dtype=torch.int8, generator=generator)
    found = int8_conv2d(image, taps, scale, bias, [1, 1], [1, 1], [1, 1], 0, torch.float32)
    sums = torch.nn.functional.conv2d(image.double(), taps.permute(0, 3, 1, 2).double(), padding=1)
    torch.testing.assert_close(found, sums.float() * scale[:, None, None] + bias[:, None, None])
