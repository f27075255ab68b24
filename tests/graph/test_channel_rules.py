"""Every operator's rule on a network of its own: how many units there are, and that each goes exactly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.graph.channels import find_channels
from hasten.graph.surgery import remove, run_masked

IMAGES, TOKENS = (2, 3, 8, 8), (2, 4, 5)
GRID = torch.rand(1, 5, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
Case = tuple[nn.Module, tuple[int, ...]]


class Between(nn.Module):
    """A layer, an operator, and a layer that reads what it gives."""

    def __init__(
        self, before: nn.Module, operator: Callable[..., Any], after: nn.Module, *sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.before, self.operator, self.after = before, operator, after
        self.own = nn.ParameterList([nn.Parameter(torch.randn(*size)) for size in sizes])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operator(self.before(x), *self.own))
        return y


def image(operator: Callable[..., Any], after: nn.Module | None = None, filters: int = 6) -> Case:
    return Between(nn.Conv2d(3, filters, 3, padding=1), operator, after or nn.Conv2d(filters, 4, 1)), IMAGES


def tokens(operator: Callable[..., Any], width: int, *sizes: tuple[int, ...]) -> Case:
    return Between(nn.Linear(5, 6), operator, nn.Linear(width, 3), *sizes), TOKENS


def sampled(y: Tensor) -> Tensor:
    return F.grid_sample(y, GRID.to(y.dtype).expand(y.shape[0], -1, -1, -1), align_corners=False)


# (network and shape of its input, units that go exactly, units that go approximately)
CASES: dict[str, tuple[Case, int, int]] = {
    "interpolate, nearest": (image(lambda y: F.interpolate(y, scale_factor=2)), 6, 0),
    "interpolate, bilinear": (image(lambda y: F.interpolate(y, size=5, mode="bilinear")), 6, 0),
    "max pool with indices": (image(lambda y: F.max_pool2d(y, 2, return_indices=True)[0]), 6, 0),
    "reflection padding": (image(lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect")), 6, 0),
    "grid sample": (image(sampled), 6, 0),
    "im2col": (image(lambda y: F.unfold(y, 2), nn.Conv1d(24, 4, 1)), 6, 0),
    "col2im": (image(lambda y: F.fold(y.flatten(2), (9, 9), 2), nn.Conv2d(6, 4, 1), filters=24), 6, 0),
    "windows": (image(lambda y: y.unfold(2, 2, 2).sum(-1)), 6, 0),
    "glu": (image(lambda y: F.glu(y, 1), nn.Conv2d(3, 4, 1)), 3, 0),
    "maximum of two": (image(lambda y: torch.max(y, y * 2)), 6, 0),
    "largest of all channels": (image(lambda y: y.amax(1, keepdim=True), nn.Conv2d(1, 4, 1)), 0, 6),
    "largest with its index": (image(lambda y: y.max(1, keepdim=True)[0], nn.Conv2d(1, 4, 1)), 0, 0),
    "sorted rows": (image(lambda y: y.sort(2)[0]), 6, 0),
    "sorted channels": (image(lambda y: y.sort(1)[0]), 0, 0),
    "four best rows": (image(lambda y: y.topk(4, 2)[0]), 6, 0),
    "softmax of columns": (image(lambda y: y.softmax(3)), 6, 0),
    "softmax of channels": (image(lambda y: y.softmax(1)), 0, 0),
    "variance and mean of places": (image(lambda y: sum(torch.var_mean(y, (2, 3), keepdim=True))), 6, 0),
    "variance and mean of channels": (
        image(lambda y: sum(torch.var_mean(y, 1, keepdim=True)), nn.Conv2d(1, 4, 1)), 0, 6),
    "mean of channels": (image(lambda y: y.mean(1, keepdim=True), nn.Conv2d(1, 4, 1)), 6, 0),
    "length of channels": (image(lambda y: torch.linalg.vector_norm(y, 2, 1, True), nn.Conv2d(1, 4, 1)), 6, 0),
    "largest size of channels": (
        image(lambda y: torch.linalg.vector_norm(y, float("inf"), 1, True), nn.Conv2d(1, 4, 1)), 0, 6),
    "one group": (image(nn.GroupNorm(1, 6)), 0, 6),
    "two groups": (image(nn.GroupNorm(2, 6)), 2, 3),
    "a group per channel": (image(nn.GroupNorm(6, 6)), 6, 0),
    "a slope per channel": (image(nn.PReLU(6)), 6, 0),
    "one slope": (image(nn.PReLU()), 6, 0),
    "moved dimension": (image(lambda y: y.movedim(1, -1), nn.Linear(6, 4)), 6, 0),
    "moved dimensions": (image(lambda y: y.movedim((1, 2), (3, 1)), nn.Linear(6, 4)), 6, 0),
    "pixel shuffle": (image(lambda y: F.pixel_shuffle(y, 2), nn.Conv2d(2, 4, 1), filters=8), 2, 0),
    "pixel unshuffle": (image(lambda y: F.pixel_unshuffle(y, 2), nn.Conv2d(24, 4, 1)), 6, 0),
    "channel shuffle": (image(lambda y: F.channel_shuffle(y, 2)), 5, 0),
    "repeated channels": (image(lambda y: y.repeat(1, 2, 1, 1), nn.Conv2d(12, 4, 1)), 6, 0),
    "channels repeated in place": (image(lambda y: y.repeat_interleave(2, 1), nn.Conv2d(12, 4, 1)), 6, 0),
    "tiled with more dimensions": (image(lambda y: y.mean((2, 3)).tile(3, 1, 1), nn.Linear(6, 4)), 6, 0),
    "expanded like another": (image(lambda y: y.mean((2, 3), keepdim=True).expand_as(y) + y), 6, 0),
    "stacked": (image(lambda y: torch.stack([y, y * 2], 2).sum(2)), 6, 0),
    "uneven parts": (image(lambda y: torch.cat(torch.tensor_split(y, 4, 1)[::-1], 1)), 4, 0),
    "narrowed": (image(lambda y: y.narrow(1, 1, 4), nn.Conv2d(4, 4, 1)), 6, 0),
    "cut at a symbolic row": (image(lambda y: y[:, :, : y.shape[0]]), 6, 0),
    "cut at a symbolic channel": (image(lambda y: y[:, : y.shape[0]].sum(1, keepdim=True), nn.Conv2d(1, 4, 1)), 0, 0),
    "every second": (image(lambda y: y[:, ::2], nn.Conv2d(3, 4, 1)), 0, 0),
    "taken apart": (image(lambda y: sum(y.unbind(1)), nn.Conv1d(8, 4, 1)), 0, 0),
    "one channel": (image(lambda y: y[:, 1], nn.Conv1d(8, 4, 1)), 0, 0),
    "picked rows": (image(lambda y: y[:, :, torch.tensor([1, 0, 5])]), 6, 0),
    "picked channels": (image(lambda y: y.index_select(1, torch.tensor([1, 0, 5])), nn.Conv2d(3, 4, 1)), 0, 0),
    "gathered columns": (image(lambda y: y.gather(3, (y.detach() * 0).long())), 6, 0),
    "rolled rows": (image(lambda y: y.roll(1, 2)), 6, 0),
    "flipped channels": (image(lambda y: y.flip(1)), 0, 0),
    "a column at the end": (image(lambda y: F.pad(y, (0, 1))), 6, 0),
    "a column at the start": (image(lambda y: F.pad(y, (1, 0))), 6, 0),
    "a channel at the end": (image(lambda y: F.pad(y, (0, 0, 0, 0, 0, 1)), nn.Conv2d(7, 4, 1)), 6, 0),
    "padded channels": (image(lambda y: F.pad(y, (0, 0, 0, 0, 2, 1)), nn.Conv2d(9, 4, 1)), 6, 0),
    "times a vector": (tokens(lambda y, v: y @ v, 4, (6,)), 6, 0),
    "a vector times": (tokens(lambda y, v: v @ y, 6, (4,)), 6, 0),
    "times a matrix": (tokens(lambda y, w: y @ w, 7, (6, 7)), 13, 0),
    "a matrix times": (tokens(lambda y, w: (w @ y).mT, 7, (7, 4)), 7, 0),
    "product of vectors": (tokens(lambda y, v, w: y * torch.dot(v, w), 6, (7,), (7,)), 6, 0),
    "outer product": (tokens(lambda y, v, w: y @ torch.outer(v, w), 7, (6,), (7,)), 13, 0),
    "einsum": (tokens(lambda y, w: torch.einsum("btc,co->bto", y, w), 7, (6, 7)), 13, 0),
    "einsum with a trace": (tokens(lambda y, w: torch.einsum("btc,cc->btc", y, w), 6, (6, 6)), 0, 0),
    "batched products and a sum": (tokens(lambda y, b: torch.baddbmm(b, y, y.mT), 4, (1, 1, 4)), 6, 0),
    "bilinear form": (tokens(lambda y, w, b: F.bilinear(y, y * 2, w, b), 7, (7, 6, 6), (7,)), 13, 0),
    "square root of a mean": (tokens(lambda y: y * y.square().mean(-1, keepdim=True).rsqrt(), 6), 6, 0),
    "attention without heads": (tokens(lambda y: F.scaled_dot_product_attention(y, y, y), 6), 6, 0),
    "instance normalisation over units": (tokens(lambda y: F.instance_norm(y), 6), 0, 6),
    "grid of three": (
        tokens(lambda y, v: y + torch.meshgrid(v, v[:4], v[:2], indexing="xy")[0].sum(2), 6, (6,)), 0, 0
    ),
    "grid of numbers": (tokens(lambda y, v: y + torch.meshgrid(v, v[:4], indexing="xy")[0], 6, (6,)), 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_units_are_counted_and_go_exactly(name: str) -> None:
    (model, shape), exact, approximate = CASES[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator)
    channels = find_channels(capture(model.double(), (x.double(),)))
    assert bool(channels.uncovered) == (name == "einsum with a trace")
    found = [u for group in channels.groups if not group.approximate for u in group.units]
    assert len(found) == exact
    assert sum(len(group.units) for group in channels.groups if group.approximate) == approximate
    x = torch.randn(3, *shape[1:], generator=generator).double()
    changed = []
    for unit in found:
        cut, masked = remove(channels, [unit])(x), run_masked(channels, [unit], (x,))[0]
        torch.testing.assert_close(cut, masked, rtol=1e-9, atol=1e-9)
        changed.append(not torch.equal(cut, channels.graph(x)))
    assert any(changed) or not changed


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("a matrix times", [1]),
        ("einsum", [2]),
        ("bilinear form", [2, 2]),
        ("times a vector", []),
        ("batched products and a sum", []),
    ],
)
def test_what_parameters_contract_is_told(name: str, dims: list[int]) -> None:
    """Besides the two layers', of which `before` reads the input and `after` what the operator gives."""
    (model, shape), _, _ = CASES[name]
    channels = find_channels(capture(model.float(), (torch.randn(*shape),)))
    inner = [reads for call, reads in channels.weighted.items() if not call.startswith("linear")]
    found = [(source.meta["val"].shape[dim], dim) for reads in inner for source, dim in reads]
    assert sorted(dim for _, dim in found) == dims
    assert all(size == (4 if name == "a matrix times" else 6) for size, _ in found)
