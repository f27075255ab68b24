"""Where and in which arithmetic to train."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.duplicate import duplicate
from hasten.training.options import Precision


def pick_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises:
        InvalidInput: torch does not know the name, or the device is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"`device` must be a usable torch device, but got {name!r}: {error}") from error
    return device


def pick_dtype(precision: Precision, device: torch.device, model: nn.Module) -> torch.dtype:
    """The dtype that `precision` means for `model` on `device`; "auto" keeps a model with fake-quantizers in float32.

    Rounding to bf16 before a fake-quantizer would add an error that the integer kernels do not have.

    Raises:
        InvalidInput: fp16 asked for on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise InvalidInput("`precision` must be fp32 or bf16 on a CPU, but got 'fp16'. Use 'auto'.")
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if _has_fake_quantizers(model):
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bf16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision in `dtype`; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def to_device(values: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Every tensor in `values` (any nesting) on `device`."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(device, non_blocking=True)
        return value.contiguous(memory_format=torch.channels_last) if channels_last and value.ndim == 4 else value

    return pytree.tree_map(moved, values)


def takes_channels_last(model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether `model` has convolutions and runs on images in NHWC memory layout, in which they train in half the time.

    Tried on two samples, because a `view` in a graph may refuse the layout.
    """
    images = any(isinstance(x, Tensor) and x.ndim == 4 for x in example)
    if not images or not any(p.ndim == 4 for p in model.parameters()):
        return False
    laid_out: Any = duplicate(model)
    laid_out.to(memory_format=torch.channels_last)
    few = example if len(example[0]) < 2 else tuple(x[:2] for x in example)
    for inputs in (few, example):  # a graph of a fixed batch takes the whole example only
        try:
            with torch.no_grad():
                laid_out(*to_device(inputs, _device_of(laid_out), channels_last=True))
            return True
        except RuntimeError:
            continue
    return False


def to_float32(values: Any) -> Any:
    """Every half-precision tensor in `values` as float32, so that losses are summed in it."""

    def widened(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if half else value

    return pytree.tree_map(widened, values)


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _has_fake_quantizers(model: nn.Module) -> bool:
    # torchao's and torch's own class share no base, only this method.
    return any(hasattr(module, "enable_fake_quant") for module in model.modules())


def _cpu_computes_bf16() -> bool:
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"))
