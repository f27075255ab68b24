"""Remove units from a captured graph, and run the original with them set to zero: the two sides of exactness."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Interpreter, Node

from hasten.errors import InvalidInput
from hasten.graph.capture import placeholders
from hasten.graph.channels import (
    AxesOfNode,
    Channels,
    Unit,
    all_axes,
    attribute,
    is_assertion,
    live_nodes,
    parameter_axes,
)
from hasten.graph.duplicate import duplicate, separate
from hasten.graph.relations import Axis


class Cut:
    """What removing `units` leaves of every axis."""

    def __init__(self, channels: Channels, units: Iterable[Unit]) -> None:
        self.channels = channels
        self.units = frozenset(unit.id for unit in units)
        self._masks: dict[bytes, NDArray[np.bool_]] = {}

    def removed(self, axis: Axis) -> NDArray[np.bool_]:
        """[n] True where a position goes."""
        key = axis.positions.tobytes()
        if key not in self._masks:
            self._masks[key] = self.channels.solution.removed(axis, self.units)
        return self._masks[key]

    def mask(self, axis: Axis) -> Tensor:
        """[n] bool, True where a position stays."""
        return torch.from_numpy(~self.removed(axis))

    def size(self, axis: Axis) -> int:
        """How many positions stay."""
        return axis.size - int(self.removed(axis).sum())

    def emptied(self) -> list[Axis]:
        """Axes of which nothing would stay."""
        return [axis for axis in all_axes(self.channels.axes) if self.size(axis) == 0]

    def touches(self, axes: AxesOfNode) -> bool:
        """Whether any of a node's axes loses positions."""
        each = axes if isinstance(axes, list) else [axes or ()]
        return any(not axis.is_frozen and self.removed(axis).any() for one in each for axis in one)


def remove(channels: Channels, units: Iterable[Unit]) -> GraphModule:
    """A copy of the analysed graph without `units`: parameters sliced, shape constants patched, shapes recomputed.

    The copy shares no parameters with the original. Its nodes keep their names.

    Raises:
        InvalidInput: Nothing would be left of some dimension.
    """
    cut = Cut(channels, units)
    if cut.emptied():
        raise InvalidInput(
            f"`units` must leave at least one position of every dimension, but these {len(cut.units)} would empty "
            f"{len(cut.emptied())} of them. Keep at least one unit of each group that shares a dimension."
        )
    # What is sliced is new anyway.
    result = duplicate(channels.graph, share_tensors=True)
    live = {node.name for node in live_nodes(result)}
    _slice_parameters(result, cut)
    for node in list(result.graph.nodes):
        if node.name in live and _is_touched(node, cut):
            for edit in channels.edits.get(node.name, []):
                edit(node, cut)
    _drop_dead(result, live)
    separate(result, channels.graph)
    refresh_shapes(result)
    return result


