"""Attention of any number of dimensions as ONNX, in ONNX Runtime and OpenVINO against the graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.graph.attention import decompose_without_heads
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.task import Task

aten = torch.ops.aten
WIDTH, TOKENS = 8, 6
MASKS = {
    "none": None,
    "flags": torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(),
    "numbers": torch.arange(TOKENS * TOKENS).reshape(TOKENS, TOKENS) / 10,
}


class Attention(nn.Module):
    """Over x [N, *leading, TOKENS, 3 WIDTH] without heads: query, key and value are its thirds."""

    mask: Tensor | None

    def __init__(self, mask: str = "none", causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.register_buffer("mask", MASKS[mask])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask, is_causal=self.causal)


class Shared(nn.Module):
    """Query, key and value are one tensor, which something else reads too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.scaled_dot_product_attention(x, x, x, scale=0.3)


def _check(model: nn.Module, x: Tensor, folder: Path) -> None:
    graph = capture(model.eval(), (x,))
    task = Task(model=model, example=(x,), holdout=[x])
    expected = model(x).numpy()
    for name in ("onnxruntime", "openvino"):
        target = make_target(name, {"threads": 1})
        if target.missing():
            continue
        (folder / name).mkdir()
        target.compile(graph, task, folder / name)
        (found,) = target.load(folder / name)(x.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "model",
    [Attention(), Attention("flags"), Attention("numbers"), Attention(causal=True), Shared()],
    ids=["plain", "flags", "numbers", "causal", "shared"],
)
@pytest.mark.parametrize("leading", [(), (2, 3)], ids=["3-d", "5-d"])
def test_attention_of_any_rank_is_written(model: nn.Module, leading: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    _check(model, torch.randn(3, *leading, TOKENS, 3 * WIDTH), tmp_path)


def test_attention_with_heads_is_left_alone() -> None:
    graph = capture(Attention(), (torch.randn(2, 3, TOKENS, 3 * WIDTH),))
    assert decompose_without_heads(graph) is graph
    single = capture(Attention(), (torch.randn(2, TOKENS, 3 * WIDTH),))
    assert aten.softmax.int in {n.target for n in decompose_without_heads(single).graph.nodes}
    assert aten.softmax.int not in {n.target for n in single.graph.nodes}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_weights_beyond_protobuf_s_limit_go_beside_the_file(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.graph.onnx._PROTOBUF_LIMIT_BYTES", 0)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    task = Task(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval(), (x,), holdout=[(x, None)])
    graph = make_technique("quantize", {"samples": 2}).apply(capture(task.model, task.example), task)
    make_target(target).compile(graph, task, tmp_path)
    (found,) = make_target(target).load(tmp_path)(x.numpy())
    np.testing.assert_allclose(found, graph(x).detach().numpy(), atol=0.02)
