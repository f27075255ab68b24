"""Where a target wants quantize/dequantize nodes, so that its integer kernels apply. Imports no torch.

The same network takes several times longer with the wrong placement, because a runtime that cannot fuse a pattern
runs it in float between conversions. A target names its placement; `Quantize` follows it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What the integer kernels of a runtime look like.

    Attributes:
        fused: Activations that a convolution's kernel applies before it rounds its output.
        convolution_rounds: Whether a convolution must end in a quantize node to run on integers. False: it rounds
            only where an integer operator follows.
        zero_point: Zero points of activations that take both signs. "free": asymmetric, any of them. "middle":
            symmetric, for kernels without a zero-point correction. "signed": symmetric int8 for every activation, also
            one that is never negative, for compilers that know no other; it loses a bit there.
        adds_unrounded: Whether a convolution's kernel adds the other operand of a residual addition to its sums, and
            rounds only the result: a quantize node between the two would be in the graph, but not in the kernel.
        dynamic: Whether linear layers may read activations that are rounded as they come.
        attention: Whether products of two activations (query x key, weights x value) run on integers.
    """

    fused: frozenset[str]
    convolution_rounds: bool
    zero_point: str = "free"
    adds_unrounded: bool = False
    dynamic: bool = False
    attention: bool = False


_CLAMPS = frozenset({"relu", "hardtanh", "relu6", "clamp", "clamp_min"})
_SMOOTH = frozenset({"hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "elu", "leaky_relu", "tanh", "mish"})

PLACEMENTS = {
    # ONNX Runtime: QLinearConv ends in integers and clamps by its range. Attention in float is faster on CPUs than
    # rounding its scores, and loses nothing.
    "fuse_clamps": Placement(_CLAMPS, convolution_rounds=True, dynamic=True),
    # OpenVINO: any activation, and a residual addition, runs as a post-operation of the convolution before it rounds.
    "fuse_activations": Placement(_CLAMPS | _SMOOTH, convolution_rounds=False, adds_unrounded=True, dynamic=True),
    # Accelerators without zero-point correction, with everything that can be integer.
    "symmetric": Placement(_CLAMPS, convolution_rounds=True, zero_point="middle", attention=True),
    # TensorRT: activations are int8 with zero point 0, whatever their sign.
    "signed": Placement(_CLAMPS, convolution_rounds=False, zero_point="signed"),
}
"""Placements by what they stand for: the values of a target's `placement` and of the option `Quantize.placement`."""

OBSERVER_NAMES = ("min_max", "percentile", "mse", "entropy", "moving_average")
"""Names of `observers.OBSERVERS`, stated here so that options can be read without torch."""

ROUNDING_NAMES = ("gptq", "adaround", "nearest")
"""Names of `layerwise.ROUNDINGS`."""
