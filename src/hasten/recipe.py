"""The nouns of a search: `Technique`, `Target`, `Recipe`, and the registry that is the folder they live in.

A technique or target is a frozen dataclass in a file of its own under `techniques/` or `targets/`; the file name is
its name. Its fields, made with `option`, are stated once: CLI flags, YAML keys, the search grid and the docs derive
from them. Nothing here imports torch, so that an artifact can be loaded without it.
"""

import dataclasses
import enum
import importlib
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from hasten.errors import InvalidInput, unknown

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

Program = Callable[..., tuple[np.ndarray, ...]]
"""A compiled model: numpy inputs, batch first, to a tuple of numpy outputs; returns when the device is done."""


class Stage(enum.IntEnum):
    """The order in which techniques of a recipe are applied."""

    PRUNE = 1
    DISTILL = 2
    QUANTIZE = 3


_LIMIT_CHARACTERS, _LIMIT_SCALAR = 2**20, 1024


@runtime_checkable
class Technique(Protocol):
    """Graph in, new graph out. Implementers are frozen dataclasses."""

    stage: ClassVar[Stage]

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a changed copy of `graph`; never mutate it. Raises `Unsupported` if it cannot be applied."""
        ...


@runtime_checkable
class Target(Protocol):
    """Graph in, folder out; folder in, program out. Implementers are frozen dataclasses.

    `evidence` says what a measurement of its program is: "timed" on the device; "simulated" bit for bit; "estimated"
    by the vendor's compiler, while the program runs on a stand-in. Only what is timed competes for speed.

    More class variables may be stated: `placements`, where its kernels want Q/DQ; `dynamic_activations`, whether it has
    kernels for activations that are rounded as they come; `fp8_products`, whether it has kernels that multiply fp8;
    `integers_only`, whether it takes quantized graphs alone; `concurrent`, whether a loaded program may be called from
    several threads at once; `only_by_name`, whether a search tries it only where the user named it; `judges`, for each
    quantity of `hasten.judged` that `compile` states without running the device, the options that make it do so. One
    must be: `native_code = True` if loading runs machine code out of the folder, which is then only loaded if this user
    made it here or trusts it.
    """

    evidence: ClassVar[str]

    def missing(self) -> str:
        """An empty string if the target is usable here, else what to install or plug in."""
        ...

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write everything `load` needs into the existing, empty `folder`. Raises `Unsupported` if it cannot."""
        ...

    def load(self, folder: Path) -> Program:
        """The program in `folder`; what ships is what was measured."""
        ...


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    open_high: bool = False,
    grid: tuple[Any, ...] = (),
    at_load: bool = False,
    timed: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field that knows its help text, its allowed values, and the values worth searching (`grid`).

    `low` and `high` are inclusive bounds; with `open_high` the upper bound itself is excluded. `at_load` says of an
    option of a target that `compile` does not read it: what one value compiled is loaded with another. Of such an
    option, `timed` are values of which a search takes the fastest without a trial for each.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "open_high": open_high, "grid": grid}
    return dataclasses.field(default=default, metadata=metadata | {"at_load": at_load, "timed": timed})


def check_options(instance: Any) -> None:
    """Check every `option` of a dataclass instance; call it from `__post_init__`.

    Raises:
        InvalidInput: An option is outside its choices or range.
    """
    for field in dataclasses.fields(instance):
        value, meta = getattr(instance, field.name), field.metadata
        choices = meta.get("choices")
        if choices is not None and value not in choices:
            raise InvalidInput(
                f"`{field.name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}. ({meta['help']})"
            )
        _check_range(field.name, value, meta)


def _check_range(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    low, high, open_high = meta.get("low"), meta.get("high"), meta.get("open_high")
    if (low is None and high is None) or value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    above = is_number and (low is None or value >= low)
    below = is_number and (high is None or (value < high if open_high else value <= high))
    if not (above and below):
        rule = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}{')' if open_high else ']'}"
        raise InvalidInput(f"`{name}` must be in {rule}, but got {value!r}. ({meta['help']})")


def techniques() -> dict[str, type[Technique]]:
    """Every technique by name, from the files in `hasten/techniques/`."""
    return _registry(Technique)


def targets() -> dict[str, type[Target]]:
    """Every target by name, from the files in `hasten/targets/`."""
    return _registry(Target)


def make_target(name: str, options: Mapping[str, Any] | None = None) -> Target:
    """The target called `name` with `options`; imports only that target's file.

    Raises:
        InvalidInput: Unknown name or option, or an option outside its range.
    """
    target: Target = _make(Target, name, options or {})
    return target


def make_technique(name: str, options: Mapping[str, Any] | None = None) -> Technique:
    """The technique called `name` with `options`.

    Raises:
        InvalidInput: Unknown name or option, or an option outside its range.
    """
    technique: Technique = _make(Technique, name, options or {})
    return technique


def name_of(part: Technique | Target) -> str:
    """The registered name of a technique or target: the name of its file."""
    return type(part).__module__.rsplit(".", 1)[-1]


def options_of(part: Technique | Target) -> dict[str, Any]:
    """The options of a technique or target as plain values."""
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(typing.cast(Any, part))}


