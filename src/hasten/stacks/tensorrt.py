"""TensorRT-RTX: an ONNX file to an engine for a named compute capability, without a GPU."""

from pathlib import Path
from typing import Any

from hasten.errors import Unsupported


def compile(folder: Path, capability: str, tf32: bool, sizes: list[int]) -> dict[str, Any]:
    """Turn `model.onnx` in `folder` into `model.engine`.

    Args:
        folder: See above.
        capability: Such as "8.9".
        tf32: Whether float products may round their operands to TF32.
        sizes: Smallest, usual and largest batch, where the file has a dynamic one.

    Returns:
        `bytes` of the engine, its `layers` before optimization, those of them that `quantize`, the
        names of `inputs` and `outputs` in their order, and the `tool`.

    Raises:
        Unsupported: TensorRT-RTX cannot read or build the network.
    """
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / "model.onnx")):
        raise Unsupported(f"TensorRT must be able to read every operator, but: {_reason(parser)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if any(-1 in tuple(value.shape) for value in inputs):
        profile = builder.create_optimization_profile()
        for value in inputs:
            profile.set_shape(value.name, *([size, *tuple(value.shape)[1:]] for size in sizes))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Unsupported("TensorRT must be able to build an engine of the network, but cannot; its log says why.")
    (folder / "model.engine").write_bytes(memoryview(engine))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return {
        "bytes": int(engine.nbytes),
        "layers": len(layers),
        "quantize": sum(layer.type == trt.LayerType.QUANTIZE for layer in layers),
        "inputs": [value.name for value in inputs],
        "outputs": [network.get_output(index).name for index in range(network.num_outputs)],
        "tool": f"tensorrt-rtx {trt.__version__}",
    }


def _reason(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors)[:400]
