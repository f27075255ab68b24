from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.attention import decompose_attention, decompose_without_heads
from hasten.graph.canonical import to_inference_form
from hasten.graph.capture import capture
from hasten.graph.fold_batch_norm import fold_batch_norm
from hasten.quantization.static import inference_form

aten = torch.ops.aten
attention = nn.functional.scaled_dot_product_attention


def targets(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def with_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 8)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 8, 8)),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False)), (2, 4, 8, 8)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 8, 8)),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (2, 5)),
    ],
)
def test_folding_batch_norm_keeps_the_function(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    graph = capture(with_statistics(model), (x,))
    reference = graph(x)
    assert fold_batch_norm(graph) == 1
    assert aten.batch_norm.default not in targets(graph)
    torch.testing.assert_close(graph(x), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_stays(model: nn.Module) -> None:
    x = torch.randn(2, 4, 8, 8)
    graph = capture(with_statistics(model), (x,))
    reference = graph(x)
    assert fold_batch_norm(graph) == 0
    torch.testing.assert_close(graph(x), reference)


class Shared(nn.Module):
    """One convolution before two batch norms: folding either into the shared weight would break the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.conv(self.a(self.conv(x))))
        return result


def test_a_shared_weight_is_folded_into_copies() -> None:
    x = torch.randn(2, 3, 6, 6)
    graph = capture(with_statistics(Shared()), (x,))
    reference = graph(x)
    assert fold_batch_norm(graph) == 2
    torch.testing.assert_close(graph(x), reference, rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = y * 2
        torch.relu_(y)
        return nn.functional.dropout(y, 0.5, self.training) + z


def test_in_place_operators_and_dropout_go_and_later_readers_see_the_change() -> None:
    x = torch.randn(4, 5)
    graph = capture(InPlace(), (x,))
    to_inference_form(graph)
    assert not any(str(t).split(".")[1].endswith("_") for t in targets(graph))
    torch.testing.assert_close(graph(x), (x + 1).relu() + (x + 1) * 2)


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        mask = None if self.causal else keep[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_its_parts_is_the_same_attention(causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    keep = torch.tensor([[True, True, True, False, False], [True] * 5])
    graph = capture(Attention(causal), (q, k, v, keep))
    reference = graph(q, k, v, keep)
    assert decompose_attention(graph) == 1
    assert aten.scaled_dot_product_attention.default not in targets(graph)
    torch.testing.assert_close(graph(q, k, v, keep), reference, rtol=1e-4, atol=1e-5)


PADDED = torch.tensor([[True, True, True, False, False], [True] * 5])
BIAS = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
PARTS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "scaled": (lambda q, k, v, m: attention(q, k, v, scale=0.7), 1),
    "a mask that is added": (lambda q, k, v, m: attention(q, k, v, BIAS.to(q)), 1),
    "rows before columns": (lambda q, k, v, m: attention(q[:, :, :3], k, v, is_causal=True), 1),
    "columns before rows": (lambda q, k, v, m: attention(q, k[:, :, :3], v[:, :, :3], is_causal=True), 1),
    "without heads": (lambda q, k, v, m: attention(q[:, 0], k[:, 0], v[:, 0], scale=0.3), 1),
    "two with one mask": (lambda q, k, v, m: attention(attention(q, k, v, m), k, v, m), 2),
    "grouped queries": (lambda q, k, v, m: attention(q, k[:, :1], v[:, :1], enable_gqa=True), 0),
    "dropout": (lambda q, k, v, m: attention(q, k, v, dropout_p=0.5), 0),
}


@pytest.mark.parametrize("name", PARTS)
def test_attention_of_every_kind_is_taken_apart_or_left(name: str) -> None:
    function, parts = PARTS[name]

    class Net(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
            return function(q, k, v, keep[:, None, None, :])

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    graph = capture(Net(), (q, k, v, PADDED))
    torch.manual_seed(1)
    reference = graph(q, k, v, PADDED)
    kept = sum(n.target is aten.scaled_dot_product_attention.default for n in graph.graph.nodes)
    assert decompose_attention(graph) == parts
    left = sum(n.target is aten.scaled_dot_product_attention.default for n in graph.graph.nodes)
    assert left == kept - parts
    torch.manual_seed(1)
    torch.testing.assert_close(graph(q, k, v, PADDED), reference, rtol=1e-4, atol=1e-5)
    # Every layer masks alike: flags become numbers once.
    assert sum(n.target is aten.where.Scalar for n in graph.graph.nodes) == (name == "two with one mask")


@pytest.mark.parametrize("heads", [True, False])
def test_only_attention_without_heads_is_taken_apart_for_onnx(heads: bool) -> None:
    class Net(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            q = attention(q, q, q)
            return q if heads else attention(q[:, 0], q[:, 0], q[:, 0])

    graph = capture(Net(), (torch.randn(2, 3, 5, 8),))
    changed = decompose_without_heads(graph)
    assert (changed is graph) == heads
    assert [n.target for n in changed.graph.nodes].count(aten.scaled_dot_product_attention.default) == 1
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(changed(x), graph(x), rtol=1e-4, atol=1e-5)


class Writes(nn.Module):
    """Writes to a tensor that others see through views of it."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.case == "assigned":
            y = y.clone()
            y[:, 0] = 0
            return y
        if self.case == "part":
            part = y[:, :2]
            part += 1
            part.relu_()
            return torch.cat([y, part], 1)
        if self.case == "whole":
            other = y.view(-1, 2, 3)
            y.relu_()
            return other.sum(1) + y[:, :3]
        if self.case == "a view alone":
            return y.view(-1, 2, 3).relu_() + 1
        return torch.relu_(y) * 2


@pytest.mark.parametrize("case", ["assigned", "part", "whole", "a view alone", "plain"])
def test_what_is_written_is_seen_through_every_view(case: str) -> None:
    model, x = Writes(case).eval(), torch.randn(4, 6)
    graph = inference_form(capture(model, (x,)), (x,))
    assert torch.equal(graph(x), model(x))
    for target in targets(graph):
        assert not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
    ],
)
def test_norms_with_and_without_running_statistics(norm: nn.Module) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(inference_form(capture(model, (x,)), (x,))(x), model(x))
