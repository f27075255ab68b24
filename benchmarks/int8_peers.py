"""What other tools make of the same float ONNX file: ONNX Runtime's quantizer in this process, NNCF in its own Python.

As a script (in an interpreter that has `nncf`): `int8_peers.py FLOAT_ONNX INPUTS_NPZ PRESET TRANSFORMER OUT_XML`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def batches(path: Path) -> list[list[np.ndarray]]:
    """The calibration batches in `path`: array `input_i` [n, ...] holds input i of n batches of 1."""
    with np.load(path) as file:
        columns = [file[name] for name in sorted(file.files)]
    return [[column[i : i + 1] for column in columns] for i in range(len(columns[0]))]


def onnxruntime_variants(
    source: Path, inputs: Path, scratch: Path, transformer: bool
) -> dict[str, Callable[[Path], None]]:
    """ONNX Runtime's quantizer in its sensible settings; each value writes one file.

    All after its own pre-processing, weights int8 per channel. S8 activations are in: its documentation calls them
    the default choice.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = scratch / "preprocessed.onnx"
    try:
        quant_pre_process(source, ready)
    except Exception:
        # Its symbolic shape inference gives up on some transformers; the rest of the pre-processing does not need it.
        quant_pre_process(source, ready, skip_symbolic_shape=True)
    names = [value.name for value in onnx.load(source, load_external_data=False).graph.input]

    class Reader:
        def __init__(self) -> None:
            self._left = iter(batches(inputs))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else dict(zip(names, batch, strict=True))

    def static(activation: Any, layers: list[str] | None) -> Callable[[Path], None]:
        return lambda out: quantize_static(
            ready,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=layers,
        )

    found = {
        "U8S8": static(QuantType.QUInt8, None),
        "S8S8": static(QuantType.QInt8, None),
        "U8S8 layers only": static(QuantType.QUInt8, ["Conv", "MatMul", "Gemm"]),
    }
    if transformer:  # its dynamic convolution is several times slower than float
        found["dynamic"] = lambda out: quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8)
    return found


def _nncf(source: Path, inputs: Path, preset: str, transformer: bool, out: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    names = [value.any_name for value in model.inputs]
    data = [dict(zip(names, batch, strict=True)) for batch in batches(inputs)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(data),
        preset=nncf.QuantizationPreset[preset],
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(data),
    )
    ov.save_model(quantized, out, compress_to_fp16=False)


if __name__ == "__main__":
    _nncf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1", Path(sys.argv[5]))
