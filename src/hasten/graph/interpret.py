"""Run a plan operator by operator over any array namespace: numpy, jax.numpy, or values that record a circuit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.aten import TABLE
from hasten.graph.plan import Plan

_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip
Table = Mapping[str, Callable[..., Any]]


def run(plan: Plan, inputs: Sequence[Any], xp: Any = np, table: Table = TABLE) -> tuple[Any, ...]:
    """The outputs of `plan` for `inputs`.

    Args:
        plan: What to run.
        inputs: One array per input of the plan, batch first.
        xp: Array namespace that the inputs belong to; numpy or one that mirrors it.
        table: What each operator computes: `function(xp, **arguments)`. A namespace with its own way to convolve
            passes `{**TABLE, "aten.conv2d": ...}`.

    Raises:
        Unsupported: The plan has operators that `table` does not have; all of them are named.
    """
    check(plan, table)
    values: dict[str, Any] = {name: xp.asarray(value) for name, value in plan.constants.items()}
    values.update({spec.name: value for spec, value in zip(plan.inputs, inputs, strict=True)})
    for call in plan.calls:
        if call.operator.startswith("operator."):
            values[call.name] = table[call.operator](*(_decode(x, values, xp) for x in call.arguments.values()))
        else:
            arguments = {name: _decode(x, values, xp) for name, x in call.arguments.items()}
            values[call.name] = table[call.operator](xp, **arguments)
    return tuple(values[name] for name in plan.outputs)


def check(plan: Plan, table: Table = TABLE) -> None:
    """Raise `Unsupported`, naming them, if `plan` has operators that `table` does not have."""
    unknown = sorted(plan.operators - set(table))
    if unknown:
        raise Unsupported(f"Every operator must be known to the interpreter, but these are not: {', '.join(unknown)}.")


def _decode(argument: Any, values: Mapping[str, Any], xp: Any) -> Any:
    if isinstance(argument, Mapping):
        return values[argument["node"]] if "node" in argument else getattr(xp, _dtype(argument["dtype"]))
    if isinstance(argument, (list, tuple)):
        return [_decode(x, values, xp) for x in argument]
    return argument


def _dtype(name: str) -> str:
    if name not in _DTYPES:
        raise InvalidInput(f"A dtype must be one of {', '.join(_DTYPES)}, but got {name!r:.40}.")
    return "bool_" if name == "bool" else name
