"""What Google documents about files for the Edge TPU, checked on a TFLite file's operators.

Source: coral.ai, "TensorFlow models on the Edge TPU", sections "Model requirements" and "Supported operations", as of
compiler 16 with runtime 14. `checks` says what is looked at and `unchecked` what is not; Google's compiler, which was
not at hand, may refuse more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Operator = Mapping[str, Any]
"""One operator as `hasten.stacks.litert.operators` describes it."""

_INT8 = {"INT8", "UINT8"}
_SOFTMAX_LIMIT = 16_000
# Per channel, and along which axis of the weights; weights of every other operator have one scale.
_CHANNEL_AXIS = {"CONV_2D": 0, "TRANSPOSE_CONV": 0, "DEPTHWISE_CONV_2D": 3}
_REDUCTIONS = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
_FREE = {
    "ADD",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "EXPAND_DIMS",
    "L2_NORMALIZATION",
    "LOGISTIC",
    "MAXIMUM",
    "MINIMUM",
    "MUL",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "RSQRT",
    "SLICE",
    "SPACE_TO_DEPTH",
    "SQUARED_DIFFERENCE",
    "SQUEEZE",
    "SUB",
    "TANH",
    "TRANSPOSE",
    "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
}


def broken(operators: Sequence[Operator]) -> list[str]:
    """What in the file breaks one of `checks`, in its order; empty if nothing does.

    An operator that breaks one stays on the host's processor, with everything after it.
    """
    found = []
    for index, operator in enumerate(operators):
        reasons = [*_tensors(operator), *_operator(operator)]
        found += [f"{operator['name']} (operator {index}): {reason}" for reason in reasons]
    return found


def checks() -> list[str]:
    """The constraints that `broken` looks at, as sentences."""
    return [
        "every operator is in the list of supported operations",
        "activations and weights are int8 or uint8, biases int32 and constant",
        "activations have one scale; weights of convolutions may have one per channel, others have one",
        "sizes of tensors are known when compiling",
        "only the three innermost dimensions of a tensor are larger than 1, so the batch is 1",
        "limits of single operators: dilation, fused activations, axes, strides, sizes",
    ]


def unchecked() -> list[str]:
    """What the page names and `broken` does not look at, as sentences."""
    return [
        "RESHAPE, RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR of sizes that the compiler may leave to the host: the "
        "page gives no numbers",
        "SQUEEZE of dimensions that are not the leading ones",
        "whether all operators form one piece: whatever follows the first one that cannot be mapped stays on the host",
    ]


def _tensors(operator: Operator) -> list[str]:
    reasons = []
    for place, tensor in enumerate([*operator["inputs"], *operator["outputs"]]):
        if tensor is None:
            continue
        shape, scales = tensor["shape"], tensor["scales"]
        if tensor["dynamic"]:
            reasons.append(f"tensor sizes must be known when compiling, but are {shape}")
        # The weights of a convolution have four dimensions of their own.
        if not tensor["constant"] and any(size > 1 for size in shape[:-3]):
            reasons.append(f"only the three innermost dimensions may be larger than 1, but the shape is {shape}")
        if tensor["type"] not in _INT8 and not (tensor["constant"] and tensor["type"] == "INT32"):
            kind = "constant" if tensor["constant"] else "tensor"
            reasons.append(f"a {kind} must be int8 or uint8 (int32 for constants), but is {tensor['type']}")
        if scales > 1 and not _may_have_channels(operator["name"], place, tensor):
            reasons.append(f"it must have one scale per tensor, but input {place} has {scales}")
    return reasons


def _may_have_channels(name: str, place: int, tensor: Mapping[str, Any]) -> bool:
    if not tensor["constant"] or name not in _CHANNEL_AXIS:
        return False
    return tensor["type"] == "INT32" or (place == 1 and tensor["axis"] == _CHANNEL_AXIS[name])


def _operator(operator: Operator) -> list[str]:
    name = operator["name"]
    if name in _LIMITS:
        reason = _LIMITS[name](operator)
    elif name in _REDUCTIONS:
        reason = _reduction(operator)
    elif name in _FREE:
        reason = ""
    else:
        reason = "the Edge TPU has no such operator"
    return [reason] if reason else []


def _fused(operator: Operator) -> str:
    return "no activation may be fused into it" if operator["options"].get("fusedActivationFunction") else ""


def _convolution(operator: Operator) -> str:
    height, width = (operator["options"].get(f"dilation{side}Factor", 1) for side in "HW")
    return "" if height == width else f"dilation must be the same in both directions, but is {height} and {width}"


def _concatenation(operator: Operator) -> str:
    constants = [tensor for tensor in operator["inputs"] if tensor["constant"]]
    if constants and (len(operator["inputs"]) != 2 or not all(tensor["zero"] for tensor in constants)):
        return "beside a constant there must be one other input, and the constant must be all zeros"
    return _fused(operator)


def _fully_connected(operator: Operator) -> str:
    if operator["options"].get("weightsFormat"):
        return "weights must be in the default format"
    (output,) = operator["outputs"]
    one = all(size == 1 for size in output["shape"][:-1])
    return "" if one else f"the output must have one dimension larger than 1, but its shape is {output['shape']}"


def _reduction(operator: Operator) -> str:
    shape = operator["inputs"][0]["shape"]
    axes = {axis % len(shape) for axis in operator["inputs"][1]["values"] or []}
    if 0 in axes:
        return "it must not reduce the batch"
    if operator["name"] == "MEAN" and len(shape) - 1 in axes and shape[-1] % 4:
        return f"a mean over the innermost dimension needs a multiple of 4, but it is {shape[-1]}"
    return ""


def _softmax(operator: Operator) -> str:
    shape = operator["inputs"][0]["shape"]
    if any(size > 1 for size in shape[:-1]) or shape[-1] > _SOFTMAX_LIMIT:
        return f"its input must have one dimension of at most {_SOFTMAX_LIMIT:,} elements, but its shape is {shape}"
    return ""


def _strided_slice(operator: Operator) -> str:
    options, strides = operator["options"], operator["inputs"][3]["values"] or []
    if set(strides) - {1} or options.get("ellipsisMask") or options.get("newAxisMask"):
        return f"strides must be 1 without ellipsis and new axes, but the strides are {strides}"
    return ""


def _prelu(operator: Operator) -> str:
    shape = operator["inputs"][1]["shape"]
    return f"its slope must have one dimension, but its shape is {shape}" if any(n > 1 for n in shape[:-1]) else ""


def _pad(operator: Operator) -> str:
    # Pairs of (before, after) for every dimension, in one row.
    values = operator["inputs"][1]["values"] or []
    return "it must not pad the batch" if any(values[:2]) else ""


def _pack(operator: Operator) -> str:
    return "" if operator["options"].get("axis") else "it must not pack along the batch"


def _split(operator: Operator) -> str:
    axis = operator["inputs"][0]["values"] or [0]
    return "" if axis[0] else "it must not split the batch"


_LIMITS: dict[str, Callable[[Operator], str]] = {
    "AVERAGE_POOL_2D": _fused,
    "MAX_POOL_2D": _fused,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _fully_connected,
    "SOFTMAX": _softmax,
    "STRIDED_SLICE": _strided_slice,
    "PRELU": _prelu,
    "PAD": _pad,
    "PACK": _pack,
    "SPLIT": _split,
}
