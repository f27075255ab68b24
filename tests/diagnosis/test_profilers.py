"""Profilers take off no more than by which they lengthened the call, and count nothing that runs once."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from hasten.diagnosis.probes import write_chain
from hasten.diagnosis.profilers import eager, onnxruntime, openvino
from hasten.targets.openvino import OpenVino


def _record(plain_us: float, profiled_us: float) -> Any:
    return onnxruntime._Record([], plain_us, profiled_us, 10)


@pytest.mark.parametrize(
    ("recorded_us", "plain_us", "profiled_us", "factor"),
    [
        (100.0, 100.0, 130.0, 1.0),  # the chain's cost fits between
        (140.0, 100.0, 160.0, 2.0),  # the durations hold more
        (140.0, 100.0, 125.0, 1.25),  # but not more than the call was lengthened by
        (100.0, 100.0, 110.0, 0.5),  # the chain was disturbed: less than it said
        (100.0, 100.0, 90.0, 0.0),
    ],
)
def test_recording_costs_what_was_seen(recorded_us: float, plain_us: float, profiled_us: float, factor: float) -> None:
    assert onnxruntime._factor(_record(plain_us, profiled_us), recorded_us, 20.0) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("clocked_us", "plain_us", "profiled_us", "share"),
    [(90.0, 100.0, 120.0, 0.0), (125.0, 100.0, 130.0, 0.2), (125.0, 100.0, 110.0, 0.08), (125.0, 100.0, 90.0, 0.0)],
)
def test_eager_nodes_are_as_long_as_in_a_plain_call(
    clocked_us: float, plain_us: float, profiled_us: float, share: float
) -> None:
    assert eager._longer(clocked_us, plain_us, profiled_us) == pytest.approx(share)


def test_operations_on_constants_alone_are_not_part_of_a_call() -> None:
    x = ov.opset13.parameter([1, 64], np.float32)
    weights = ov.opset13.convert(ov.opset13.constant(np.ones((64, 64), np.int8)), np.float32)
    scaled = ov.opset13.multiply(weights, ov.opset13.constant(np.full((64, 64), 0.5, np.float32)))
    graph = ov.opset13.softmax(ov.opset13.matmul(x, ov.opset13.exp(scaled), False, False), 1)
    compiled = ov.Core().compile_model(ov.Model([graph], [x]), "CPU")
    kept = openvino._of_calls(compiled.get_runtime_model().get_ordered_ops())
    kinds = {openvino._info(operation)["layerType"] for operation in kept}
    assert {"Input", "Softmax", "Output"} <= kinds
    assert not kinds & {"Const", "Convert"}


def test_a_node_of_openvino_includes_its_start(tmp_path: Path) -> None:
    shape = write_chain(4, tmp_path / "model.onnx", parallel=True)
    ov.save_model(ov.convert_model(tmp_path / "model.onnx"), tmp_path / "model.xml", compress_to_fp16=False)
    found = openvino.profile(OpenVino(threads=1), tmp_path, [np.ones(shape, np.float32)], 0.3)
    assert [node.kind for node in found.nodes].count("Convolution") == 4
    assert found.sum_us > 0.5 * found.plain_us
