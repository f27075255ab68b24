"""A captured graph as a file that holds no code: nodes as JSON, tensors as safetensors.

`torch.export.save` writes archives that `torch.export.load` may unpickle, which runs whatever a stranger put there.
Here a node may only name an operator that `graph.storable` knows or one of a few arithmetic functions; anything else is
refused.
"""

import importlib
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import outputs
from hasten.graph.channels import attribute
from hasten.graph.storable import HIGHER_ORDER, LIBRARIES, is_storable, without_leftovers
from hasten.manifest import read_json

_SCHEMA = 1
_GRAPH, _TENSORS = "graph.json", "tensors.safetensors"
_LIMIT_BYTES = 64 * 2**20
_DEPTH = 8
_OPERATOR = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "getitem",
    "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
)  # fmt: skip
_TORCH = ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR},
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH},
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_SETTINGS = (torch.dtype, torch.layout, torch.memory_format)


def save_graph(graph: GraphModule, folder: Path) -> None:
    """Write `graph.json` and `tensors.safetensors` into an existing folder.

    Raises:
        Unsupported: The graph calls a function or a module that the format does not know.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    document = {
        "schema": _SCHEMA,
        "graph": _encode_graph(graph, "", tensors, names),
        "single_output": len(outputs(graph)) == 1,
    }
    (folder / _GRAPH).write_text(json.dumps(document))
    save_file(tensors, folder / _TENSORS)


def load_graph(folder: Path) -> GraphModule:
    """Read what `save_graph` wrote: a graph that runs and trains. `capture` it anew to apply techniques to it.

    Raises:
        InvalidInput: The files are not such a graph, or call something that no captured graph calls.
    """
    path = folder / _GRAPH
    try:
        document = read_json(path, _LIMIT_BYTES, numbers=True)
        if document["schema"] != _SCHEMA:
            raise InvalidInput(f"{path} must have schema {_SCHEMA}, but has {document['schema']!r:.40}.")
        # Tensors in the mapped file are not aligned as torch's own are, which changes kernels and their rounding.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / _TENSORS).items()}
        graph = _decode_graph(document["graph"], tensors, _DEPTH)
        if document["single_output"]:
            _return_bare(graph)
        return graph
    except InvalidInput:
        raise
    except Exception as error:
        # Whatever is wrong with a file from outside, its reader hears one thing.
        raise InvalidInput(f"{folder} must hold a stored graph, but: {type(error).__name__}: {error!s:.200}") from error


def _encode_graph(graph: GraphModule, prefix: str, tensors: dict[str, Tensor], names: dict[int, str]) -> dict[str, Any]:
    nodes, attributes, inner = [], {}, {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = attribute(graph, str(node.target))
            if isinstance(value, GraphModule):
                inner[str(node.target)] = _encode_graph(value, f"{prefix}{node.target}/", tensors, names)
            else:
                attributes[str(node.target)] = _encode_tensor(f"{prefix}{node.target}", value, tensors, names)
            target = str(node.target)
        elif node.op == "call_function":
            target = _target_name(node.target)
        elif node.op in ("placeholder", "output"):
            target = str(node.target)
        else:
            raise Unsupported(f"A graph that is stored must call operators only, but {node.name} is a {node.op}.")
        nodes.append([node.op, node.name, target, _encode(node.args), _encode(node.kwargs)])
    return {"nodes": nodes, "attributes": attributes, "graphs": inner}


def _encode_tensor(name: str, value: Any, tensors: dict[str, Tensor], names: dict[int, str]) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise Unsupported(f"A graph that is stored must hold tensors only, but {name} is {type(value).__name__}.")
    kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
    if id(value) not in names:
        names[id(value)] = name
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {"kind": kind, "tensor": names[id(value)], "trained": value.requires_grad}


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and is_storable(*str(target.overloadpacket).split(".", 1)):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator) and target.__name__ in HIGHER_ORDER:
        return f"higher_order.{target.__name__}"
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise Unsupported(f"A graph that is stored must call known operators only, but calls {target}.")


def _encode(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(x) for x in value]}
    if isinstance(value, list):
        return [_encode(x) for x in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(x) for key, x in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(x) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, _SETTINGS):
        return {"torch": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Unsupported(f"An operator's argument must be a number, a name or a list, but one is {value!r:.80}.")


def _decode_graph(document: dict[str, Any], tensors: dict[str, Tensor], depth: int) -> GraphModule:
    if depth == 0:
        raise InvalidInput(f"A stored graph must be nested at most {_DEPTH} deep, but is deeper.")
    root = nn.Module()
    for target, inner in document["graphs"].items():
        _assign(root, target, _decode_graph(inner, tensors, depth - 1))
    for target, spec in document["attributes"].items():
        _assign(root, target, _decode_tensor(spec, tensors))
    graph = Graph()
    nodes: dict[str, Node] = {}
    for op, name, target, args, kwargs in document["nodes"]:
        _check_names(name, *kwargs["dict"])
        if op == "call_function":
            target, kwargs["dict"] = without_leftovers(target, kwargs["dict"])
            target = _function(target)
        elif op in ("placeholder", "output"):
            _check_names(target)
        elif op != "get_attr" or target not in {**document["attributes"], **document["graphs"]}:
            raise InvalidInput(
                f"A stored graph must call operators on its own tensors, but has {op!r:.40} {target!r:.80}."
            )
        nodes[name] = graph.create_node(op, target, _decode(args, nodes), _decode(kwargs, nodes), name=name)
    return GraphModule(root, graph)


def _return_bare(graph: GraphModule) -> None:
    """Return the only output as it is instead of in a tuple, as `capture` does."""
    output = next(iter(reversed(graph.graph.nodes)))
    output.args = (torch.utils._pytree.tree_leaves(output.args)[0],)
    graph.recompile()


def _check_names(*names: str) -> None:
    """Names end up in the source that torch.fx generates, so they must be nothing but names."""
    for name in names:
        if not name.isidentifier():
            raise InvalidInput(f"A stored graph must use identifiers as names, but has {name!r:.80}.")


def _decode_tensor(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    tensor = tensors[spec["tensor"]]
    if spec["kind"] == "parameter" and not isinstance(tensor, nn.Parameter):
        # Names that share a tensor share the parameter too, so that training keeps them tied.
        tensor = nn.Parameter(tensor, requires_grad=bool(spec["trained"]) and tensor.is_floating_point())
        tensors[spec["tensor"]] = tensor
    return tensor


def _assign(root: nn.Module, target: str, value: Any) -> None:
    *path, last = target.split(".")
    _check_names(*(part for part in (*path, last) if not part.isdigit()))
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)


def _function(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    library, _, rest = name.partition(".")
    if library == "higher_order" and rest in HIGHER_ORDER:
        return getattr(torch.ops.higher_order, rest)
    packet, _, overload = rest.partition(".")
    if not is_storable(library, packet):
        raise InvalidInput(f"A stored graph must call operators of a captured graph only, but calls {name!r:.80}.")
    importlib.import_module(LIBRARIES[library])
    found = getattr(getattr(getattr(torch.ops, library), packet), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise InvalidInput(f"A stored graph must call operators only, but {name!r:.80} is none.")
    return found


def _decode(value: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(x, nodes) for x in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "dict":
        return {key: _decode(x, nodes) for key, x in inner.items()}
    if kind == "tuple":
        return tuple(_decode(x, nodes) for x in inner)
    if kind == "slice":
        return slice(*(_decode(x, nodes) for x in inner))
    if kind == "device":
        return torch.device(inner)
    setting = getattr(torch, inner)
    if not isinstance(setting, _SETTINGS):
        raise InvalidInput(f"A stored graph must name torch's settings only, but names {inner!r:.40}.")
    return setting
