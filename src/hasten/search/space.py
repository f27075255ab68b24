"""What can be tried: recipes, derived from the options that targets and techniques state about themselves."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from hasten.errors import InvalidInput, unknown
from hasten.recipe import Recipe, Target, Technique, make_target, make_technique, targets

BASELINE = "eager"
_NOT_BY_ITSELF = {"null"}


def usable_targets(wanted: str | Sequence[str]) -> tuple[dict[str, type[Target]], dict[str, str]]:
    """The target classes to search, and what is missing for those that cannot be used here.

    Args:
        wanted: "auto" for every target that is usable, or names.

    Raises:
        InvalidInput: An unknown name, a named target that is not usable here, or nothing to search.
    """
    known = targets()
    timed = [n for n, part in known.items() if part.evidence == "timed"]
    names = [n for n in timed if n not in _NOT_BY_ITSELF] if wanted == "auto" else list(_as_names(wanted))
    usable: dict[str, type[Target]] = {}
    missing: dict[str, str] = {}
    for name in names:
        if name not in known:
            raise unknown("target", name, known)
        if name not in timed:
            raise InvalidInput(
                f"`targets` must be timed on this machine to compete for speed, but {name} is {known[name].evidence}. "
                f"Compile for it with `hasten apply`, or search among: {', '.join(timed)}."
            )
        if reason := known[name]().missing():
            missing[name] = reason
        else:
            usable[name] = known[name]
    if wanted != "auto" and missing:
        name, reason = next(iter(missing.items()))
        raise InvalidInput(f"target {name} must be usable on this machine, but needs: {reason}")
    return usable, missing


def _as_names(wanted: str | Sequence[str]) -> Sequence[str]:
    names = [x.strip() for x in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    if not any(names):
        raise InvalidInput("`targets` must name at least one target, or be 'auto', but is empty.")
    return [name for name in names if name]


def variants(part: type[Any]) -> list[Any]:
    """Every combination of the values that a target's or technique's options call worth searching."""
    grids = {f.name: f.metadata["grid"] for f in dataclasses.fields(part) if f.metadata.get("grid")}
    return [part(**dict(zip(grids, values, strict=True))) for values in itertools.product(*grids.values())]


def post_training(usable: dict[str, type[Target]]) -> list[Recipe]:
    """Recipes that need no training: every target at every precision, then quantized as its kernels want it."""
    floats = [Recipe((), target) for part in usable.values() for target in variants(part) if not target.missing()]
    quantized = [
        Recipe(steps, target)
        for part in usable.values()
        for steps in _quantizers(part)
        for target in variants(part)  # what stays in float runs at the target's precision
        if not target.missing()
    ]
    original = Recipe((), make_target(BASELINE))
    return [recipe for recipe in floats + quantized if recipe != original]


def _quantizers(part: type[Target]) -> list[tuple[Technique, ...]]:
    """The ways to quantize for a target: one for each placement of Q/DQ that it states."""
    return [(make_technique("quantize", {"placement": name}),) for name in getattr(part, "placements", ())]
