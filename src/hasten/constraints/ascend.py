"""What Huawei documents about ONNX files for Ascend processors, checked on a file, and the older form that it wants.

Sources, all of hiascend.com: CANN 8.0 commercial edition, "Operators supported by AI frameworks", list of ONNX
operators (ONNX 1.12.0, so operator set 17 at most); "ATC", "General restrictions" of the overview of its parameters.
"""

from typing import Any

OPSET = 17
"""The newest of ONNX 1.12.0, which CANN 8.0 names."""

# As ONNX spells them; what the list has beside ONNX's own operators is left out, since no exporter writes it.
_LISTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift Cast Ceil Celu Clip
Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Det Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GRU Hardmax HardSigmoid HardSwish Identity If InstanceNormalization
IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool LRN LSTM MatMul Max
MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg NonMaxSuppression NonZero Not
OneHot Or Pad Pow PRelu RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
Resize ReverseSequence RoiAlign Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_LISTED.split())

# Operator set 18 made an input of what was an attribute of these.
_REDUCTIONS = frozenset(name for name in OPERATORS if name.startswith("Reduce") and name != "ReduceSum")


def lowered(model: Any) -> Any:
    """The `onnx.ModelProto` of operator set 18 as one of set 17, changed in place; other sets are left as they are.

    Raises:
        ValueError: An operator of set 18 has no counterpart.
    """
    import onnx

    (main,) = (entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if main.version != 18:
        return model
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS:
            _lower_reduction(node, constants)
        elif node.op_type == "Split":
            # Without sizes, set 17 splits evenly into as many parts as there are outputs.
            _drop(node, "num_outputs")
    main.version = OPSET
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"no form of operator set {OPSET}: {str(error).splitlines()[0][:200]}") from error
    return model


def _lower_reduction(node: Any, constants: dict[str, Any]) -> None:
    """Axes as an attribute; without any, both sets reduce all of them, unless set 18 is told to do nothing."""
    import onnx

    if len(node.input) > 1:
        if node.input[1] not in constants:
            raise ValueError(f"{node.op_type} must have constant axes, but {node.name} computes them")
        axes = [int(axis) for axis in constants[node.input[1]].reshape(-1)]
        del node.input[1]
        if axes:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
    if _drop(node, "noop_with_empty_axes") and not any(entry.name == "axes" for entry in node.attribute):
        raise ValueError(f"{node.op_type} must reduce something, but {node.name} reduces nothing")


def _drop(node: Any, name: str) -> int:
    """Remove an integer attribute; its value, 0 without one."""
    value = next((int(entry.i) for entry in node.attribute if entry.name == name), 0)
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    return value


def broken(model: Any) -> list[str]:
    """What in an `onnx.ModelProto` breaks one of `checks`; empty if nothing does."""
    found = []
    for index, node in enumerate(model.graph.node):
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            found.append(f"{node.op_type} (operator {index}): it is not in CANN's list of ONNX operators")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    found += [f"the operator set must be at most {OPSET}, but is {v}" for v in versions if v > OPSET]
    for value in (*model.graph.input, *model.graph.output):
        sizes = [entry.dim_value for entry in value.type.tensor_type.shape.dim]
        if not all(sizes):
            found.append(f"every size must be known and above 0, but {value.name} has {sizes}")
    return found


def doubts(model: Any) -> list[str]:
    """What the documentation does not name, though it is said to work."""
    import onnx

    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in model.graph.input
    }
    return [
        f"inputs of ONNX files are documented as FLOAT, FLOAT16, or UINT8 by AIPP, but {name} is {kind}"
        for name, kind in kinds.items()
        if kind not in ("FLOAT", "FLOAT16", "UINT8")
    ]


def checks() -> list[str]:
    """The constraints that `broken` looks at, as sentences."""
    return [
        "every operator is in CANN's list of ONNX operators, by its name",
        f"the operator set is at most {OPSET}",
        "every size of inputs and outputs is known and above 0",
    ]


def unchecked() -> list[str]:
    """What is documented and not looked at, as sentences."""
    return [
        "the limits of single operators: ranks, types and attributes",
        "which of the operators a processor has: the list was stated for Atlas inference products",
    ]
