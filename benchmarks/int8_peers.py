"""What other tools make of the same float network: ONNX Runtime's quantizer in this process, others in their Python.

As a script: `int8_peers.py TOOL SOURCE INPUTS_NPZ OUT`, in an interpreter that has the tool.

    nncf-mixed, nncf-performance     from a float ONNX file, to model.xml (append -transformer for its model type)
    torchao, neural-compressor       from a program of torch.export, to model.pt2 as Inductor compiles it
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


def _nncf(tool: str, source: Path, inputs: Path, out: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    names = [value.any_name for value in model.inputs]
    data = [dict(zip(names, batch, strict=True)) for batch in batches(inputs)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(data),
        preset=nncf.QuantizationPreset[tool.split("-")[1].upper()],
        model_type=nncf.ModelType.TRANSFORMER if tool.endswith("transformer") else None,
        subset_size=len(data),
    )
    ov.save_model(quantized, out, compress_to_fp16=False)


def _inductor(tool: str, source: Path, inputs: Path, out: Path) -> None:
    """Static int8 as the tool documents it for x86: PT2E with the quantizer for Inductor, then Inductor itself."""
    import torch
    from torch._inductor import aoti_compile_and_package

    graph: Any = torch.export.load(source).module(check_guards=False)
    data = [tuple(map(torch.from_numpy, batch)) for batch in batches(inputs)]
    with torch.no_grad():
        if tool == "torchao":
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

            quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
            prepared, convert = prepare_pt2e(graph, quantizer), convert_pt2e
        else:
            from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

            graph._exported, graph.dynamic_shapes = True, None  # what its own `export` leaves behind
            prepared = prepare(graph, StaticQuantConfig())
        for batch in data:
            prepared(*batch)
        program = torch.export.export(convert(prepared), data[0], strict=False)
        aoti_compile_and_package(program, package_path=str(out), inductor_configs={"freezing": True})


if __name__ == "__main__":
    make = _nncf if sys.argv[1].startswith("nncf") else _inductor
    make(sys.argv[1], *map(Path, sys.argv[2:5]))
