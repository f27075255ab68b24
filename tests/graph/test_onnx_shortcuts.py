"""Decomposing only what must be gives the ONNX file that decomposing everything gives."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hasten.graph import onnx as writer
from hasten.graph import onnx_shortcuts
from hasten.graph.capture import capture
from hasten.graph.onnx import write_onnx


class Composites(nn.Module):
    """Operators that ONNX's exporter knows none of, one of them with two results, and one as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.attention = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.hardswish(self.norm(self.conv(x)))
        tokens = nn.functional.adaptive_avg_pool2d(y, 3).flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens)
        values, _ = attended.max(1)
        return values.reshape(-1, 4), torch.var(y, (2, 3)).flatten(1)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 1
        y[:, 1:].relu_()
        return y.flatten(1)


class Identity(nn.Module):
    """Nothing but an input that comes back, by way of something that is decomposed to nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.dropout(x, 0.5, self.training), x.flatten(1)


def _write(model: nn.Module, x: Tensor, path: Path) -> Counter[str]:
    write_onnx(capture(model.eval(), (x,)), (x,), path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _run(path: Path, x: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return found


@pytest.mark.parametrize("model", [Composites(), InPlace(), Identity()], ids=lambda m: type(m).__name__)
def test_the_same_file_as_tracing_everything(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 9, 9)
    found = _write(model, x, tmp_path / "short.onnx")
    monkeypatch.setattr(writer, "decompose_by_node", lambda program: program)
    assert found == _write(model, x, tmp_path / "long.onnx")
    more = torch.randn(5, 3, 9, 9)
    for ours, theirs, expected in zip(
        _run(tmp_path / "short.onnx", more), _run(tmp_path / "long.onnx", more), _outputs(model, more), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def _outputs(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        out = model(x)
    return [y.numpy() for y in (out if isinstance(out, tuple) else (out,))]


@pytest.mark.parametrize(("model", "whole"), [(Composites(), False), (InPlace(), True)])
def test_what_writes_in_place_is_traced_as_a_whole(
    model: nn.Module, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_decompositions(self: ExportedProgram, table: object) -> ExportedProgram:
        asked.append(table)
        return self

    program = torch.export.export(model.eval(), (torch.randn(2, 3, 9, 9),), strict=False)
    monkeypatch.setattr(ExportedProgram, "run_decompositions", run_decompositions)
    onnx_shortcuts.decompose_by_node(program).run_decompositions({})
    assert bool(asked) == whole


def test_the_exporter_of_others_is_left_as_it_is() -> None:
    from torch.onnx._internal.exporter import _decomp
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    before = vars(ONNXRegistry)["from_torchlib"], _decomp.create_onnx_friendly_decomposition_table
    with onnx_shortcuts.remembered_operators():
        assert ONNXRegistry().from_torchlib(opset_version=18) is ONNXRegistry.from_torchlib(opset_version=18)
    assert before == (vars(ONNXRegistry)["from_torchlib"], _decomp.create_onnx_friendly_decomposition_table)


def test_operators_of_a_library_imported_later_are_found() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with onnx_shortcuts.remembered_operators():
        before = ONNXRegistry.from_torchlib(opset_version=18)
    library = torch.library.Library("hasten_test_shortcuts", "DEF")
    library.define("nothing(Tensor x) -> Tensor")
    with onnx_shortcuts.remembered_operators():
        assert ONNXRegistry.from_torchlib(opset_version=18) is not before
