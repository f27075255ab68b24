"""Sections about pruning: filters beside torch-pruning, how fast the cuts are, single weights, encoders."""

import re
import statistics
from typing import Any

from compression_sections.words import doubts, made, score, spaced, table, times, words


def filters(*networks: dict[str, Any]) -> list[str]:
    """Filters pruned by hasten and torch-pruning, before and after training."""
    lines = [
        "## Pruned filters beside torch-pruning",
        "",
        "CIFAR-10; at most the same multiply-accumulates (MAC), and the same training. Rows named *taught* also learn "
        "from the uncut network's answers, the others from labels alone: only those compare the cuts. torch-pruning "
        "leaves the residual stream alone, which it cannot follow in these networks. *Before training* is scored on "
        "validation images, part of what the published weights were trained on: compare it within its column only.",
        "",
    ]
    cut = [found for found in networks if goals_of(found)]
    for found in cut:
        goals = goals_of(found)
        rows, verdicts = [], []
        for goal in [*goals, *(["dense"] if "dense" in found else [])]:
            rows += pruned_rows(found, goal)
        for goal in goals:
            verdicts += standing(found["budget"]["network"], goal, found[goal])
        runs = [(name, run) for goal in goals for name, row in found[goal].items() for run in row["runs"].values()]
        rates = {f"{run['peak_lr']:g} for {name.split()[0]}" for name, run in runs}
        lines += [
            f"**{found['budget']['network']}**, {found['baseline']['top1']:.1%} before the cut. Small budget: "
            f"{words(found['budget'])}; peak learning rate {', '.join(sorted(rates))}, chosen on validation images.",
            "",
            *table("fewer | row | MMAC left | before training, % | after, % | drop, points", rows),
            *verdicts,
            "",
            made(found),
        ]
    return lines if cut else []


def goals_of(found: dict[str, Any]) -> list[str]:
    """The goals that were reached, such as "2.1x"."""
    return [key for key in found if re.fullmatch(r"[\d.]+x", key)]


def pruned_rows(found: dict[str, Any], goal: str) -> list[list[Any]]:
    """The rows of one goal: those that were trained, then those that were only cut."""
    before, after, rows = found.get(f"{goal}, before training", {}), found[goal], []
    for name in [*after, *(name for name in before if name not in after)]:
        cut = before.get(name.removesuffix(", taught"), {}).get("runs", {}).get("0", {})
        trained = after.get(name, {"runs": {"0": cut}})
        work = f"{statistics.mean(run['macs'] for run in trained['runs'].values()) / 1e6:.1f}"
        untrained = f"{100 * cut['validation_top1']:.1f}" if cut else ""
        drop = f"{100 * (found['baseline']['top1'] - after[name]['mean_top1']):.1f}" if name in after else ""
        rows.append([goal, name, work, untrained, score(trained) if name in after else "not trained", drop])
    return rows


def standing(network: str, goal: str, rows: dict[str, Any]) -> list[str]:
    """Where hasten's rows stand against the best row of the peer at this goal, in words."""
    peers = {name: entry for name, entry in rows.items() if name.startswith("torch-pruning")}
    if not peers:
        return []
    name, best = max(peers.items(), key=lambda item: item[1]["mean_top1"])
    said = []
    for own, entry in rows.items():
        if not own.startswith("hasten"):
            continue
        gap = 100 * (entry["mean_top1"] - best["mean_top1"])
        single = ", one seed" if min(len(entry["runs"]), len(best["runs"])) == 1 else ""
        said.append(f"{own} {'ahead' if gap > 0 else '**behind**'} by {abs(gap):.1f} points{single}")
    return [f"- {network} at {goal}, against {name}: {'; '.join(said)}."]


