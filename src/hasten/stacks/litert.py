"""LiteRT: an exported program to a TFLite file, fully int8 if wanted, run by LiteRT's interpreter with XNNPACK."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.machine import usable_cores
from hasten.pieces import in_pieces

# Offsets inside a flatbuffer have 31 bits; a file near that keeps its constants behind it.
_LARGEST = 2**31 - 2**24


def compile(folder: Path, inputs: int, int8: bool, linear_per_channel: bool = True) -> None:
    """Convert `model.pt2` in `folder` to `model.tflite`.

    Args:
        folder: Holds `model.pt2`, exported at the batch size that the file shall have, `example_0.npy`, ... with one
            such batch for every input, and for int8 `calibration_0.npy`, ... with n batches [n, batch, ...].
        inputs: Number of inputs.
        int8: Whether weights (per channel) and activations become int8, inputs and outputs included.
        linear_per_channel: Whether weights of int8 linear layers have a scale per channel; older compilers know one.

    Raises:
        Unsupported: LiteRT cannot convert an operator.
    """
    import litert_torch
    import torch

    example = tuple(torch.from_numpy(np.load(folder / f"example_{index}.npy")) for index in range(inputs))
    module = torch.export.load(folder / "model.pt2").module(check_guards=False)
    try:
        litert_torch.convert(module, example).export(str(folder / "model.tflite"))
    except Exception as error:
        raise Unsupported(f"LiteRT must be able to convert every operator, but: {_reason(error)}") from error
    if int8:
        _quantize(folder, inputs, linear_per_channel)


def _quantize(folder: Path, inputs: int, linear_per_channel: bool) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe, recipe_manager

    path = folder / "model.tflite"
    interpreter = Interpreter(str(path))
    signature = next(iter(interpreter.get_signature_list()))
    # The converter may have made integers narrower.
    details = interpreter.get_signature_runner(signature).get_input_details()
    batches = [np.load(folder / f"calibration_{index}.npy", mmap_mode="r") for index in range(inputs)]
    samples = [
        {(name := f"args_{index}"): values[row].astype(details[name]["dtype"]) for index, values in enumerate(batches)}
        for row in range(len(batches[0]))
    ]
    wanted = recipe_manager.RecipeManager()
    wanted.load_quantization_recipe(recipe.static_wi8_ai8())
    if not linear_per_channel:
        wanted.add_static_config(
            regex=".*",
            operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
            activation_num_bits=8,
            weight_num_bits=8,
            weight_granularity=qtyping.QuantGranularity.TENSORWISE,
        )
    # By default ranges are moving averages, which cut off most samples' extremes when there are few samples.
    ranges = calibrator.Calibrator(
        str(path),
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
        qsv_update_func=_widest,
    )
    ranges.calibrate({signature: samples}, wanted)
    made = quantizer.Quantizer(str(path), wanted.get_quantization_recipe())
    result = made.quantize(ranges.get_model_qsvs(), enable_progress_report=False)
    result.export_model(str(path), overwrite=True)
    if path.stat().st_size < _LARGEST:
        _embed(path)


def _embed(path: Path) -> None:
    """Move constants that the quantizer appended to the file back into its buffers.

    Compilers of accelerators from before 2023 know no other place; `operators` reads them there as well.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):  # type: ignore[misc]
        """The schema wants 16 bytes, which its own Python writer does not keep to."""

        def Pack(self, builder: Any) -> int:  # noqa: N802
            if not len(self.data):
                schema.BufferStart(builder)
                return int(schema.BufferEnd(builder))
            builder.StartVector(1, len(self.data), 16)
            builder.head = builder.Head() - len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return int(schema.BufferEnd(builder))

    file = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
    for index, before in enumerate(model.buffers):
        model.buffers[index] = Aligned()
        inside = b"" if before.data is None else bytes(before.data)
        model.buffers[index].data = file[before.offset : before.offset + before.size] if before.offset > 1 else inside
    builder = flatbuffers.Builder(len(file))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _widest(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The range that holds both."""
    if not before:
        return now
    return {"min": np.minimum(before["min"], now["min"]), "max": np.maximum(before["max"], now["max"])}


def load(folder: Path, threads: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program of `model.tflite`: float inputs and outputs, whatever the file holds; any batch size, in pieces.

    Args:
        folder: Holds `model.tflite`.
        threads: Threads inside one call; 0: every core this process may use.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads or usable_cores())
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    ins, outs = runner.get_input_details(), runner.get_output_details()
    sources = [ins[f"args_{index}"] for index in range(len(ins))]
    sinks = [outs[f"output_{index}"] for index in range(len(outs))]
    size = int(sources[0]["shape"][0])

    def piece(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for detail, x in zip(sources, arrays, strict=True):
            interpreter.set_tensor(detail["index"], _quantized(x, detail))
        interpreter.invoke()
        return [_dequantized(interpreter.get_tensor(detail["index"]), detail) for detail in sinks]

    return in_pieces(piece, size)


def types(folder: Path) -> dict[str, int]:
    """How many tensors of `model.tflite` have each dtype: a fully int8 file has no float32."""
    from ai_edge_litert.interpreter import Interpreter

    found: dict[str, int] = {}
    for detail in Interpreter(str(folder / "model.tflite")).get_tensor_details():
        name = np.dtype(detail["dtype"]).name
        found[name] = found.get(name, 0) + 1
    return found


def operators(folder: Path) -> list[dict[str, Any]]:
    """Every operator of `model.tflite`: its name, the numbers among its options, and its tensors.

    Returns:
        One dict each: `name`, `options`, `inputs` and `outputs`; a tensor (None where one is left out) as `shape`,
        `type`, whether it is `constant`, all `zero` and `dynamic`, its `bytes` if constant,
        its number of `scales` along `axis`, and the `values` of a small int32 constant.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs((folder / "model.tflite").read_bytes(), 0))
    (graph,) = model.subgraphs
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    types = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    tensors = [_tensor(tensor, model.buffers[tensor.buffer].data, types) for tensor in graph.tensors]
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        options = vars(operator.builtinOptions) if operator.builtinOptions else {}
        found.append(
            {
                "name": codes[max(code.builtinCode, code.deprecatedBuiltinCode)],
                "options": {name: value for name, value in options.items() if isinstance(value, int)},
                "inputs": [tensors[index] if index >= 0 else None for index in operator.inputs],
                "outputs": [tensors[index] for index in operator.outputs],
            }
        )
    return found


