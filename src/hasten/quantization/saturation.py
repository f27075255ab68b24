"""Find graphs whose 8-bit products would saturate on this CPU, and say what helps."""

import warnings

from torch import Tensor
from torch.fx import GraphModule

from hasten.machine import cpu_saturates_int8
from hasten.quantization.stored import stored

# Two products of 255 with integers up to 64 stay below 2**15.
_SAFE_WEIGHT = 64


class SaturationWarning(UserWarning):
    """8-bit products may saturate on this CPU."""


def warn_of_saturation(graph: GraphModule) -> None:
    """Warn if this CPU adds u8 x s8 products in 16 bits and integer layers of `graph` have weights that overflow it."""
    if not cpu_saturates_int8():
        return
    layers = saturating_layers(graph)
    if layers:
        warnings.warn(
            f"This CPU has no VNNI: it adds pairs of 8-bit products in 16 bits, and {len(layers)} layers "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}) have weights large enough to saturate. "
            "Quantize with `weight_bits=7`, which cannot.",
            SaturationWarning,
            stacklevel=3,
        )


def saturating_layers(graph: GraphModule) -> list[str]:
    """Names of layers with integer inputs whose weights alone allow a pair of products beyond 16 bits."""
    found = []
    for node in graph.graph.nodes:
        if len(node.args) < 2 or "dequantize_per_tensor" not in str(getattr(node.args[0], "target", "")):
            continue
        weight = stored(graph, node.args[1])
        if weight is None:
            continue
        rows = weight.integers.reshape(weight.shape[0], -1).int()
        # u8 inputs reach 255, so of a pair only weights of one sign add up.
        above, below = rows.clamp(min=0), rows.clamp(max=0)
        largest = max(_largest_pair(above), _largest_pair(-below))
        if largest > 2 * _SAFE_WEIGHT:
            found.append(node.name)
    return found


def _largest_pair(rows: Tensor) -> int:
    """Whatever order a kernel adds channels in, no pair is above the sum of a row's two largest integers."""
    return int(rows.topk(min(2, rows.shape[1]), dim=1).values.sum(1).max())
