"""A table of operators that functions enter themselves into."""

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


def entering(table: dict[str, Function], *names: str) -> Callable[[Function], Function]:
    """A decorator that enters a function into `table` as each of `names`."""

    def enter(function: Function) -> Function:
        table.update(dict.fromkeys(names, function))
        return function

    return enter
