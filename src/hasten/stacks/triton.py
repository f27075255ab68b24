"""Triton without a GPU: kernels to machine code for any NVIDIA generation, or run by Triton's interpreter."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def machine_code(capability: int, channels: int, filters: int, kernel: int) -> dict[str, Any]:
    """Compile the int8 convolution for `sm_<capability>`.

    Args:
        capability: 80, 89, 90, 100, ...
        channels: Input channels, a multiple of 16.
        filters: Output channels, a multiple of 16.
        kernel: Height and width of the filters.

    Returns:
        `products`: the matrix instructions of the PTX and of the machine code, and how often each occurs;
        `cubin_bytes`, `shared_bytes`, `registers_spilled`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hasten.gpu import kernels

    function = kernels.int8_convolution
    sizes = kernels.blocks(64 * 56 * 56, filters, channels)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    pair = [1, 1]
    fixed = kernels.geometry(pair, [kernel // 2] * 2, pair) | sizes
    fixed |= {"kernel_height": kernel, "kernel_width": kernel, "zero_point": -128}
    pointers = {"x": "*i8", "weight": "*i8", "scale": "*fp32", "bias": "*fp32", "y": "*bf16"}
    names = function.arg_names
    signature = {n: pointers.get(n, "constexpr" if n in fixed else "i32") for n in names}
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        function,
        signature,
        constexprs={(names.index(n),): value for n, value in fixed.items()},
        attrs={(names.index(n),): divisible for n in (*pointers, "channels", "filters")},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = made.asm["ptx"] + _disassembled(made.asm["cubin"])
    found = re.findall(r"\b(wgmma\.mma_async[\w.]*|mma\.sync[\w.]*|tcgen05\.mma[\w.]*|IGMMA[\w.]*|IMMA[\w.]*)", text)
    return {
        "products": {name: found.count(name) for name in sorted(set(found))},
        "cubin_bytes": len(made.asm["cubin"]),
        "shared_bytes": made.metadata.shared,
        "options": options | sizes,
    }


def _disassembled(cubin: bytes) -> str:
    """The machine code as text, by the disassembler that Triton carries."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = str(knobs.nvidia.nvdisasm.path)
        return subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout


def interpret(folder: Path, stride: int, padding: int, dilation: int, zero_point: int) -> None:
    """Run the int8 convolution in Triton's interpreter on the CPU.

    Args:
        folder: Holds `image.npy` int8 [N, H, W, C], `weight.npy` int8 [K, R, S, C], `scale.npy` and `bias.npy` float32
            [K]; `found.npy` float32 [N, P, Q, K] is written.
        stride: Of both sides, as are the next two.
        padding: See above.
        dilation: See above.
        zero_point: What stands beyond the border.
    """
    # Read when a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import torch

    from hasten.gpu import kernels
    from hasten.gpu.products import output_size

    image, weight, scale, bias = (
        torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("image", "weight", "scale", "bias")
    )
    pairs = ([stride] * 2, [padding] * 2, [dilation] * 2)
    sizes = output_size(image.shape[1:3], weight.shape[1:3], *pairs)
    y = torch.empty((len(image), *sizes, len(weight)))
    kernels.launch(kernels.int8_convolution, (image, weight, scale, bias, y), kernels.geometry(*pairs), zero_point)
    np.save(folder / "found.npy", y.numpy())
