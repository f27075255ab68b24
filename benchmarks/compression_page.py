"""docs/compression-results.md from what the distillation, pruning and rounding benchmarks kept; nothing is typed.

    python benchmarks/compression_page.py

A section whose file, or whose part of a file, does not exist is left out.
"""

import json
from collections.abc import Callable
from pathlib import Path

from compression_sections import distilled, pruned, rounded

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "compression-results.md"
HEAD = """\
# Compression, measured

What distillation, pruning and rounding brought in hasten's own benchmarks, beside other tools where they do the same.
Written by `benchmarks/compression_page.py` from `benchmarks/results/*.json`; do not edit. How each is run:
`benchmarks/README.md`.

A **small budget** is far below what the papers train: only the differences between the rows of a table mean something.
± is the standard deviation over seeds; points are points of top-1. A latency is given as times the speed of what it is
compared with, the median over turns with its 95% interval: above 1 is faster.
"""
# Files, as patterns, and what makes a section of them.
SECTIONS: dict[str, Callable[..., list[str]]] = {
    "distill_cifar": distilled.losses,
    "distill_peer": distilled.beside_torchdistill,
    "distill_cache": distilled.answers_kept,
    "distill_minilm": distilled.minilm,
    "prune_cifar_resnet*": pruned.filters,
    "prune_cifar_latency_resnet*": pruned.latency_of_cuts,
    "prune_weights_cifar": pruned.single_weights,
    "prune_encoders": pruned.encoders,
    "low_bit_weights": rounded.low_bits,
    "int8_speed": rounded.int8_speed,
}


def page(folder: Path = RESULTS) -> str:
    """docs/compression-results.md."""
    lines = [HEAD]
    for pattern, section in SECTIONS.items():
        paths = sorted(folder.glob(f"{pattern}.json"))
        if paths:
            lines += section(*[json.loads(path.read_text()) | {"file": path.stem} for path in paths])
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
