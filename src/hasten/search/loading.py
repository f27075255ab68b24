"""What is chosen when a compiled program is loaded, such as its threads: free to vary, since nothing is compiled again.

On a small network the threads of a runtime wait for each other longer than they compute, so one is faster than all.
"""

import dataclasses
import itertools
from typing import Any, cast

from hasten.machine import usable_cores
from hasten.recipe import Recipe, Target, name_of, options_of

# What is not clearly faster than the program as it was asked for is as likely to be slower: while a neighbour took a
# core, a quick timing preferred one thread by 6% for a program that is 1.4 times as fast on two.
_CLEARLY = 1.1


def ways(target: Target) -> list[Target]:
    """The target itself, then as it may be loaded instead: with other values of what a search times (`timed`)."""
    timed = {f.name: f.metadata["timed"] for f in _fields(target) if f.metadata.get("timed")}
    others = (dict(zip(timed, values, strict=True)) for values in itertools.product(*timed.values()))
    found = {_as_run(target): target}
    for other in others:
        way = cast(Target, dataclasses.replace(cast(Any, target), **other))
        found.setdefault(_as_run(way), way)
    return list(found.values())


def fastest(ratios: dict[Target, float]) -> Target:
    """The way with the largest ratio; the first, unless another is clearly faster."""
    first = next(iter(ratios))
    best = max(ratios, key=lambda way: ratios[way])
    return best if ratios[best] > _CLEARLY * ratios[first] else first


def compiled_as(recipe: Recipe) -> tuple[Any, ...]:
    """What decides the compiled files of a recipe: two that agree in it share them."""
    loaded = {f.name for f in _fields(recipe.target) if f.metadata.get("at_load")}
    options = tuple((name, value) for name, value in options_of(recipe.target).items() if name not in loaded)
    return recipe.steps, name_of(recipe.target), options


def _as_run(target: Target) -> tuple[tuple[str, Any], ...]:
    """The options of a target as this machine runs it: 0 threads are all its cores."""
    options = options_of(target)
    if options.get("threads") == 0:
        options["threads"] = usable_cores()
    return tuple(options.items())


def _fields(target: Target) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast(Any, target))
