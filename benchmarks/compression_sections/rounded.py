"""Sections about rounding: weights of few bits, and how fast int8 is beside other tools."""

from typing import Any

from compression_sections.words import made, table, times

ROUNDED = {
    "": "linear, rounded against the data",
    "rounding=adaround": "linear, learned rounding",
    "rounding=nearest": "linear, to the nearest",
    "rounding=nearest, bias_correction=False": "linear, to the nearest, biases as they were",
    "scheme=power_of_two": "powers of two",
    "scheme=power_of_two, bias_correction=False": "powers of two, biases as they were",
}


def low_bits(found: dict[str, Any]) -> list[str]:
    """Weights of few bits, linear against powers of two."""
    lines = []
    for name, net in found.items():
        if not isinstance(net, dict) or "weights" not in net:  # not said which weights: from an earlier script
            continue
        scores, int8 = low_bit_scores(net["top1"])
        widths = sorted({bits for row in scores.values() for bits in row}, reverse=True)
        rows = [[label, *(f"{100 * row[b]:.1f}" if b in row else "" for b in widths)] for label, row in scores.items()]
        lines += [
            f"**{name.replace('resnet', 'ResNet-')}**, {net['weights']} weights, one calibration, no training. On the "
            f"first {net['images']:,} test images of CIFAR-10: {net['top1']['float']:.1%} in float; static int8 "
            f"{', '.join(f'{top1:.1%} ({how})' for how, top1 in int8.items())}.",
            "",
            *table(" | ".join(["weights", *(f"{bits} bits, %" for bits in widths)]), rows),
            *(f"- {gap}" for bits in widths if (gap := powers_against_linear(scores, bits))),
            "",
            made(net | {"file": found["file"]}),
        ]
    return ["## Weights of few bits: linear against powers of two", "", *lines] if lines else []


def low_bit_scores(top1: dict[str, float]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Top-1 of weights alone by kind and by bits, and of int8 by options, from the descriptions of techniques."""
    weights: dict[str, dict[str, float]] = {}
    int8 = {}
    for described, score in top1.items():
        name, _, inside = described.removesuffix(")").partition("(")
        options = inside.split(", ")
        bits = [option.removeprefix("bits=") for option in options if option.startswith("bits=")]
        if name == "quantize_weights" and bits:
            rest = ", ".join(option for option in options if not option.startswith("bits="))
            weights.setdefault(ROUNDED.get(rest, rest), {})[bits[0]] = score
        elif name == "quantize":
            int8[inside or "as by default"] = score
    return weights, int8


def powers_against_linear(scores: dict[str, dict[str, float]], bits: str) -> str:
    """The best powers of two against the best linear row of this width, and against the one that is rounded alike."""
    powers = [row[bits] for label, row in scores.items() if label.startswith("powers") and bits in row]
    linear = [row[bits] for label, row in scores.items() if label.startswith("linear") and bits in row]
    if not powers or not linear:
        return ""
    gap = 100 * (max(powers) - max(linear))
    text = (
        f"At {bits} bits powers of two at best are {abs(gap):.1f} points {'above' if gap > 0 else 'below'} the best "
        "linear row"
    )
    ours, theirs = (scores.get(ROUNDED[way], {}).get(bits) for way in ("scheme=power_of_two", "rounding=nearest"))
    if ours is not None and theirs is not None:
        text += (
            f"; against the linear row that is rounded to the nearest, as they are, {100 * (ours - theirs):+.1f} points"
        )
    return f"{text}."


def int8_speed(found: dict[str, Any]) -> list[str]:
    """hasten's quickest int8 program against the quickest of the peers, by network and runtime."""
    rows, slower, notes = [], [], []
    for network, result in found["networks"].items():
        known = {row["name"]: row for row in result["rows"]}
        for runtime, contest in result["contests"].items():
            own = next(name for name in contest["rows"] if known[name]["tool"] == "hasten")
            peer, row = contest["best_peer"], contest["rows"][own]
            cosines = [f"{known[name]['cosine_to_float']:.4f}" for name in (own, peer)]
            rows.append([network, runtime, own, cosines[0], peer, cosines[1], times(row)])
            if row["ratio"] < 1:
                unsure = "" if row["ratio_high"] < 1 else ", the interval reaches 1"
                slower.append(f"{network} in {runtime} runtime ({row['ratio']:.2f}{unsure})")
        when = "".join(f", {result[key][:10]}" for key in ("started", "commit") if key in result)
        absent = (
            f"; left out, with the reason in the file: {', '.join(result['left_out'])}" if result["left_out"] else ""
        )
        notes.append(f"- {network}: load {result['load']:.1f} when timed{when}{absent}.")
    if not rows:
        return []
    head = "network | runtime | hasten's quickest | its cosine to float | quickest peer | its cosine | speed against it"
    return [
        "## Speed of int8 beside other tools",
        "",
        f"Same network, same calibration, one interleaved run: batch 1, {found['threads']} threads, {found['turns']} "
        "turns. Every tool's file runs in every runtime that reads it; *any* is the quickest of each tool wherever it "
        "runs.",
        "",
        *table(head, rows),
        f"**Slower** than the quickest peer: {'; '.join(slower) or 'none'}.",
        "",
        *notes,
        "",
        made(found | {"device": found["machine"]}),
    ]