def run_masked(channels: Channels, units: Iterable[Unit], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The analysed graph's outputs with every value at a position that `units` would remove set to zero.

    This is the reference that `remove` is exact to, for units that are not approximate.
    """
    with torch.no_grad():
        flat = _Masked(channels, Cut(channels, units)).run(*inputs)
    return tuple(flat)


def zero_parameters(channels: Channels, units: Iterable[Unit]) -> GraphModule:
    """A copy of the analysed graph with the parameter slices of `units` set to zero, shapes as they were."""
    cut = Cut(channels, units)
    result = duplicate(channels.graph)
    with torch.no_grad():
        for path, axes in parameter_axes(channels).items():
            tensor = attribute(result, path)
            for dim, axis in enumerate(axes):
                gone = np.flatnonzero(cut.removed(axis))
                if len(gone):
                    tensor.index_fill_(dim, torch.from_numpy(gone), 0)
    return result


def refresh_shapes(graph: GraphModule) -> None:
    """Recompute `meta["val"]` of every node from those of the placeholders, symbolic batch size included."""
    values = [node.meta["val"] for node in placeholders(graph)]
    mode = next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)
    if mode is not None:
        with torch.no_grad():
            _Shapes(graph, mode).run(*values)
    graph.recompile()


def _is_touched(node: Node, cut: Cut) -> bool:
    axes = cut.channels.axes
    return any(cut.touches(axes.get(n.name)) for n in [node, *node.all_input_nodes])


def _slice_parameters(graph: GraphModule, cut: Cut) -> None:
    done: dict[int, Tensor] = {}
    for path, axes in parameter_axes(cut.channels).items():
        tensor = attribute(graph, path)
        if id(tensor) not in done:
            done[id(tensor)] = _sliced(tensor, axes, cut)
        module_path, _, name = path.rpartition(".")
        owner = attribute(graph, module_path) if module_path else graph
        if done[id(tensor)] is not tensor:
            _replace(owner, name, done[id(tensor)])


def _sliced(tensor: Tensor, axes: tuple[Axis, ...], cut: Cut) -> Tensor:
    data = tensor.detach()
    for dim, axis in enumerate(axes):
        if cut.size(axis) < axis.size:
            data = data.index_select(dim, torch.from_numpy(np.flatnonzero(~cut.removed(axis))).to(data.device))
    if data.shape == tensor.shape:
        return tensor
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data.contiguous(), requires_grad=tensor.requires_grad)
    return data.contiguous()


def _replace(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if name in owner._parameters:
        owner._parameters[name] = tensor  # type: ignore[assignment]
    elif name in owner._buffers:
        owner._buffers[name] = tensor
    else:
        setattr(owner, name, tensor)


def _drop_dead(graph: GraphModule, live: set[str]) -> None:
    """Drop what no output needs: it may name sizes that are gone."""
    for node in reversed(list(graph.graph.nodes)):
        dead = node.name not in live and not node.users
        if is_assertion(node) or (dead and node.op not in ("placeholder", "output")):
            graph.graph.erase_node(node)


class _Masked(Interpreter):
    """Runs a graph with zeros at removed positions of every tensor."""

    def __init__(self, channels: Channels, cut: Cut) -> None:
        super().__init__(channels.graph)
        self.cut = cut
        # The flat outputs are wanted, not the caller's structure.
        self.graph = channels.graph.graph

    def run(self, *args: Any, initial_env: Any = None, enable_io_processing: bool = False) -> Any:
        return super().run(*args, initial_env=initial_env, enable_io_processing=enable_io_processing)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        axes = self.cut.channels.axes.get(n.name)
        if not self.cut.touches(axes):
            return value
        if n.op == "get_attr":
            value = value.detach().clone()
        if isinstance(axes, list):
            return [self._zero(v, a) if isinstance(v, Tensor) else v for v, a in zip(value, axes, strict=True)]
        return self._zero(value, axes or ())

    def _zero(self, value: Tensor, axes: tuple[Axis, ...]) -> Tensor:
        """In place, so that an operator that writes through a view later still writes to its base."""
        if 0 in value.stride() or value.requires_grad:
            value = value.detach().clone()
        for dim, axis in enumerate(axes):
            gone = np.flatnonzero(self.cut.removed(axis))
            if len(gone):
                repeats = value.shape[dim] // axis.size
                gone = (gone[None, :] + axis.size * np.arange(repeats)[:, None]).reshape(-1)
                value.index_fill_(dim, torch.from_numpy(gone), 0)
        return value


class _Shapes(Interpreter):
    """Runs a graph on fake tensors and stores what every node gives."""

    def __init__(self, graph: GraphModule, mode: Any) -> None:
        super().__init__(graph)
        self.mode = mode

    def run(self, *args: Any, initial_env: Any = None, enable_io_processing: bool = False) -> Any:
        # Some operators' shapes are computed in Python, which needs its dispatcher for symbolic sizes.
        with enable_python_dispatcher(), self.mode:
            return super().run(*args, initial_env=initial_env, enable_io_processing=enable_io_processing)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "output" and (isinstance(value, Tensor) or "val" in n.meta):
            n.meta["val"] = value
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
