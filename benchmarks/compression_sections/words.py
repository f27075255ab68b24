"""What the sections share: tables, budgets, scores and latencies in words, and where a result comes from."""

import statistics
from collections.abc import Iterable
from typing import Any

from hasten_bench import render

# What a budget holds; what is not here is said by the section itself.
PHRASES = {
    "training_images": "{:,} training images", "images": "{:,} training images", "sentences": "{:,} sentences",
    "tokens": "{} tokens", "epochs": "{} epoch{s}", "epochs_per_level": "{} epoch{s} a level", "batch": "batch {}",
    "peak_lr": "peak learning rate {:g}", "lr": "learning rate {:g}", "schedule": "schedule {}",
    "weight_decay": "weight decay {:g}", "clip_norm": "gradients clipped at {:g}", "precision": "{}",
    "threads": "{} threads", "test_images": "{:,} test images", "test_pairs": "{:,} test pairs",
    "reported": "reported: {}",
}  # fmt: skip


def words(budget: dict[str, Any]) -> str:
    """A budget as a list of phrases."""
    known = {name: value for name, value in budget.items() if name in PHRASES and value is not None}
    return ", ".join(PHRASES[name].format(value, s="" if value == 1 else "s") for name, value in known.items())


def spaced(name: str) -> str:
    """A name in JSON as words."""
    return name.replace("_", " ")


def table(head: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table, and an empty line."""
    return [render.table(head.split(" | "), [[str(cell) for cell in row] for row in rows]), ""]


def score(entry: dict[str, Any]) -> str:
    """Top-1 in percent over the seeds of a row of a `Ledger`."""
    seeds = len(entry["runs"])
    mean = f"{100 * entry['mean_top1']:.1f}"
    return f"{mean} (one seed)" if seeds == 1 else f"{mean} ± {100 * entry['stdev_top1']:.1f} ({seeds} seeds)"


def points(gains: list[float]) -> str:
    """Mean and spread of differences between shares, in points."""
    spread = f" ± {100 * statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
    return f"{100 * statistics.mean(gains):+.1f}{spread}"


def spanned(ratios: list[float]) -> str:
    """The median of a few ratios with the least and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def times(row: dict[str, Any]) -> str:
    """A ratio of latencies with its interval."""
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


def doubts(rows: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Which of the latencies, each with its baseline's, are not shown to be better."""
    changed = {name: pair for name, pair in rows.items() if pair[0] is not pair[1]}
    unsure = [name for name, (row, _) in changed.items() if row["ratio_low"] <= 1]
    against = [
        name for name, (row, base) in changed.items() if row["ratio"] > 1 and row["median_ms"] >= base["median_ms"]
    ]
    lines = [f"Not shown to be faster, since the interval reaches 1: {'; '.join(unsure)}."] if unsure else []
    if against:
        lines.append(f"Rough, since the medians over all calls say the opposite of the ratio: {'; '.join(against)}.")
    return lines


def made(found: dict[str, Any]) -> str:
    """The file of a result, and the machine, date and commit that it names."""
    parts = [f"`{found['file']}.json`"]
    if device := found.get("device"):
        parts.append(f"{device['cpu']}, {device['cores']} cores")
    parts += [found["started"][:10]] if "started" in found else []
    parts += [f"commit `{found['commit'][:10]}`"] if "commit" in found else []
    return f"Results: {', '.join(parts)}.\n"
