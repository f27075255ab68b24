"""Runtimes in environments of their own, where they are installed: what is quantized runs on integers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten import judged
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.signed import signed_integers, unrounded_weights_to_float
from hasten.recipe import make_target, make_technique
from hasten.task import Task


def quantized() -> tuple[torch.fx.GraphModule, Task]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(3, 3, 8, 8)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(3, dtype=torch.int64))])
    return make_technique("quantize", {"placement": "fuse_clamps"}).apply(capture(model, (x,)), task), task


def test_signed_integers_change_no_number() -> None:
    graph, task = quantized()
    signed = signed_integers(graph)
    dtypes = {n.args[5] for n in signed.graph.nodes if ".quantize_per_tensor" in str(n.target)}
    assert dtypes == {torch.int8}
    calls = [n for n in signed.graph.nodes if n.op == "call_function"]
    stored = {n.args[-1] for n in calls if "dequantize_per_channel" in str(n.target)}
    assert stored == {torch.int8}
    with torch.no_grad():
        assert torch.equal(signed(*task.example), graph(*task.example))
        # The linear layer at the end is not rounded.
        assert unrounded_weights_to_float(signed) == 1
        assert torch.equal(signed(*task.example), graph(*task.example))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.stack(n)) for n in ("executorch", "iree")])
def test_a_quantized_graph_runs_in_pieces_of_another_size(name: str, tmp_path: Path) -> None:
    target = make_target(name, {"batch": 2})
    graph, task = quantized()
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    target.compile(graph, task, tmp_path)
    (found,) = target.load(tmp_path)(task.example[0].numpy())
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    if name == "executorch":
        # One subgraph and nothing around it: no layer fell back to a portable kernel.
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["delegated"], report["left"]) == (1, {})


@pytest.mark.stack("litert", "ethos_u")
def test_vela_puts_every_operator_on_the_accelerator_and_states_its_cost(tmp_path: Path) -> None:
    target = make_target("ethos_u", {"samples": 3})
    graph, task = quantized()
    with pytest.raises(Unsupported, match="Leave out Quantize"):
        target.compile(graph, task, tmp_path)
    target.compile(capture(task.model, task.example), task, tmp_path)
    found = judged.read(tmp_path)
    assert found["npu_share"] == 1.0
    assert found["cycles"] > 0
    # 8 x 3 x 3 x 3 + 4 x 8 weights, encoded.
    assert 100 < found["weight_bytes"] < 2000
    assert (tmp_path / "model_vela.tflite").stat().st_size > 100
