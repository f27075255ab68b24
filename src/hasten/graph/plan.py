"""A captured graph as plain data: operators as JSON, weights as arrays; read and run without torch.

This is the form in which a graph crosses into another process (a compiler with an environment of its own) and the
form that `hasten.graph.interpret` runs. Operators are functional (nothing is written in place) and carry every
argument by the name that the operator's schema gives it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import InvalidInput, Unsupported
from hasten.manifest import read_json, read_npz

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from hasten.task import Inputs

SCHEMA = 1
_LIMIT_BYTES = 64 * 2**20
# They check what is already known, or only tell torch's memory planner something.
_WITHOUT_EFFECT = ("aten._assert", "aten.sym_constrain")


@dataclass(frozen=True)
class Value:
    """Name, dtype and shape of a tensor; None in a shape is any size.

    Attributes:
        name: Name of the node.
        dtype: As numpy names it.
        shape: Batch first.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        name: Name of the node, unique in the plan.
        operator: Operator without its overload, such as `aten.conv2d`.
        arguments: Every argument by name: numbers, strings, None, lists of these, `{"node": name}` for a value,
            `{"dtype": name}` for a dtype.
        dtype: Of the result; empty if it is not one tensor.
        shape: Of the result, None for any size; empty if it is not one tensor.
    """

    name: str
    operator: str
    arguments: Mapping[str, Any]
    dtype: str = ""
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A graph of functional ATen operators.

    Attributes:
        inputs: The user's inputs, in order.
        calls: In order of execution.
        outputs: Names of the values returned, in order.
        constants: Weights and buffers by the name of their node.
    """

    inputs: tuple[Value, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]

    @property
    def operators(self) -> frozenset[str]:
        """Names of the operators it calls."""
        return frozenset(call.operator for call in self.calls)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size if the graph runs at one size only, else None."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None

    def save(self, folder: Path) -> None:
        """Write `plan.json` and `constants.npz` into an existing folder."""
        document = {
            "schema": SCHEMA,
            "inputs": [[x.name, x.dtype, x.shape] for x in self.inputs],
            "calls": [[c.name, c.operator, dict(c.arguments), c.dtype, c.shape] for c in self.calls],
            "outputs": self.outputs,
        }
        (folder / "plan.json").write_text(json.dumps(document))
        # Names of nodes are identifiers, but one may collide with an argument of `savez`.
        np.savez(folder / "constants.npz", **{f"c_{name}": value for name, value in self.constants.items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read what `save` wrote.

        Raises:
            InvalidInput: Written by another version, or not a plan.
        """
        document = read_json(folder / "plan.json", _LIMIT_BYTES, numbers=True)
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise InvalidInput(f"{folder / 'plan.json'} must have schema {SCHEMA}, but has {schema!r:.40}.")
        constants = {name.removeprefix("c_"): value for name, value in read_npz(folder / "constants.npz").items()}
        try:
            made = cls(
                tuple(Value(name, dtype, tuple(shape)) for name, dtype, shape in document["inputs"]),
                tuple(Call(name, op, args, dtype, tuple(shape)) for name, op, args, dtype, shape in document["calls"]),
                tuple(document["outputs"]),
                constants,
            )
            _check(made)
        except InvalidInput:
            raise
        except Exception as error:  # whatever is wrong with a file from outside, its reader hears one thing
            raise InvalidInput(f"{folder} must hold a plan, but: {type(error).__name__}: {error!s:.200}") from error
        return made


def plan(graph: "GraphModule", example: "Inputs") -> Plan:
    """The plan of a captured graph.

    Args:
        graph: A captured graph.
        example: One batch of its inputs.

    Raises:
        Unsupported: The graph calls another graph, or holds a constant of a dtype that numpy does not have.
    """
    from torch.export.graph_signature import InputKind, OutputKind

    from hasten.graph.capture import export_functional

    program = export_functional(graph, example)
    tensors = {**program.state_dict, **program.constants}
    nodes = {node.name: node for node in program.graph.nodes}
    inputs: list[Value] = []
    constants: dict[str, np.ndarray] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(_value(nodes[spec.arg.name]))
        else:
            constants[spec.arg.name] = _array(str(spec.target), tensors[str(spec.target)])
    calls = [_call(node) for node in program.graph.nodes if node.op == "call_function"]
    outputs = [s.arg.name for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    alive = _alive([call for call in calls if not call.operator.startswith(_WITHOUT_EFFECT)], outputs)
    used = {name for call in alive for name in references(call.arguments)} | set(outputs)
    return Plan(tuple(inputs), tuple(alive), tuple(outputs), {k: v for k, v in constants.items() if k in used})


def _check(plan: Plan) -> None:
    """Every value is made before it is used, once."""
    known = {value.name for value in plan.inputs} | set(plan.constants)
    for call in plan.calls:
        if not isinstance(call.operator, str) or not isinstance(call.arguments, dict):
            raise InvalidInput(f"A plan must call operators by name with named arguments, but has {call!r:.100}.")
        if missing := set(references(call.arguments)) - known:
            raise InvalidInput(f"A plan must use values that it has made, but {call.name!r:.80} uses {missing!r:.80}.")
        known.add(call.name)
    if missing := set(plan.outputs) - known:
        raise InvalidInput(f"A plan must return values that it has made, but returns {missing!r:.80}.")


def references(argument: Any) -> list[str]:
    """Names of the values that an argument refers to, in order."""
    if isinstance(argument, Mapping):
        if "node" in argument and len(argument) == 1:
            return [argument["node"]]
        return [name for value in argument.values() for name in references(value)]
    return [name for value in argument for name in references(value)] if isinstance(argument, (list, tuple)) else []


def _alive(calls: list[Call], outputs: list[str]) -> list[Call]:
    wanted, kept = set(outputs), []
    for call in reversed(calls):
        if call.name in wanted:
            kept.append(call)
            wanted.update(references(call.arguments))
    return kept[::-1]


def _call(node: "Node") -> Call:
    import torch

    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        named = {a.name: a.default_value for a in schema if a.has_default_value()}
        named.update({a.name: value for a, value in zip(schema, node.args, strict=False)})
        named.update(node.kwargs)
        name = str(target.overloadpacket)
    elif callable(target) and not isinstance(target, torch._ops.HigherOrderOperator):
        named = {str(index): value for index, value in enumerate(node.args)}
        name = f"operator.{target.__name__}"
    else:
        raise Unsupported(f"The graph must consist of operators alone, but calls {target}. Remove it from the model.")
    arguments = {key: _encode(value) for key, value in named.items()}
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return Call(node.name, name, arguments)
    return Call(node.name, name, arguments, _dtype(value.dtype), _shape(value))


def _encode(value: Any) -> Any:
    import torch
    from torch.fx import Node

    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(x) for x in value]
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype(value)}
    if value is None or isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return None
    if isinstance(value, (bool, int, float, str)):
        return value
    raise Unsupported(f"An operator's argument must be a number, a name or a list, but one is {value!r:.80}.")


def _value(node: "Node") -> Value:
    tensor = node.meta["val"]
    return Value(node.name, _dtype(tensor.dtype), _shape(tensor))


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in tensor.shape)


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _array(name: str, tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype is torch.bfloat16 or tensor.is_complex() or tensor.is_quantized:
        raise Unsupported(f"Weights must be real and of a dtype that numpy has, but {name} is {tensor.dtype}. Cast it.")
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array
