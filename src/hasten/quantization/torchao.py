"""The one place that imports torchao, without the lines it writes while it looks for GPU libraries."""

import contextlib
import logging
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # torchao reports every CUDA library it cannot load on a CPU machine, and torch its deprecated enum registration:
    # both at import only, so the levels go back right after.
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with _quiet():
    from torchao.quantization.pt2e import DerivedObserverOrFakeQuantize, ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        DerivedQuantizationSpec,
        QuantizationAnnotation,
        QuantizationSpec,
        QuantizationSpecBase,
        Quantizer,
        SharedQuantizationSpec,
    )

ANNOTATION_KEY = "quantization_annotation"
# Registered by the imports above.
DEQUANTIZE_PER_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default

__all__ = [
    "ANNOTATION_KEY",
    "DEQUANTIZE_PER_CHANNEL",
    "DerivedObserverOrFakeQuantize",
    "DerivedQuantizationSpec",
    "ObserverBase",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "prepare_pt2e",
]
