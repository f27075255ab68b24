"""The proof that pruning is exact, for one architecture; run as a script it writes docs/architectures.md.

Removing units must give what the original gives with every value at a removed position set to zero. The pruned graph
must also run at another batch size, export again, reload bit for bit, train, and run in ONNX Runtime.
"""

import argparse
import io
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils._pytree as pytree
import zoo
from torch import Tensor
from torch.fx import GraphModule

from hasten.graph.capture import as_tuple, capture, export, has_dynamic_batch
from hasten.graph.channels import Channels, Unit, find_channels
from hasten.graph.cost import Reach, reach, total_macs
from hasten.graph.surgery import refresh_shapes, remove, run_masked

TOLERANCE = 1e-9
"""Relative to the largest output, in float64."""


@dataclass(frozen=True)
class Proof:
    name: str
    groups: int
    exact_units: int
    approximate_units: int
    reach: Reach
    one_error: float
    many_error: float
    macs_left: float
    uncovered: tuple[str, ...]
    """Operators without a rule."""


def prove(name: str, cuts: int) -> Proof:
    """Cut up to `cuts` single units of different groups, then a third of every group at once; raises if it is wrong."""
    model, example = zoo.build(name)
    graph = in_float64(capture(model, example))
    channels = find_channels(graph)
    exact = [g for g in channels.groups if not g.approximate]
    chooser = random.Random(0)
    singles = [chooser.choice(g.units) for g in exact]
    singles = chooser.sample(singles, min(cuts, len(singles)))
    one_error = max((_error(channels, [u], example) for u in singles), default=0.0)
    many = third(channels, chooser)
    many_error = _error(channels, many, example)
    assert max(one_error, many_error) <= TOLERANCE, f"{name}: {one_error:.1e} for one unit, {many_error:.1e} for many"
    pruned = remove(channels, many)
    if many:
        assert not _same(as_tuple(pruned(*example)), as_tuple(graph(*example))), "the cut changed nothing"
        assert total_macs(pruned) < total_macs(graph)
    check_usable(pruned, example)
    return Proof(
        name, len(channels.groups), sum(len(g.units) for g in exact),
        sum(len(g.units) for g in channels.groups if g.approximate), reach(channels), one_error, many_error,
        total_macs(pruned) / max(total_macs(graph), 1), tuple(sorted(set(channels.uncovered.values()))),
    )  # fmt: skip


def in_float64(graph: GraphModule) -> GraphModule:
    """`graph` with its casts to float32 (norms, softmax, rotary tables) made casts to float64, so that errors show."""
    for node in list(graph.graph.nodes):
        if node.target == torch.ops.aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)  # it would hold tensors to the dtype they had before
            continue
        node.args = pytree.tree_map_only(torch.dtype, _wider, node.args)
        node.kwargs = pytree.tree_map_only(torch.dtype, _wider, node.kwargs)
    graph.recompile()
    refresh_shapes(graph)
    return graph


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else dtype


