"""A Verilog testbench beside the design: inputs in, results compared, for whoever takes the design over."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TEXT = """// Feeds inputs.hex to {top}_wrapper, one a clock.
// Compares what comes {cycles} clocks later with outputs.hex.
`timescale 1ns / 1ps

module testbench;
  localparam SAMPLES = {samples};
  reg clk = 0;
  reg [{inputs_high}:0] model_inp;
  wire [{outputs_high}:0] model_out;
  reg [{inputs_high}:0] inputs[0:SAMPLES-1];
  reg [{outputs_high}:0] outputs[0:SAMPLES-1];
  integer i, mismatches;

  {top}_wrapper dut (
      .clk(clk),
      .model_inp(model_inp),
      .model_out(model_out)
  );

  always #5 clk = ~clk;

  initial begin
    $readmemh("inputs.hex", inputs);
    $readmemh("outputs.hex", outputs);
    mismatches = 0;
    for (i = 0; i < SAMPLES + {cycles}; i = i + 1) begin
      model_inp = inputs[i < SAMPLES ? i : SAMPLES - 1];
      @(posedge clk);
      #1;
      if (i >= {cycles} - 1 && i - {cycles} + 1 < SAMPLES && model_out !== outputs[i-{cycles}+1])
        mismatches = mismatches + 1;
    end
    $display("%0d of %0d samples differ", mismatches, SAMPLES);
    if (mismatches != 0) $fatal(1);
    $finish;
  end
endmodule
"""


@dataclass(frozen=True)
class Ports:
    """Numbers and widths of the wrapper's ports, every element as wide as the widest.

    Attributes:
        inputs: Numbers of an input.
        input_bits: Bits of each.
        outputs: Numbers of a result.
        output_bits: Bits of each.
    """

    inputs: int
    input_bits: int
    outputs: int
    output_bits: int


def write(folder: Path, top: str, ports: Ports, inputs: np.ndarray, outputs: np.ndarray, cycles: int) -> None:
    """Write `testbench.v`, `inputs.hex`, `outputs.hex` and `sources.txt` into the folder of the design.

    Args:
        folder: Holds `src/`.
        top: The top module.
        ports: Of `<top>_wrapper`.
        inputs: Integers [n, inputs].
        outputs: Integers [n, outputs].
        cycles: Clocks from an input to its result.
    """
    (folder / "inputs.hex").write_text(_hex(inputs, ports.input_bits))
    (folder / "outputs.hex").write_text(_hex(outputs, ports.output_bits))
    files = [f for f in sorted((folder / "src").rglob("*.v")) if f.stem != "lookup_table"]
    (folder / "sources.txt").write_text("".join(f"{f.relative_to(folder)}\n" for f in files))
    (folder / "testbench.v").write_text(
        _TEXT.format(
            top=top,
            cycles=cycles,
            samples=len(inputs),
            inputs_high=ports.inputs * ports.input_bits - 1,
            outputs_high=ports.outputs * ports.output_bits - 1,
        )
    )


def _hex(values: np.ndarray, bits: int) -> str:
    """A line per row, element 0 in the lowest bits, two's complement."""
    mask = (1 << bits) - 1
    rows = (sum((int(v) & mask) << (bits * i) for i, v in enumerate(row)) for row in values)
    return "".join(f"{row:x}\n" for row in rows)
