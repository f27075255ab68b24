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
# With a scale and a zero point that the graph computes.
CHOOSE_PARAMETERS = torch.ops.quantized_decomposed.choose_qparams.tensor
QUANTIZE_DYNAMIC = torch.ops.quantized_decomposed.quantize_per_tensor.tensor
DEQUANTIZE_DYNAMIC = torch.ops.quantized_decomposed.dequantize_per_tensor.tensor

__all__ = [
    "ANNOTATION_KEY",
    "CHOOSE_PARAMETERS",
    "DEQUANTIZE_DYNAMIC",
    "DEQUANTIZE_PER_CHANNEL",
    "QUANTIZE_DYNAMIC",
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
