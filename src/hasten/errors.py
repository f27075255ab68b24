"""What hasten raises. Every message states the rule, the value that broke it, and the remedy."""

import difflib
from collections.abc import Iterable


class HastenError(Exception):
    """Base of all errors that hasten raises on purpose; the CLI prints them without a traceback."""


class InvalidInput(HastenError, ValueError):
    """Something the user brought breaks a rule: a task, a budget, an option, an artifact."""


class Unsupported(HastenError):
    """A technique or target cannot be applied to this graph; the search records it and goes on."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InvalidInput:
    """The error for a name that is not registered, with the nearest known one."""
    known, name = sorted(known), name[:100]  # looking for the nearest name takes long for one that is no name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InvalidInput(f"{kind} must be one of {', '.join(known)}, but got {name!r}.{hint}")


def reason(error: Exception) -> str:
    """Why something failed, in one line; of an error that is not hasten's own with its name."""
    if isinstance(error, HastenError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
