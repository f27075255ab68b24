"""Refit what is left after a cut, so that every layer answers again as it did before: no labels, no training.

He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks", section 3: least squares on the
feature maps that are left (3.1), layer after layer with the pruned network's inputs and the original's outputs (3.2),
residual branches aimed at what their sum lacks (3.3). Here for every convolution and linear layer whose input changed,
whatever was cut.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.channels import Channels, Unit
from hasten.graph.lockstep import Frontier, affordable
from hasten.graph.parameters import tensor_of
from hasten.graph.surgery import Cut
from hasten.pruning.least_squares import Fit, Moments, refit
from hasten.pruning.rows import MOST_INPUTS, Rows, reads_all_channels, rows_for
from hasten.task import Inputs

aten = torch.ops.aten

_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
_MEMORY_BYTES = 1e9
_SAME = 1e-5
_FAINTEST = 1e-2


@dataclass(frozen=True)
class _Layer:
    """A layer that can be refitted, and what follows it.

    Attributes:
        node: The convolution or linear layer.
        weight: Its weight, [outputs, inputs, *kernel], changed in place.
        bias: Its bias, or None.
        norm: The batch norm that alone reads it, or None.
        beside: Node that is added to the result (behind the norm), or None.
    """

    node: Node
    weight: Tensor
    bias: Tensor | None
    norm: "_Norm | None"
    beside: Node | None


@dataclass(frozen=True)
class _Norm:
    """An affine batch norm with running statistics; tensors are [channels], changed in place."""

    node: Node
    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float

    @property
    def slope(self) -> Tensor:
        """Output per input."""
        return self.scale / (self.variance + self.epsilon).sqrt()

    def become(self, mean: Tensor, variance: Tensor, slope: Tensor, at_mean: Tensor) -> None:
        """Have these statistics, and give `at_mean + slope * (x - mean)` nevertheless.

        Training divides by the statistics of the batch. With the true ones here, it starts from the same function.
        """
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.scale.copy_(slope * (variance + self.epsilon).sqrt())
        self.shift.copy_(at_mean)


@torch.no_grad()
def reconstruct(pruned: GraphModule, channels: Channels, units: Iterable[Unit], batches: Iterable[Inputs]) -> int:
    """Refit the layers of `pruned`, in place, to answer like those of the graph it was cut from.

    Convolutions of one group and linear layers whose input is no longer the original's are refitted one by one;
    a batch norm behind one takes up the shift and gets the statistics it now has, and where the result is added to
    something that is off already, the layer is aimed at the difference too. A batch norm behind anything else that
    changed is fitted channel by channel. Shared weights stay as they are.

    Args:
        pruned: From `remove(channels, units)`.
        channels: Of the graph before the cut.
        units: What was removed.
        batches: Inputs to look at; as many of the first as 1 GB holds.

    Returns:
        How many layers were refitted.
    """
    original = channels.graph
    kept = affordable(original, batches, _MEMORY_BYTES / 2)
    if not kept:
        return 0
    return _Walk(pruned, Cut(channels, units), Frontier(original, kept), Frontier(pruned, kept)).go()


class _Walk:
    """Both graphs side by side, from layer to layer."""

    def __init__(self, pruned: GraphModule, cut: Cut, old: Frontier, new: Frontier) -> None:
        self.graph, self.cut, self.old, self.new = pruned, cut, old, new
        self.sampled = Rows()
        # Tied tensors can have a node each.
        self.readers = Counter(id(tensor_of(pruned, node)) for node in new.nodes if node.op == "get_attr")

    def go(self) -> int:
        count = 0
        fitted: set[Node] = set()
        for node in self.new.nodes:
            if node.name not in self.old.names or not node.args or not isinstance(node.args[0], Node):
                continue
            layer, norm = self._layer(node), self._norm(node)
            if layer is None and (norm is None or node in fitted):
                continue
            self.old.before(node.name)
            self.new.before(node.name)
            if not self._changed(node.args[0], sliced=layer is None):
                continue
            if layer is not None:
                self._refit(layer)
                fitted |= set() if layer.norm is None else {layer.norm.node}
                count += 1
            elif norm is not None:
                self._rescale(norm)
        return count

    def _layer(self, node: Node) -> _Layer | None:
        if not reads_all_channels(node):
            return None
        weight = self._own(node.args[1])
        given = node.args[2] if len(node.args) > 2 else None
        bias = self._own(given)
        if weight is None or (given is not None and bias is None) or weight[0].numel() > MOST_INPUTS:
            return None
        (user, *others) = node.users or (None,)
        norm = self._norm(user) if isinstance(user, Node) and not others else None
        return _Layer(node, weight, bias, norm, self._beside(node if norm is None else norm.node))

    def _norm(self, node: Node) -> _Norm | None:
        if node.target is not aten.batch_norm.default:
            return None
        found = [self._own(argument) for argument in node.args[1:5]]
        if any(tensor is None for tensor in found):
            return None
        scale, shift, mean, variance = (tensor for tensor in found if tensor is not None)
        return _Norm(node, scale, shift, mean, variance, float(node.args[7]))  # type: ignore[arg-type]

    def _own(self, node: object) -> Tensor | None:
        """The floating point tensor of a `get_attr` node that nothing else reads."""
        tensor = tensor_of(self.graph, node)
        if tensor is None or not isinstance(node, Node) or len(node.users) != 1 or not tensor.is_floating_point():
            return None
        return tensor if self.readers[id(tensor)] == 1 else None

    def _beside(self, node: Node) -> Node | None:
        """What is added to `node`, if that is all that is done with it, in both graphs."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        terms = [term for term in user.args[:2] if isinstance(term, Node)]
        if user.target not in _ADDITIONS or user.kwargs or len(terms) != 2 or terms[0] is terms[1]:
            return None
        other = terms[1] if terms[0] is node else terms[0]
        return other if tuple(other.meta["val"].shape) == tuple(node.meta["val"].shape) else None

    def _changed(self, source: Node, *, sliced: bool) -> bool:
        """Whether a node's value for the first batch is not the original's, or if `sliced` not what is left of it."""
        if source.name not in self.old.names:
            return True
        old, new = self.old.value(0, source.name), self.new.value(0, source.name)
        old = self._left(source.name, old) if sliced else old
        if old.shape != new.shape:
            return True
        return bool((old - new).abs().max() > _SAME * old.abs().max())

    def _left(self, name: str, value: Tensor) -> Tensor:
        """A value of the original at the positions that are left."""
        axes = self.cut.channels.axes.get(name)
        for dim, axis in enumerate(axes if isinstance(axes, tuple) else ()):
            if not axis.is_frozen and self.cut.size(axis) < axis.size:
                stays = self.cut.mask(axis).repeat(value.shape[dim] // axis.size)
                value = value.index_select(dim, stays.nonzero().squeeze(1).to(value.device))
        return value

    def _refit(self, layer: _Layer) -> None:
        slope = torch.ones(len(layer.weight), device=layer.weight.device) if layer.norm is None else layer.norm.slope
        shifted = layer.norm is not None or layer.bias is not None
        halves = self._moments(layer, slope)
        before = layer.weight.flatten(1)
        fit = refit(before, *halves, slope, shifted=shifted)
        layer.weight.copy_(fit.weight.view_as(layer.weight))
        if layer.norm is not None:
            self._settle(layer.norm, layer.bias, fit, halves[0] + halves[1])
        elif layer.bias is not None:
            layer.bias.copy_(fit.shift)

    def _settle(self, norm: _Norm, bias: Tensor | None, fit: Fit, moments: Moments) -> None:
        """Let the norm behind a refitted layer take up the shift, with the statistics of the refitted output."""
        mean_z = moments.z / moments.rows
        spread = moments.zz / moments.rows - torch.outer(mean_z, mean_z)
        mean, variance = fit.weight @ mean_z, ((fit.weight @ spread) * fit.weight).sum(1).clamp_min(0)
        slope, offset, shift = (tensor.double().cpu() for tensor in (norm.slope, norm.mean, norm.shift))
        at_mean = shift + slope * (mean + fit.shift - offset)
        norm.become(mean if bias is None else mean + bias.double().cpu(), variance, slope, at_mean)

    def _moments(self, layer: _Layer, slope: Tensor) -> tuple[Moments, Moments]:
        """Of inputs and wanted outputs at some positions of every sample, of every other sample each."""
        source, name = layer.node.args[0], layer.node.name
        assert isinstance(source, Node)
        inputs, outputs = layer.weight[0].numel(), len(layer.weight)
        halves = Moments.zero(inputs, outputs), Moments.zero(inputs, outputs)
        wanted, seen = rows_for(inputs) / len(self.new), 0
        for batch, answer in enumerate(self.old.behind(name)):
            target = self._left(name, answer) + self._lacking(layer, batch, slope)
            z, y = self.sampled(layer.node, layer.weight, self.new.value(batch, source.name), target, wanted)
            if len(self.new) == len(z) == 1:  # a single sample: every other position
                z, y = z.movedim(0, 1), y.movedim(0, 1)
            for half in (0, 1):
                start = (half + seen) % 2
                halves[half].add(z[start::2].flatten(0, 1), y[start::2].flatten(0, 1))
            seen += len(z)
        return halves

    def _lacking(self, layer: _Layer, batch: int, slope: Tensor) -> Tensor | float:
        """What the layer's output would have to have more so that the sum behind it were the original's."""
        if layer.beside is None or layer.beside.name not in self.old.names:
            return 0.0
        name = layer.beside.name
        if not (self.old.known(name) and self.new.known(name)):
            return 0.0
        lacking: Tensor = self._left(name, self.old.value(batch, name)) - self.new.value(batch, name)
        faint = slope.abs() < _FAINTEST * slope.abs().max()
        factor = torch.where(faint, 0.0, 1 / torch.where(faint, 1.0, slope))
        channel = lacking.ndim - 1 if layer.node.target is aten.linear.default else 1
        return lacking * factor.view([-1 if dim == channel else 1 for dim in range(lacking.ndim)])

    def _rescale(self, norm: _Norm) -> None:
        """Fit scale and shift of a batch norm whose input changed, with the statistics it now has."""
        source, name = norm.node.args[0], norm.node.name
        assert isinstance(source, Node)
        sums = torch.zeros(4, len(norm.mean), dtype=torch.float64)
        rows = 0
        for batch, answer in enumerate(self.old.behind(name)):
            both = self.new.value(batch, source.name), self._left(name, answer)
            x, y = (v.double().movedim(1, 0).flatten(1).cpu() for v in both)
            sums += torch.stack([x.sum(1), y.sum(1), x.square().sum(1), (x * y).sum(1)])
            rows += x.shape[1]
        mean, answer, square, product = sums / rows
        variance, old = (square - mean.square()).clamp_min(0), norm.slope.double().cpu()
        slope = torch.where(variance > 0, (product - mean * answer) / variance.clamp_min(1e-30), old)
        norm.become(mean, variance, slope, answer)