def _tensor(tensor: Any, data: Any, types: dict[int, str]) -> dict[str, Any]:
    kind, constant = types[tensor.type], data is not None and len(data) > 0
    integers = np.frombuffer(bytes(data), np.int32).tolist() if constant and kind == "INT32" else None
    parameters = tensor.quantization
    scales = 0 if parameters is None or parameters.scale is None else len(parameters.scale)
    points = parameters.zeroPoint if scales and parameters.zeroPoint is not None else [0]
    return {
        "shape": [] if tensor.shape is None else [int(size) for size in tensor.shape],
        "type": kind,
        "constant": constant,
        "dynamic": tensor.shapeSignature is not None and any(size < 0 for size in tensor.shapeSignature),
        "zero": constant and kind == "INT8" and bool((np.frombuffer(bytes(data), np.int8) == int(points[0])).all()),
        "bytes": len(data) if constant else 0,
        "scales": scales,
        "axis": int(parameters.quantizedDimension) if scales else 0,
        "values": integers if integers is not None and len(integers) <= 16 else None,
    }


def _quantized(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if detail["dtype"] == x.dtype:
        return x
    scale, zero_point = detail["quantization"]
    if not scale:  # integers, such as tokens, that the converter made narrower
        return x.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    result: np.ndarray = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(detail["dtype"])
    return result


def _dequantized(y: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if not scale:
        return y
    result: np.ndarray = (y.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return result


def _reason(error: BaseException) -> str:
    """The line that names the operator, else the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "aten" in line), lines[0])[:300]
