"""FPGA: a quantized network as synthesizable Verilog or HLS C++, equal to its integers bit for bit."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.errors import Unsupported
from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.graph.integer import IntegerNet
    from hasten.task import Task

# Products of one sample that are still written out as logic: minutes to trace and map beyond, and a full device.
_MOST_PRODUCTS = 20_000


@dataclass(frozen=True)
class Fpga:
    """Verilog: fully unrolled shift-and-add logic by da4ml, for thousands of products; one result per clock.
    Convolutions are written out pixel by pixel. HLS: C++ by hls4ml, for more, which Vitis HLS makes into logic; Vitis
    was not run. What da4ml copies into the folder is under the LGPL-3."""

    evidence: ClassVar[str] = "simulated"
    stack: ClassVar[str] = "fpga"
    placements: ClassVar[tuple[str, ...]] = ("symmetric",)
    integers_only: ClassVar[bool] = True
    judges: ClassVar[dict[str, dict[str, Any]]] = {
        "cycles": {},
        "initiation_interval": {},
        "luts": {"synthesis": "xilinx"},
        "flip_flops": {"synthesis": "xilinx"},
        "dsps": {"synthesis": "xilinx"},
        "brams": {"synthesis": "xilinx"},
        "clock_mhz": {"synthesis": "ecp5"},
        "latency_us": {"synthesis": "ecp5"},
        "samples_per_s": {"synthesis": "ecp5"},
    }

    flow: Literal["auto", "verilog", "hls"] = option(
        "auto",
        f"verilog: logic by da4ml; hls: C++ by hls4ml; auto: verilog up to {_MOST_PRODUCTS} products, else hls",
        choices=("auto", "verilog", "hls"),
    )
    depth: int = option(8, "additions in a row between two registers: fewer, faster clock, more registers", low=1)
    multiplier_bits: int = option(10, "bits of the factors between layers", low=4, high=16)
    simulator: Literal["verilator", "interpreter"] = option(
        "verilator",
        "what checks the logic against the integers: the Verilog in Verilator, or da4ml's own interpreter alone",
        choices=("verilator", "interpreter"),
    )
    synthesis: Literal["none", "xilinx", "ecp5"] = option(
        "none",
        "xilinx: cells of UltraScale+ by yosys, not placed; ecp5: placed and routed by nextpnr, its clock; minutes; "
        "of Verilog alone",
        choices=("none", "xilinx", "ecp5"),
    )
    clock_mhz: float = option(100.0, "clock that placing and routing, or HLS, aims at", low=1.0)
    samples: int = option(256, "calibration samples that the logic is checked on", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the environment with da4ml and yosys, or with hls4ml, is installed; both for large and small."""
        from hasten import environments

        return environments.missing("hls" if self.flow == "hls" else "fpga")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `verilog/` or `hls/` (with a testbench and a README), `net.npz`, `report.json` and `judged.json`.

        Raises:
            Unsupported: Not a quantized chain of convolutions, linear layers and averages, or too large to place or,
                where that is asked for, to synthesize.
        """
        from hasten import environments
        from hasten.graph.plan import plan
        from hasten.graph.to_integers import integer_net
        from hasten.task import calibration_inputs

        net = integer_net(plan(graph, task.example), self.multiplier_bits)
        net.save(folder)
        rows = (row.detach().numpy() for inputs in calibration_inputs(task) for row in inputs[0])
        samples = net.quantize(np.stack(list(itertools.islice(rows, self.samples))))
        np.save(folder / "samples.npy", samples)
        stack, options = self._flow(net)
        environments.call(stack, "compile", folder=folder.absolute(), clock_mhz=self.clock_mhz, **options)

    def load(self, folder: Path) -> Program:
        """For its numbers, not for its speed: the logic in da4ml's interpreter, in the environment's process; of HLS,
        the integers that its C++ was checked against."""
        from hasten import environments
        from hasten.graph.integer import IntegerNet

        if json.loads((folder / "report.json").read_text())["flow"] == "verilog":
            return environments.load("fpga", folder)
        net = IntegerNet.load(folder)
        return lambda x: (net.dequantize(net.run(net.quantize(x))),)

    def _flow(self, net: "IntegerNet") -> tuple[str, dict[str, Any]]:
        """The stack that makes it, and its options."""
        if self.flow == "hls" or (self.flow == "auto" and net.products > _MOST_PRODUCTS):
            if self.synthesis != "none":
                raise Unsupported(
                    f"Logic can be synthesized of Verilog alone, which networks of at most {_MOST_PRODUCTS:,} products "
                    f"become, but this one has {net.products:,}. Make it smaller, or ask for the flow verilog."
                )
            return "hls", {}
        return "fpga", {"depth": self.depth, "simulator": self.simulator, "synthesis": self.synthesis}
