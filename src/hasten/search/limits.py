"""Limits on what a target judges without a device: which of them concern a target, and what a program uses of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten import judged
from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Target, name_of
from hasten.task import Budget


def judges(part: Target | type[Target]) -> dict[str, dict[str, Any]]:
    """The quantities that a target states when it compiles, each with the options that make it do so."""
    return {name: dict(options) for name, options in getattr(part, "judges", {}).items()}


def applying(part: Target | type[Target], limits: Mapping[str, float]) -> dict[str, float]:
    """Those of the limits that a target can judge."""
    known = judges(part)
    return {name: limit for name, limit in limits.items() if name in known}


def options_for(part: type[Target], limits: Mapping[str, float]) -> dict[str, Any]:
    """The options with which a target states what is limited; a later quantity of its list decides."""
    options: dict[str, Any] = {}
    for name, needed in judges(part).items():
        if name in limits:
            options |= needed
    return options


def stated(target: Target, folder: Path, limits: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """What was judged of the program in `folder`, and its room under the limits that concern its target.

    Raises:
        Unsupported: The target did not state a quantity that is limited.
    """
    values, own = judged.read(folder), applying(target, limits)
    if lacking := sorted(set(own) - set(values)):
        raise Unsupported(
            f"{name_of(target)} must state {lacking[0]} to be held to its limit, but stated "
            f"{', '.join(values) or 'nothing'}."
        )
    return values, judged.room(values, own)


def check_finalists(parts: Mapping[str, type[Target]], budget: Budget) -> None:
    """Refuse fewer finalists than judged targets, of which each sends its best.

    Raises:
        InvalidInput: See above.
    """
    if budget.limits and len(parts) > budget.finalists:
        raise InvalidInput(
            f"`finalists` must be at least the number of judged targets, {len(parts)}, so that the best of each can be "
            f"certified, but is {budget.finalists}."
        )


def check_targets(parts: Mapping[str, type[Target]], limits: Mapping[str, float]) -> None:
    """Refuse named targets and limits that do not go together.

    Raises:
        InvalidInput: Timed targets with judged ones, a judged target without a limit, or a limit that none judges.
    """
    unlike = {name: part.evidence for name, part in parts.items() if part.evidence != "timed"}
    timed = sorted(set(parts) - set(unlike))
    if unlike and timed:
        name, evidence = next(iter(unlike.items()))
        raise InvalidInput(
            f"`targets` must all be timed or all be judged, because a judged number is no speed, but {timed[0]} is "
            f"timed and {name} is {evidence}. Search for them in two runs."
        )
    if timed and limits:
        raise InvalidInput(
            f"`limits` must come with targets that are judged, not timed, but {timed[0]} is timed. Use "
            "`max_latency_ms` or `max_size_bytes` for it."
        )
    for name, evidence in unlike.items():
        if not applying(parts[name], limits):
            raise InvalidInput(
                f"`targets` that are not timed must be held to a limit, but {name} is {evidence} and no limit concerns "
                f"it. Give one (--limit NAME=VALUE) on: {', '.join(judges(parts[name])) or 'nothing it judges'}."
            )
    for name in limits:
        if not any(name in judges(part) for part in parts.values()):
            known = "; ".join(f"{n} judges {', '.join(judges(part))}" for n, part in parts.items())
            raise InvalidInput(f"`limits` must be judged by one of the targets, but {name} is not: {known}.")