def latency_of_cuts(*networks: dict[str, Any]) -> list[str]:
    """How much faster the cut networks are."""
    lines = ["## Latency of the cuts", ""]
    for found in networks:
        batches = [key for key in found if key.startswith("batch_")]
        first = found[batches[0]]
        rows = [
            [name, f"{first['dense']['macs'] / row['macs']:.2f}", *(times(found[batch][name]) for batch in batches)]
            for name, row in first.items()
            if name != "dense"
        ]
        slower = []
        for batch in batches:
            for name, row in found[batch].items():
                goal, _, tool = name.partition(" ")
                peer = found[batch].get(f"{goal} torch-pruning L2")
                if tool.startswith("hasten") and peer and row["ratio"] < peer["ratio"]:
                    overlap = ", intervals overlap" if row["ratio_high"] >= peer["ratio_low"] else ""
                    slower.append(f"{name}, {spaced(batch)} ({row['ratio'] / peer['ratio']:.2f}{overlap})")
        network = found["file"].rpartition("_")[2].replace("resnet", "ResNet-")
        lines += [
            f"{network} in {found['budget']['runtime']}, against the network before the cut; {first['dense']['turns']} "
            "turns. torch-pruning's cut is compiled by hasten as the others are.",
            "",
            *table(" | ".join(["cut", "times fewer MAC", *map(spaced, batches)]), rows),
            f"Slower than torch-pruning's cut at the same goal: {'; '.join(slower) or 'none'}.",
            *doubts({f"{n}, {spaced(b)}": (row, found[b]["dense"]) for b in batches for n, row in found[b].items()}),
            "",
            made(found),
        ]  # fmt: skip
    return lines


def single_weights(found: dict[str, Any]) -> list[str]:
    """Accuracy against the share of weights that are zero."""
    levels = {key: entry for key, entry in found.items() if key.endswith("%") and "iterative" in entry}
    if not levels:
        return []
    rows = []
    for level, ways in levels.items():
        cells = [score(ways[way]) if way in ways else "" for way in ("iterative", "one step", "one step, not trained")]
        rows.append([level, *cells, f"{100 * (found['dense_top1'] - ways['iterative']['mean_top1']):.1f}"])
    return [
        "## Single weights set to zero",
        "",
        f"{found['budget']['network']} on CIFAR-10, {found['dense_top1']:.1%} with all weights, whose answers it "
        "learns from. *Iterative* starts each level from the one before, so it has trained longer than *one step*, "
        "which has one level's training. Says nothing about speed: no CPU runtime here gains from single zeros. Small "
        f"budget: {words(found['budget'])}.",
        "",
        *table("zeros | iterative, % | one step, % | one step, not trained, % | drop of iterative, points", rows),
        made(found),
    ]


def encoders(found: dict[str, Any]) -> list[str]:
    """A ViT and a BERT without some of their heads and MLP units."""
    rows, timed, turns = [], {}, set()
    runtimes = sorted({runtime for net in found["networks"].values() for runtime in net.get("latency", {})})
    for name, net in found["networks"].items():
        kinds = [kind for kind, part in net.items() if isinstance(part, dict) and "macs" in part and kind != "original"]
        for kind in kinds:
            cells = [name, spaced(kind)]
            cells += [f"{net['original'][part] / net[kind][part]:.2f}" for part in ("parameters", "macs")]
            for runtime in runtimes:
                row = net.get("latency", {}).get(runtime, {}).get(kind)
                cells.append(times(row) if row else "not timed")
                if row:
                    turns.add(row["turns"])
                    timed[f"{name} {spaced(kind)}, {runtime}"] = row, net["latency"][runtime]["original"]
            rows.append(cells)
    worst = max(net["relative_error_float64"] for net in found["networks"].values())
    return [
        f"## Encoders without {found['ratio']:.0%} of their heads and MLP units",
        "",
        "Random weights, so nothing is said about accuracy. Removing units gives what zeroing them gives, to "
        f"{worst:.0e} in float64. Batch 1, {found['threads']} threads, {' or '.join(map(str, sorted(turns)))} turns.",
        "",
        *table(" | ".join(["network", "version", "times fewer parameters", "times fewer MAC", *runtimes]), rows),
        *doubts(timed),
        "",
        made(found),
    ]  # fmt: skip
