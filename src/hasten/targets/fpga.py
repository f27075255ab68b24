"""FPGA: a small quantized network as synthesizable Verilog, equal to its integers bit for bit."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Fpga:
    """Fully unrolled shift-and-add logic by da4ml, for thousands of products; one result per clock. Convolutions are
    written out pixel by pixel. What da4ml copies into the folder is under the LGPL-3."""

    evidence: ClassVar[str] = "simulated"
    stack: ClassVar[str] = "fpga"
    placements: ClassVar[tuple[str, ...]] = ("symmetric",)
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

    depth: int = option(8, "additions in a row between two registers: fewer, faster clock, more registers", low=1)
    multiplier_bits: int = option(10, "bits of the factors between layers", low=4, high=16)
    simulator: Literal["verilator", "interpreter"] = option(
        "verilator",
        "what checks the logic against the integers: the Verilog in Verilator, or da4ml's own interpreter alone",
        choices=("verilator", "interpreter"),
    )
    synthesis: Literal["none", "xilinx", "ecp5"] = option(
        "none",
        "xilinx: cells of UltraScale+ by yosys, not placed; ecp5: placed and routed by nextpnr, its clock; minutes",
        choices=("none", "xilinx", "ecp5"),
    )
    clock_mhz: float = option(100.0, "clock that placing and routing aims at", low=1.0)
    samples: int = option(256, "calibration samples that the logic is checked on", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the environment with da4ml and yosys is installed."""
        from hasten import environments

        return environments.missing("fpga")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `verilog/` (with a testbench and a README), `net.npz`, `report.json` and `judged.json`.

        Raises:
            Unsupported: Not a quantized chain of convolutions, linear layers and averages, or too large to place.
        """
        from hasten import environments
        from hasten.graph.integer import integer_net
        from hasten.graph.plan import plan
        from hasten.stacks.fpga import save
        from hasten.task import calibration_inputs

        net = integer_net(plan(graph, task.example), self.multiplier_bits)
        save(net, folder)
        rows = (row.detach().numpy() for inputs in calibration_inputs(task) for row in inputs[0])
        samples = net.quantize(np.stack(list(itertools.islice(rows, self.samples))))
        np.save(folder / "samples.npy", samples)
        environments.call(
            "fpga",
            "compile",
            folder=folder.absolute(),
            depth=self.depth,
            simulator=self.simulator,
            synthesis=self.synthesis,
            clock_mhz=self.clock_mhz,
        )

    def load(self, folder: Path) -> Program:
        """The logic in da4ml's interpreter, in the environment's process: for its numbers, not for its speed."""
        from hasten import environments

        return environments.load("fpga", folder)
