"""Integer layers to HLS C++ by hls4ml, every type stated, and simulated bit for bit with the host's compiler."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten import judged
from hasten.errors import HastenError, Unsupported
from hasten.graph.integer import Convolution, Dense, IntegerNet, Rescale, bits_of

NAME = "network"
# Accumulators of integer layers fit: products of 8 bits, a bias of 32.
_SUM = "ap_int<34>"
_MOST_MULTIPLIERS = 4096
_TESTED = 32

_README = """# HLS C++ of {layers} integer layers

Made by hasten through hls4ml {version} for Vitis HLS, part {part}, {clock_mhz:g} MHz. Top function `{name}` in
`firmware/{name}.cpp`; weights in `firmware/weights`; `firmware/nnet_utils` and `firmware/ap_types` are hls4ml's.

- Input: {inputs} integers of {input_bits} bits, {order}.
  Integer = clip(round(x / {input_scale!r}) + {input_zero_point}, {input_low}, {input_high}).
- Output i = (integer - {output_zero_point}) * scale[i], scales in `../net.npz` as `output_scale`.
- Multipliers are shared: at most {multipliers} in one layer.

Compiled by this machine's C++ compiler with hls4ml's `ap_types`, it gave the integers of `../net.npz` on all {samples}
samples. **Vitis was not run**: cycles, clock and cells are not known. To get them, in this folder:

    vitis-run --mode hls --tcl build_prj.tcl