def describe(part: Technique | Target) -> str:
    """One line: the name and the options that differ from their defaults; of long tuples only how many they hold."""
    changed = [
        f"{field.name}={_short(getattr(part, field.name))}"
        for field in dataclasses.fields(typing.cast(Any, part))
        if getattr(part, field.name) != field.default
    ]
    return f"{name_of(part)}({', '.join(changed)})" if changed else name_of(part)


def _short(value: Any) -> str:
    return f"({len(value)} given)" if isinstance(value, tuple) and len(value) > 1 else str(value)


@dataclass(frozen=True)
class Recipe:
    """Techniques in order of their stage, then a target; everything needed to make an artifact again.

    Raises:
        InvalidInput: The steps are not in the order of their stages.
    """

    steps: tuple[Technique, ...]
    target: Target

    def __post_init__(self) -> None:
        stages = [step.stage for step in self.steps]
        if stages != sorted(stages):
            raise InvalidInput(
                f"`steps` must be ordered PRUNE, DISTILL, QUANTIZE, but got {[s.name for s in stages]}. Reorder them."
            )

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` gives an equal recipe back."""
        import yaml  # here and not above: loading a program should not wait for what it does not use

        document = {
            "steps": [{name_of(step): options_of(step)} for step in self.steps],
            "target": {name_of(self.target): options_of(self.target)},
        }
        return yaml.safe_dump(document, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Read a recipe; a step without options may be a bare name.

        Raises:
            InvalidInput: Not a recipe, an unknown name or option, or an option outside its range.
        """
        document = _read_yaml(text)
        if not isinstance(document, dict) or not set(document) <= {"steps", "target"} or "target" not in document:
            raise InvalidInput("A recipe must be a mapping with `target` and optionally `steps`, and nothing else.")
        steps = document.get("steps") or []
        if not isinstance(steps, list):
            raise InvalidInput(f"`steps` must be a list, but got {type(steps).__name__}.")
        parts = [make_technique(*_name_and_options(step)) for step in steps]
        return cls(tuple(parts), make_target(*_name_and_options(document["target"])))


def _read_yaml(text: str) -> Any:
    """One YAML document of plain values; aliases, which can make a short text huge, are refused."""
    import yaml

    if len(text) > _LIMIT_CHARACTERS:
        raise InvalidInput(f"A recipe must have at most {_LIMIT_CHARACTERS} characters, but has {len(text)}.")
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise InvalidInput("A recipe must be plain YAML, but has an alias. Write the value out.")
            # YAML knows numbers to the base of 60, which take minutes to read when they are long.
            if isinstance(token, yaml.ScalarToken) and len(token.value) > _LIMIT_SCALAR:
                raise InvalidInput(f"A value must have at most {_LIMIT_SCALAR} characters, but one has more.")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, ArithmeticError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"A recipe must be valid YAML, but: {error!s:.300}") from error


def _name_and_options(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return name, options or {}
    raise InvalidInput(f"A recipe entry must be `name` or `name: {{option: value}}`, but got {entry!r:.100}.")


def _make(protocol: type, name: str, options: Mapping[str, Any]) -> Any:
    known = _modules(_package(protocol))
    if name not in known:
        raise unknown(protocol.__name__.lower(), name, known)
    return _build(_class_in(f"{_package(protocol)}.{name}", protocol), name, options)


def _build(cls: Any, name: str, options: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in options:
        if key not in known:
            raise unknown(f"option of {name}", str(key), known)
    values = {key: _coerce(name, key, value, hints[key]) for key, value in options.items()}
    try:
        return cls(**values)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def _coerce(owner: str, key: str, value: Any, hint: Any) -> Any:
    """Fit a YAML or CLI value to the field's type: lists become tuples, ints become floats, nothing else changes."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value
    if origin in (typing.Union, types.UnionType):
        arms = typing.get_args(hint)
        if value is None and type(None) in arms:
            return None
        for arm in arms:
            if arm is not type(None) and _fits(value, arm):
                return _coerce(owner, key, value, arm)
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(tuple(x) if isinstance(x, list) else x for x in value)
    elif _fits(value, hint):
        return float(value) if hint is float else value
    name = getattr(hint, "__name__", str(hint))
    raise InvalidInput(f"{owner}: `{key}` must be of type {name}, but got {value!r} of type {type(value).__name__}.")


def _fits(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return value in typing.get_args(hint)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind is tuple:
        return isinstance(value, (list, tuple))
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


def _modules(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if re.fullmatch(r"[a-z][a-z0-9_]*", m.name))


def _package(protocol: type) -> str:
    return f"hasten.{protocol.__name__.lower()}s"


def _registry(protocol: type) -> dict[str, Any]:
    package = _package(protocol)
    return {name: _class_in(f"{package}.{name}", protocol) for name in _modules(package)}


def _class_in(module_name: str, protocol: type) -> Any:
    module = importlib.import_module(module_name)
    methods = [name for name in ("apply", "compile", "load", "missing") if hasattr(protocol, name)]
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module_name
        and dataclasses.is_dataclass(value)
        and all(hasattr(value, method) for method in methods)
    ]
    if len(found) != 1:
        raise TypeError(f"{module_name} must define exactly one {protocol.__name__} dataclass, but has {len(found)}.")
    return found[0]
