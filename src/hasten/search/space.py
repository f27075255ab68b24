"""What can be tried: recipes, derived from the options that targets and techniques state about themselves."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.fx import GraphModule, Node

from hasten.errors import InvalidInput, unknown
from hasten.recipe import Recipe, Target, Technique, make_target, make_technique, name_of, options_of, targets
from hasten.search.limits import check_targets, options_for

BASELINE = "eager"
# Ranges settle early, and on a slow machine calibrating is most of a trial: first tries look at fewer than the default.
_FIRST_SAMPLES = 96


def usable_targets(
    wanted: str | Sequence[str], limits: Mapping[str, float] | None = None
) -> tuple[dict[str, type[Target]], dict[str, str]]:
    """The target classes to search, and what is missing for those that cannot be used here.

    Args:
        wanted: "auto" for every timed target that is usable and not `only_by_name`, or names: all timed, or all
            judged.
        limits: On what judged targets state.

    Raises:
        InvalidInput: An unknown name, a named target that is not usable here, targets and limits that do not go
            together (see `limits.check_targets`), or nothing to search.
    """
    known = targets()
    timed = [n for n, part in known.items() if part.evidence == "timed"]
    by_itself = [n for n in timed if not getattr(known[n], "only_by_name", False)]
    names = by_itself if wanted == "auto" else list(_as_names(wanted))
    for name in names:
        if name not in known:
            raise unknown("target", name, known)
    check_targets({name: known[name] for name in names}, limits or {})
    usable: dict[str, type[Target]] = {}
    missing: dict[str, str] = {}
    for name in names:
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


def variants(part: type[Any], options: Mapping[str, Any] | None = None) -> list[Any]:
    """Every combination of the values that a target's or technique's options call worth searching, beside `options`."""
    grids = {f.name: f.metadata["grid"] for f in dataclasses.fields(part) if f.metadata.get("grid")}
    fixed = options or {}
    return [part(**fixed, **dict(zip(grids, values, strict=True))) for values in itertools.product(*grids.values())]


def free(usable: Mapping[str, type[Target]], limits: Mapping[str, float] | None = None) -> list[Recipe]:
    """Recipes that change nothing: every target at every precision, but those that take quantized graphs alone.

    Under `limits` a target gets the options with which it states what is limited.
    """
    original = Recipe((), make_target(BASELINE))
    floats = [part for part in usable.values() if not getattr(part, "integers_only", False)]
    recipes = [Recipe((), target) for part in floats for target in _here(part, limits)]
    return [recipe for recipe in recipes if recipe != original]


def quantized(usable: Mapping[str, type[Target]], limits: Mapping[str, float] | None = None) -> list[Recipe]:
    """The original quantized as each target's kernels want it; what stays in float runs at the target's precision."""
    pairs = ((steps, part) for part in usable.values() for steps in _quantizers(part))
    return [Recipe(steps, target) for steps, part in pairs for target in _here(part, limits)]


def with_more_effort(recipe: Recipe, graph: GraphModule, lost: bool) -> list[Recipe]:
    """A quantized recipe with what may make rounding cost less accuracy for this graph.

    Args:
        recipe: Ends in a `quantize` that rounds to the nearest.
        graph: The original.
        lost: Whether that lost accuracy that counts.
    """
    operators = {str(node.target) for node in graph.graph.nodes}
    against_data = replace(recipe, steps=tuple(map(rounded_against_data, recipe.steps)))
    recipes = [against_data] if lost else []
    if "aten.layer_norm.default" in operators:  # outliers behind layer norms
        recipes.append(replace(against_data, steps=(make_technique("smooth_quant"), *against_data.steps)))
        if getattr(recipe.target, "dynamic_activations", False):
            recipes.append(replace(recipe, steps=tuple(map(_with_dynamic_activations, recipe.steps))))
    if lost and any(map(_is_depthwise, graph.graph.nodes)):  # channels of unlike range in one tensor
        recipes.append(replace(recipe, steps=(make_technique("equalize_layers"), *recipe.steps)))
    return recipes


def rounded_against_data(step: Technique) -> Technique:
    """`quantize` that rounds weights against the calibration data in place of one that does not; others as they are."""
    if name_of(step) != "quantize":
        return step
    kept = {k: v for k, v in options_of(step).items() if k != "samples"}
    return make_technique("quantize", kept | {"rounding": "gptq"})


def _with_dynamic_activations(step: Technique) -> Technique:
    """`quantize` with ranges of each tensor as it comes in place of calibrated ones; others as they are."""
    if name_of(step) != "quantize":
        return step
    return make_technique("quantize", options_of(step) | {"activations": "int8_dynamic"})


def _here(part: type[Target], limits: Mapping[str, float] | None) -> list[Target]:
    return [target for target in variants(part, options_for(part, limits or {})) if not target.missing()]


def _quantizers(part: type[Target]) -> list[tuple[Technique, ...]]:
    """The ways to quantize for a target: one for each placement of Q/DQ that it states."""
    placements = getattr(part, "placements", ())
    return [(make_technique("quantize", _nearest(name)),) for name in placements]


def _nearest(placement: str) -> dict[str, Any]:
    return {"placement": placement, "rounding": "nearest", "samples": _FIRST_SAMPLES}


def _is_depthwise(node: Node) -> bool:
    if not str(node.target).startswith("aten.conv"):
        return False
    weight = node.args[1]
    shape = tuple(weight.meta["val"].shape) if isinstance(weight, Node) else (0,)
    return len(shape) > 2 and shape[1] == 1 and shape[0] > 1
