"""The one place that imports torchao, without the lines it writes while it looks for GPU libraries."""

import torch

from hasten.graph.quiet import quiet

# torchao reports every CUDA library it cannot load on a CPU machine, and torch its deprecated enum registration: both
# at import only.
with quiet("torchao", "torch.utils._pytree", categories=()):
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