`{name}_test.cpp` is the testbench: it reads `tb_data/tb_input_features.dat` and prints what comes out, which must equal
`tb_data/tb_output_predictions.dat`, a line per sample.
"""


def compile(folder: Path, clock_mhz: float) -> dict[str, Any]:
    """Make `hls/` and `report.json` from `net.npz` and the input integers `samples.npy` [n, in] in `folder`.

    Args:
        folder: See above.
        clock_mhz: The clock that HLS shall aim at.

    Raises:
        Unsupported: A layer that hls4ml has no form of, or no C++ compiler.
        HastenError: The C++ does not compute what the integers say.
    """
    import hls4ml

    if not shutil.which("g++"):
        raise Unsupported("The simulation of HLS must have a C++ compiler, but g++ is not on PATH: apt install g++.")
    given, samples = IntegerNet.load(folder), np.load(folder / "samples.npy")
    net, samples = _centred(given), samples - given.input_zero_point
    net.save(folder)
    layers, types = _layers(net)
    backend = hls4ml.backends.get_backend("Vitis")
    stream = any(isinstance(layer, Convolution) for layer in net.layers)
    config = backend.create_initial_config(
        clock_period=1000 / clock_mhz, io_type="io_stream" if stream else "io_parallel"
    )
    config |= {"OutputDir": str(folder / "hls"), "ProjectName": NAME, "Backend": "Vitis", "Stamp": NAME}
    model_wide = {"Precision": {"default": _SUM}, "ReuseFactor": 1, "Strategy": "Resource"}
    config["HLSConfig"] = {"Model": model_wide, "LayerName": types}
    model = hls4ml.model.ModelGraph.from_layer_list(config, layers, ["samples"], [layers[-1]["name"]])
    model.compile()
    expected = net.run(samples)
    arranged = _arranged(samples, net)
    found = np.asarray(model.predict(arranged.astype(np.float64))).reshape(len(samples), -1)
    mismatches = int((_flat(found, net) != expected).any(axis=1).sum())
    if mismatches:
        raise HastenError(f"The C++ must equal the integers on every sample, but differs on {mismatches}.")
    report = {
        "evidence": "simulated",
        "flow": "hls",
        "samples": len(samples),
        "mismatches": {"g++": mismatches},
        "products": net.products,
        "not_run": "Vitis HLS: cycles, clock and cells are not known",
        "tool": f"hls4ml {hls4ml.__version__}",
    }
    _finish(folder, net, arranged, found, {**report, "part": config["Part"], "clock_mhz": clock_mhz})
    judged.write(folder, {})
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    return report


def _centred(net: IntegerNet) -> IntegerNet:
    """The same network on input integers whose zero point is 0, which is what hls4ml pads with."""
    zero, first = net.input_zero_point, net.layers[0]
    bias = first.bias + zero * first.weight.reshape(len(first.weight), -1).sum(axis=1)
    first = replace(first, bias=bias, border=0) if isinstance(first, Convolution) else replace(first, bias=bias)
    low, high = net.input_low - zero, net.input_high - zero
    return replace(net, input_zero_point=0, input_low=low, input_high=high, layers=(first, *net.layers[1:]))


def _layers(net: IntegerNet) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """hls4ml's description of every layer, and the types of each by its name."""
    first = net.layers[0]
    shape = _last(first.shape) if isinstance(first, Convolution) else [first.weight.shape[1]]
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "name": "samples", "input_shape": shape}]
    types: dict[str, dict[str, Any]] = {"samples": {"Precision": {"result": _integer(net.input_low, net.input_high)}}}
    image: tuple[int, ...] | None = None

    def add(layer: dict[str, Any], precision: dict[str, str], reuse: int = 1) -> None:
        name, before = f"layer_{len(layers)}", layers[-1]["name"]
        layers.append({**layer, "name": name, "inputs": [before], "outputs": [name]})
        types[name] = {"Precision": precision, "ReuseFactor": reuse, "Strategy": "Resource"}

    for index, layer in enumerate(net.layers):
        if isinstance(layer, Dense) and image is not None:
            size = math.prod(image)
            add({"class_name": "Reshape", "target_shape": [size]}, dict(types[layers[-1]["name"]]["Precision"]))
        described, count = _convolution(layer) if isinstance(layer, Convolution) else _dense(layer, image)
        weights = {"weight": _integer(int(layer.weight.min()), int(layer.weight.max())), "bias": _SUM}
        add(described, {**weights, "accum": _SUM, "result": _SUM}, -(-layer.weight.size // _MOST_MULTIPLIERS))
        image = (len(layer.bias), *layer.out_size) if isinstance(layer, Convolution) else None
        if layer.rescale is not None:
            add(*_rescale(layer.rescale, count, len(layer.bias)))
        elif index + 1 < len(net.layers):
            raise Unsupported("Every layer but the last must be rounded for HLS.")
    return layers, types


def _dense(layer: Dense, image: tuple[int, ...] | None) -> tuple[dict[str, Any], int]:
    weight = layer.weight.astype(np.float64)
    if image is not None:  # hls4ml has channels last
        weight = weight.reshape(-1, *image).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    made = {"class_name": "Dense", "n_in": weight.shape[1], "n_out": len(weight)}
    return {**made, "weight_data": np.ascontiguousarray(weight.T), "bias_data": layer.bias.astype(np.float64)}, len(
        weight
    )


def _convolution(layer: Convolution) -> tuple[dict[str, Any], int]:
    filters, taken, high, wide = layer.weight.shape
    depthwise = layer.groups > 1
    if depthwise and (taken != 1 or filters != layer.groups):
        raise Unsupported("A grouped convolution must have one filter per channel for HLS, but has more.")
    if layer.dilation != (1, 1):
        raise Unsupported("A convolution must not be dilated for HLS, but is.")
    if layer.border and any(layer.padding):
        raise Unsupported("A padded convolution must read values with zero point 0: Quantize(placement='symmetric').")
    out_high, out_wide = layer.out_size
    (top, left), (channels, in_high, in_wide) = layer.padding, layer.shape
    # What a stride leaves over at the end is not read.
    bottom = (out_high - 1) * layer.stride[0] + high - in_high - top
    right = (out_wide - 1) * layer.stride[1] + wide - in_wide - left
    weight = layer.weight.transpose(2, 3, 0, 1) if depthwise else layer.weight.transpose(2, 3, 1, 0)
    made = {
        "class_name": "DepthwiseConv2D" if depthwise else "Conv2D",
        "data_format": "channels_last",
        "in_height": in_high,
        "in_width": in_wide,
        "out_height": out_high,
        "out_width": out_wide,
        "n_chan": channels,
        "n_filt": filters,
        "filt_height": high,
        "filt_width": wide,
        "stride_height": layer.stride[0],
        "stride_width": layer.stride[1],
        "padding": "same" if any(layer.padding) else "valid",
        "pad_top": top,
        "pad_bottom": max(bottom, 0),
        "pad_left": left,
        "pad_right": max(right, 0),
        "depthwise_data" if depthwise else "weight_data": np.ascontiguousarray(weight.astype(np.float64)),
        "bias_data": layer.bias.astype(np.float64),
    }
    return made, filters * out_high * out_wide


def _rescale(rescale: Rescale, count: int, filters: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A product and a sum for every value, rounded half up and saturated by the type of the result."""
    bits = int(rescale.multiplier.max()).bit_length()
    made = {
        "class_name": "BatchNormalization",
        "n_in": count,
        "n_filt": filters,
        "scale_data": np.broadcast_to(rescale.multiplier / 2.0**rescale.shift, filters).copy(),
        "bias_data": np.full(filters, float(rescale.zero_point)),
    }
    result = _clipped(rescale.low, rescale.high)
    return made, {"scale": f"ap_ufixed<{bits},{bits - rescale.shift}>", "bias": "ap_int<10>", "result": result}


def _width(low: int, high: int) -> tuple[int, int]:
    """Sign bit (0 or 1) and all bits of integers from `low` to `high`, at least one, as a type must have."""
    sign, bits = bits_of(low, high)
    return sign, max(sign + bits, 1)


def _integer(low: int, high: int) -> str:
    """The type that holds integers from `low` to `high`."""
    sign, bits = _width(low, high)
    return f"ap_{'' if sign else 'u'}int<{bits}>"


def _clipped(low: int, high: int) -> str:
    """The type that rounds half up and saturates at `low` and `high`.

    Raises:
        Unsupported: No type saturates there.
    """
    sign, bits = _width(low, high)
    most = (1 << bits - sign) - 1
    saturation = {-sign * (most + 1): "AP_SAT", -sign * most: "AP_SAT_SYM"}.get(low)
    if high != most or saturation is None:
        raise Unsupported(f"Values between layers must be clipped to whole bits for HLS, but are to {low} to {high}.")
    return f"ap_{'' if sign else 'u'}fixed<{bits},{bits},AP_RND,{saturation if sign else 'AP_SAT'}>"


def _last(shape: tuple[int, int, int]) -> list[int]:
    return [shape[1], shape[2], shape[0]]


def _arranged(samples: np.ndarray, net: IntegerNet) -> np.ndarray:
    """Channels last, as hls4ml wants images."""
    first = net.layers[0]
    if not isinstance(first, Convolution):
        return samples
    return np.ascontiguousarray(samples.reshape(len(samples), *first.shape).transpose(0, 2, 3, 1))


def _flat(found: np.ndarray, net: IntegerNet) -> np.ndarray:
    """Channels first again, where the last layer is a convolution."""
    last = net.layers[-1]
    if not isinstance(last, Convolution):
        return found
    images = found.reshape(len(found), *last.out_size, len(last.bias))
    return images.transpose(0, 3, 1, 2).reshape(len(found), -1)


def _finish(folder: Path, net: IntegerNet, inputs: np.ndarray, outputs: np.ndarray, known: dict[str, Any]) -> None:
    """The testbench's data and the README; what was compiled for this machine goes."""
    project = folder / "hls"
    for path in project.glob("firmware/*.so"):
        path.unlink()
    shutil.rmtree(project / "firmware" / "build", ignore_errors=True)
    data = project / "tb_data"
    data.mkdir(exist_ok=True)
    for name, values in (("tb_input_features.dat", inputs), ("tb_output_predictions.dat", outputs)):
        rows = (" ".join(str(int(v)) for v in row.ravel()) for row in values[:_TESTED])
        (data / name).write_text("".join(f"{row}\n" for row in rows))
    first = net.layers[0]
    image = isinstance(first, Convolution)
    (project / "README.md").write_text(
        _README.format(
            name=NAME,
            layers=len(net.layers),
            version=known["tool"].split()[-1],
            part=known["part"],
            clock_mhz=known["clock_mhz"],
            samples=known["samples"],
            inputs=inputs[0].size,
            order="height, width, channels" if image else "in the order of the network's input",
            multipliers=_MOST_MULTIPLIERS,
            **net.ends,
        )
    )
