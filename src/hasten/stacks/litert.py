"""LiteRT: an exported program to a TFLite file, fully int8 if wanted, run by LiteRT's interpreter with XNNPACK."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.stacks._pieces import in_pieces


def compile(folder: Path, inputs: int, int8: bool) -> None:
    """Convert `model.pt2` in `folder` to `model.tflite`.

    Args:
        folder: Holds `model.pt2`, exported at the batch size that the file shall have, `example_0.npy`, ... with one
            such batch for every input, and for int8 `calibration_0.npy`, ... with n batches [n, batch, ...].
        inputs: Number of inputs.
        int8: Whether weights (per channel) and activations become int8, inputs and outputs included.

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
        _quantize(folder, inputs)


def _quantize(folder: Path, inputs: int) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager

    path = folder / "model.tflite"
    signature = next(iter(Interpreter(str(path)).get_signature_list()))
    batches = [np.load(folder / f"calibration_{index}.npy", mmap_mode="r") for index in range(inputs)]
    samples = [
        {f"args_{index}": np.ascontiguousarray(values[row]) for index, values in enumerate(batches)}
        for row in range(len(batches[0]))
    ]
    wanted = recipe_manager.RecipeManager()
    wanted.load_quantization_recipe(recipe.static_wi8_ai8())
    # By default ranges are moving averages, which cut off most samples' extremes when there are few samples.
    ranges = calibrator.Calibrator(
        str(path),
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
        qsv_update_func=_widest,
    )
    ranges.calibrate({signature: samples}, wanted)
    made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    result = made.quantize(ranges.get_model_qsvs(), enable_progress_report=False)
    result.export_model(str(path), overwrite=True)


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

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads or cores)
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


def _quantized(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if detail["dtype"] == x.dtype:
        return x
    scale, zero_point = detail["quantization"]
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