def third(channels: Channels, chooser: random.Random) -> list[Unit]:
    """A third of the units of every exact group, at most all but one."""
    exact = [g.units for g in channels.groups if not g.approximate]
    return [u for units in exact for u in chooser.sample(units, min(len(units) - 1, -(-len(units) // 3)))]


def check_usable(pruned: GraphModule, example: tuple[Tensor, ...]) -> None:
    """Another batch size, export and reload bit for bit, one training step."""
    expected = as_tuple(pruned(*example))
    if has_dynamic_batch(pruned):
        three = tuple(torch.cat([x, x[:1]]) for x in example)
        assert as_tuple(pruned(*three))[0].shape[0] in (3, *range(expected[0].shape[0] + 1, 64))
    buffer = io.BytesIO()
    torch.export.save(export(pruned, example), buffer)
    buffer.seek(0)
    assert _same(as_tuple(torch.export.load(buffer).module(check_guards=False)(*example)), expected)
    _train_one_step(pruned, example)


def check_onnx(name: str) -> float:
    """Largest relative difference between ONNX Runtime and PyTorch on the pruned float32 graph."""
    import onnxruntime as ort

    from hasten.graph.onnx import write_onnx

    model, example = zoo.build(name, torch.float32)
    channels = find_channels(capture(model, example))
    pruned = remove(channels, third(channels, random.Random(0)))
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(pruned, example, Path(folder) / "model.onnx")
        session = ort.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
    given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), example, strict=True)}
    with torch.no_grad():
        expected = as_tuple(pruned(*example))
    found = [torch.from_numpy(y) for y in session.run(None, given)]
    return max(_relative(y, e) for y, e in zip(found, expected, strict=True))


def _error(channels: Channels, units: list[Unit], example: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        removed = as_tuple(remove(channels, units)(*example))
    zeroed = run_masked(channels, units, example)
    return max(_relative(a, b) for a, b in zip(removed, zeroed, strict=True))


def _relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    return (
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) if a.is_floating_point() else float((a != b).any())
    )


def _same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _train_one_step(pruned: GraphModule, example: tuple[Tensor, ...]) -> None:
    before = [p.detach().clone() for p in pruned.parameters()]
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    loss = sum(y.square().mean() for y in as_tuple(pruned(*example)) if y.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(pruned.parameters(), before, strict=True))


def row(p: Proof) -> str:
    """One line of the table of docs/architectures.md."""
    prunable = max(p.reach.macs - p.reach.fixed_macs, 1)
    exact, both = p.reach.exact_macs / prunable, (p.reach.exact_macs + p.reach.approximate_macs) / prunable
    return (
        f"| {p.name} | {p.groups} | {p.exact_units} | {p.approximate_units} | {exact:.0%} | {both:.0%} "
        f"| {p.one_error:.0e} | {p.many_error:.0e} | {p.macs_left:.0%} | {'; '.join(p.uncovered)} |"
    )


_COLUMNS = (
    "architecture", "groups", "exact units", "approximate units", "MACs reached exactly", "also approximately",
    "error, one unit", "error, a third", "MACs left after a third", "operators without a rule",
)  # fmt: skip

_INTRODUCTION = """# Architectures on which pruning is proved

Written by `python tests/pruning/pruning_proof.py --onnx`. For every architecture, with random weights in
float64: units are removed one at a time (up to 8, of different groups) and a third of every group at once, and the
output is compared with that of the original with every value at a removed position set to zero. The table gives the
largest difference relative to the largest output; the limit is 1e-9. Every pruned graph also ran at another batch size,
was exported, reloaded bit for bit, and trained for one step.

*MACs reached*: the share of multiply-accumulates in layers that some unit shrinks, of all except those in layers
between the model's own inputs and outputs. *Approximate* units run through a normalisation over the cut dimension
(LayerNorm on a residual stream) and are off by default; RMSNorm and means are rescaled and stay exact. The networks
are tiny, so the patch embedding of a vision transformer, which only approximate units shrink, has a larger share here
than in one of usual size.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures to run again in the existing document; default: all")
    parser.add_argument("--cuts", type=int, default=8, help="at most so many single units per architecture")
    parser.add_argument("--onnx", action="store_true", help="also run each in ONNX Runtime")
    parser.add_argument("--out", type=Path, default=Path("docs/architectures.md"), help="file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    document = _Document(args.out if args.names else None)
    failures = 0
    for name in args.names or zoo.ZOO:
        began = time.perf_counter()
        try:
            document.proofs[name] = row(prove(name, args.cuts))
        except Exception:
            failures += 1
            document.proofs[name] = f"| {name} | FAILED |"
            traceback.print_exc(limit=-2)
        print(f"{name} {time.perf_counter() - began:.1f} s", flush=True)
        args.out.write_text(document.text())
    for name in (args.names or zoo.ZOO) if args.onnx else []:
        document.onnx[name] = f"| {name} | {_onnx_cell(name)} |"
        print(document.onnx[name], flush=True)
        args.out.write_text(document.text())
    return failures


class _Document:
    """The lines of docs/architectures.md by architecture, those of an earlier run among them."""

    def __init__(self, earlier: Path | None) -> None:
        self.proofs: dict[str, str] = {}
        self.onnx: dict[str, str] = {}
        for line in earlier.read_text().splitlines() if earlier is not None else []:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] in zoo.ZOO:
                (self.onnx if len(cells) == 2 and cells[1] != "FAILED" else self.proofs)[cells[0]] = line

    def text(self) -> str:
        failed = sum("FAILED" in line for line in self.proofs.values())
        lines = [
            _INTRODUCTION, f"{len(self.proofs) - failed} of {len(self.proofs)} architectures are exact.", "",
            "| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|", *self.proofs.values(), "",
        ]  # fmt: skip
        if self.onnx:
            lines += [
                f"In ONNX Runtime {len(self.onnx)} of the pruned graphs ran in float32, against PyTorch:", "",
                "| architecture | largest relative difference |", "|---|---|", *self.onnx.values(),
            ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _onnx_cell(name: str) -> str:
    from hasten.errors import Unsupported

    try:
        return f"{check_onnx(name):.0e}"
    except Unsupported as error:
        return "not expressible: " + str(error).replace("|", "/")[:120]
    except Exception as error:
        return f"failed: {type(error).__name__} " + str(error).replace("|", "/").replace("\n", " ")[:120]


if __name__ == "__main__":
    sys.exit(main())
