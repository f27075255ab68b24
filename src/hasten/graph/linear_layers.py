"""Write products with a weight as linear layers, so that whatever knows `aten.linear` knows them too.

`x @ w` and `addmm(b, x, w)` (GPT-2's Conv1D) compute a linear layer whose weight is stored as [in, out]. It is
transposed once, here, in place of a rule for each form in every technique and target.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from hasten.graph.parameters import tensor_of

aten = torch.ops.aten

_PRODUCTS = (aten.mm.default, aten.matmul.default)


@dataclass(frozen=True)
class _Product:
    """x times a weight, as the graph has it.

    Attributes:
        node: The product.
        weight: The `get_attr` node of the weight.
        turned: The transposition between the weight and the product, None if there is none.
        bias: The `get_attr` node of what is added, None if there is none.
    """

    node: Node
    weight: Node
    turned: Node | None
    bias: Node | None


def to_linear_layers(graph: GraphModule) -> int:
    """Replace products with a trained matrix by `aten.linear`, in place; returns how many were replaced.

    A weight keeps its name; it becomes [out, in] if it was [in, out]. A weight that is also read in another way stays
    as it is, and so do its products, as do products with buffers (a Fourier basis, a rotation), which are not trained.
    """
    found = [product for node in graph.graph.nodes if (product := _product(graph, node)) is not None]
    turnable = _read_only_by(graph, {product.node for product in found if product.turned is None})
    kept = [p for p in found if p.turned is not None or id(tensor_of(graph, p.weight)) in turnable]
    _turn(graph, {id(tensor_of(graph, p.weight)) for p in kept if p.turned is None})
    for product in kept:
        # What it multiplies may have been a product itself, and have been replaced.
        x = product.node.args[-2]
        arguments = (x, product.weight) + (() if product.bias is None else (product.bias,))
        with graph.graph.inserting_before(product.node):
            layer = graph.graph.call_function(aten.linear.default, arguments)
        layer.meta = dict(product.node.meta)
        product.node.replace_all_uses_with(layer)
        graph.graph.erase_node(product.node)
    if kept:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return len(kept)


def _product(graph: GraphModule, node: Node) -> _Product | None:
    if node.target in _PRODUCTS:
        x, weight, bias = node.args[0], node.args[1], None
    elif node.target is aten.addmm.default and not any(v != 1 for v in node.kwargs.values()):
        bias, x, weight = node.args[:3]
    else:
        return None
    turned = weight if isinstance(weight, Node) and _transposes(weight) else None
    source = weight if turned is None else turned.args[0]
    value = tensor_of(graph, source)
    if (
        not isinstance(value, nn.Parameter)
        or value.ndim != 2
        or not isinstance(x, Node)
        or not isinstance(source, Node)
    ):
        return None
    if tensor_of(graph, x) is not None or x.meta["val"].ndim < 2:
        return None
    if bias is None:
        return _Product(node, source, turned, None)
    added = tensor_of(graph, bias)
    outputs = value.shape[0 if turned is not None else 1]
    if added is None or not isinstance(bias, Node) or added.shape != (outputs,):
        return None
    return _Product(node, source, turned, bias)


def _transposes(node: Node) -> bool:
    """Whether `node` swaps the two axes of a matrix."""
    if node.target in (aten.t.default, aten.numpy_T.default):
        return True
    if node.target is aten.transpose.int:
        return {d % 2 for d in node.args[1:3]} == {0, 1}  # type: ignore[operator]
    return node.target is aten.permute.default and [d % 2 for d in node.args[1]] == [1, 0]  # type: ignore[operator, union-attr]


def _read_only_by(graph: GraphModule, readers: set[Node]) -> set[int]:
    """Identities of the tensors that nothing but `readers` reads, under whatever name."""
    values = {node: tensor_of(graph, node) for node in graph.graph.nodes if node.op == "get_attr"}
    elsewhere = {id(value) for node, value in values.items() if set(node.users) - readers}
    return {id(value) for value in values.values()} - elsewhere


def _turn(graph: GraphModule, weights: set[int]) -> None:
    """Transpose the parameters with these identities, each once, however many names it has."""
    new: dict[int, nn.Parameter] = {}
    for part in graph.modules():
        for name, value in part._parameters.items():
            if value is not None and id(value) in weights:
                if id(value) not in new:
                    new[id(value)] = nn.Parameter(value.detach().t().contiguous(), value.requires_grad)
                part._parameters[name] = new[id(value)]
