"""Sections about distillation: every loss at equal budgets, beside torchdistill, what kept answers save, MiniLM."""

import statistics
from typing import Any

from compression_sections.words import made, points, score, spanned, table, times, words

FIRST, LATER = slice(0, 1), slice(1, None)


def losses(found: dict[str, Any]) -> list[str]:
    """Every loss beside the student alone."""
    if "table" not in found:
        return []
    alone, budget = found["table"]["student alone"], found["budget"]
    rows, verdicts = [], []
    for name, entry in found["table"].items():
        gains = [
            entry["runs"][seed]["top1"] - alone["runs"][seed]["top1"] for seed in entry["runs"].keys() & alone["runs"]
        ]
        if entry is alone:
            rows.append([name, score(entry), "", ""])
            continue
        won = sum(gain > 0 for gain in gains)
        rows.append([name, score(entry), points(gains), f"{won} of {len(gains)}"])
        verdicts.append((name, statistics.mean(gains), won == len(gains)))
    better = {
        "Better than the student alone in every seed": [v for v in verdicts if v[2]],
        "Better in the mean but not in every seed": [v for v in verdicts if v[1] > 0 and not v[2]],
        "Not better": [v for v in verdicts if v[1] <= 0],
    }
    return [
        "## Distillation at equal budgets",
        "",
        f"{budget['student']}, on CIFAR-10; the teacher is {budget['teacher']}, which reaches "
        f"{found['teacher_top1']:.1%}. Small budget: {words(budget)}; the same for every row.",
        "",
        *table("loss | top-1, % | against the student alone, points | better in seeds", rows),
        " ".join(
            f"{how}: {', '.join(f'{name} ({100 * gain:+.1f} points)' for name, gain, _ in rows_) or 'none'}."
            for how, rows_ in better.items()
        ),
        "",
        made(found),
    ]  # fmt: skip


def beside_torchdistill(found: dict[str, Any]) -> list[str]:
    """Both tools on one pair."""
    if "torchdistill" not in found.get("runs", {}):
        return []
    peer, budget, rows = found["runs"]["torchdistill"], found["budget"], []
    for name, entry in found["runs"].items():
        seeds = sorted(entry["runs"].keys() & peer["runs"])
        first, later = ([mean_s(entry, s, part) / mean_s(peer, s, part) for s in seeds] for part in (FIRST, LATER))
        seconds = f"{entry['median_later_epoch_s']:.1f}"
        rows.append([name, score(entry), seconds, spanned(later), spanned(first), entry["lines"], entry["tokens"]])
    own = found["runs"]["hasten"]
    gap = 100 * (own["mean_top1"] - peer["mean_top1"])
    spread = 100 * max(entry["stdev_top1"] or 0 for entry in (own, peer))
    within = ", less than the spread over seeds" if abs(gap) < spread else ""
    return [
        "## Distillation beside torchdistill",
        "",
        f"{budget['pair']} on CIFAR-10; {budget['weights']}. The same loss, optimizer and images for both. "
        f"Small budget: {words(budget)}.",
        "",
        *table(
            "tool | top-1, % | later epoch, s | later epoch / torchdistill's | first epoch / torchdistill's | lines "
            "of code | tokens of code",
            rows,
        ),
        f"In top-1 hasten is {abs(gap):.2f} points {'ahead' if gap > 0 else '**behind**'}{within}. The first epoch "
        "asks the teacher and keeps its answers, later epochs read them. Below 1 is shorter; in brackets the least "
        "and the largest ratio of a seed.",
        "",
        made(found),
    ]  # fmt: skip


def mean_s(entry: dict[str, Any], seed: str, epochs: slice) -> float:
    """Seconds of the mean epoch among some of a run."""
    return statistics.mean(entry["runs"][seed]["epoch_s"][epochs])


def answers_kept(found: dict[str, Any]) -> list[str]:
    """What the cache of the teacher's answers saves."""
    epochs = found["epoch_wall_s"]
    rows = []
    for name, part in (("first", FIRST), ("later", LATER)):
        on, off = ([statistics.mean(run[part]) for run in epochs[f"cache_{way}"]] for way in ("on", "off"))
        cells = [f"{statistics.mean(on):.2f}", f"{statistics.mean(off):.2f}"]
        rows.append([name, *cells, spanned([a / b for a, b in zip(on, off, strict=True)])])
    return [
        "## What keeping the teacher's answers saves",
        "",
        f"ResNet-56 teaches ResNet-20: {words(found['budget'])}, {len(epochs['cache_on'])} interleaved rounds. A pass "
        f"of the teacher alone takes {statistics.mean(epochs['teacher_forward']):.2f} s. Keeping answers pays where an "
        "image is seen again as it was: a new crop has to be answered anew.",
        "",
        *table("epoch | s, answers kept | s, not kept | kept / not kept (least, largest of a round)", rows),
        made(found),
    ]


def minilm(found: dict[str, Any]) -> list[str]:
    """A sentence encoder with half of its layers."""
    budget, original = found["budget"], found["original"]
    before, after = budget["layers"]
    labels = {
        "original": f"{before} layers",
        "shrunk": f"{after} layers, not trained",
        "distilled": f"{after} layers, distilled",
    }
    rows = [
        [label, f"{part['parameters'] / 1e6:.1f} M ({part['parameters'] / original['parameters']:.0%})",
         f"{part['cosine_to_original']:.3f}", f"{part['spearman']:.3f}"]
        for label, part in ((label, found[kind]) for kind, label in labels.items())
    ]  # fmt: skip
    lines = [
        f"## MiniLM from {before} to {after} layers",
        "",
        "all-MiniLM-L6-v2, distilled on sentences without labels and judged on pairs that training never saw (SemEval "
        "STS 2012 to 2014, where the training sentences come from too). One run, one seed. Small budget: "
        f"{words(budget)}.",
        "",
        *table("network | parameters | cosine to the original's embedding | rank correlation with human scores", rows),
    ]
    timed = [
        [runtime, times(pair[f"distilled-{runtime}"]), pair[f"distilled-{runtime}"]["turns"]]
        for runtime, pair in found.get("latency", {}).items()
    ]
    if timed:
        lines += table("runtime | distilled against original, batch 1 | turns", timed)
    return [*lines, made(found)]
