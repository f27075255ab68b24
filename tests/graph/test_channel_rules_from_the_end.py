"""The rules of operators whose dimensions count from the end, or are others than most networks use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.graph.channels import find_channels
from hasten.graph.surgery import remove, run_masked


class Between(nn.Module):
    """A convolution with six filters, an operator, and a layer that reads what it gives."""

    def __init__(self, operator: Callable[[Tensor], Any], after: nn.Module | None) -> None:
        super().__init__()
        self.before, self.operator = nn.Conv2d(3, 6, 3, padding=1), operator
        self.after = after or nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operator(self.before(x)))
        return y


PICKED = torch.tensor([1, 0, 5])
# (operator on [N, 6, 8, 8], layer after it or None for a convolution, units that go exactly)
CASES: dict[str, tuple[Callable[[Tensor], Any], nn.Module | None, int]] = {
    "softmax": (lambda y: y.softmax(-3), None, 0),
    "softmax of rows": (lambda y: y.softmax(-2), None, 6),
    "moved": (lambda y: y.movedim(-3, -1), nn.Linear(6, 4), 6),
    "two moved": (lambda y: y.movedim((-1, -3), (1, -1)), nn.Linear(6, 4), 6),
    "transposed": (lambda y: y.transpose(1, 3), nn.Linear(6, 4), 6),
    "transposed back": (lambda y: y.transpose(-1, -3).transpose(3, 1), None, 6),
    "permuted": (lambda y: y.permute(0, -2, -1, -3), nn.Linear(6, 4), 6),
    "matrix transposed": (lambda y: y.mT, None, 6),
    "stacked": (lambda y: torch.stack([y, y * 2], -1).sum(-1), None, 6),
    "stacked in front": (lambda y: torch.stack([y, y * 2], -4).sum(1), None, 6),
    "joined": (lambda y: torch.cat([y, y * 2], -3), nn.Conv2d(12, 4, 1), 6),
    "joined rows": (lambda y: torch.cat([y, y * 2], 2), None, 6),
    "split": (lambda y: torch.cat(y.split([2, 4], -3)[::-1], 1), None, 6),
    "chunks": (lambda y: torch.cat(y.chunk(2, -3)[::-1], -3), None, 6),
    "sum of chunks": (lambda y: sum(y.chunk(2, 1)), nn.Conv2d(3, 4, 1), 3),
    "chunks of rows": (lambda y: sum(y.chunk(2, -2)), None, 6),
    "narrowed": (lambda y: y.narrow(-3, 1, 4), nn.Conv2d(4, 4, 1), 6),
    "the last": (lambda y: y[:, -4:], nn.Conv2d(4, 4, 1), 6),
    "all but the ends": (lambda y: y[:, 1:-1], nn.Conv2d(4, 4, 1), 6),
    "two cuts": (lambda y: torch.cat([y[:, :2], y[:, 3:]], 1), nn.Conv2d(5, 4, 1), 6),
    "taken apart": (lambda y: sum(y.unbind(-3)), nn.Conv1d(8, 4, 1), 0),
    "rows taken apart": (lambda y: sum(y.unbind(-2)), nn.Conv1d(6, 4, 1), 6),
    "one channel": (lambda y: y.select(-3, 1), nn.Conv1d(8, 4, 1), 0),
    "one row": (lambda y: y.select(-2, 0), nn.Conv1d(6, 4, 1), 6),
    "picked": (lambda y: y.index_select(-3, PICKED), nn.Conv2d(3, 4, 1), 0),
    "picked rows": (lambda y: y.index_select(-2, PICKED), None, 6),
    "picked columns": (lambda y: y[..., PICKED], None, 6),
    "picked rows and columns": (lambda y: y[:, :, PICKED, PICKED], nn.Conv1d(6, 4, 1), 6),
    "gathered": (lambda y: y.gather(1, (y.detach() * 0).long()), None, 0),
    "gathered rows": (lambda y: y.gather(-2, (y.detach() * 0).long()), None, 6),
    "glu": (lambda y: F.glu(y, -3), nn.Conv2d(3, 4, 1), 3),
    "glu of columns": (lambda y: F.glu(y, -1), None, 6),
    "sum": (lambda y: y.sum(-3, keepdim=True), nn.Conv2d(1, 4, 1), 6),
    "sum of places": (lambda y: y.sum((-1, -2)), nn.Linear(6, 4), 6),
    "sum of everything": (lambda y: y + y.sum(), None, 6),
    "mean over channels and rows": (lambda y: y.mean((1, 2)), nn.Linear(8, 4), 6),
    "rolled": (lambda y: y.roll(2, -3), None, 0),
    "rolled columns": (lambda y: y.roll(2, -1), None, 6),
    "a channel in front": (lambda y: F.pad(y, (0, 0, 0, 0, 1, 0)), nn.Conv2d(7, 4, 1), 6),
    "one less": (lambda y: F.pad(y, (0, 0, 0, 0, -1, 0)), nn.Conv2d(5, 4, 1), 0),
    "rows and channels": (lambda y: F.pad(y, (0, 0, 1, 2, 2, 1)), nn.Conv2d(9, 4, 1), 6),
    "sorted": (lambda y: y.sort(-3)[0], None, 0),
    "best": (lambda y: y.topk(4, -3)[0], nn.Conv2d(4, 4, 1), 0),
    "best columns": (lambda y: y.topk(4, -1)[0], None, 6),
    "windows": (lambda y: y.unfold(-2, 2, 2).sum(-1), None, 6),
    "squeezed": (lambda y: y.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2), nn.Linear(6, 4), 6),
    "squeezed at once": (lambda y: y.mean((2, 3), keepdim=True).squeeze((-1, -2)), nn.Linear(6, 4), 6),
    "unsqueezed": (lambda y: y.unsqueeze(-4).sum(1) + y.unsqueeze(-1).sum(4), None, 6),
    "expanded": (lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5), None, 6),
    "repeated in place": (lambda y: y.repeat_interleave(2, -3), nn.Conv2d(12, 4, 1), 6),
    "flattened": (lambda y: y.flatten(1), nn.Linear(384, 4), 6),
    "channels and rows flattened": (lambda y: y.flatten(-3, -2), nn.Conv1d(48, 4, 1), 6),
    "apart and together": (lambda y: y.unflatten(-3, (2, 3)).flatten(-4, -3), None, 5),
    "log of a softmax": (lambda y: y.log_softmax(-1), None, 6),
    "running sum": (lambda y: y.cumsum(-3), None, 0),
    "running sum of rows": (lambda y: y.cumsum(2), None, 6),
    "length": (lambda y: torch.linalg.vector_norm(y, 3, -3, True), nn.Conv2d(1, 4, 1), 6),
}


@pytest.mark.parametrize("name", CASES)
def test_units_are_counted_and_go_exactly(name: str) -> None:
    operator, after, exact = CASES[name]
    torch.manual_seed(0)
    model = Between(operator, after).double()
    channels = find_channels(capture(model, (torch.randn(2, 3, 8, 8).double(),)))
    assert not channels.uncovered
    found = [u for group in channels.groups if not group.approximate for u in group.units]
    assert len(found) == exact
    x = torch.randn(3, 3, 8, 8).double()
    for unit in found[:: max(1, len(found) - 1)]:
        cut, masked = remove(channels, [unit])(x), run_masked(channels, [unit], (x,))[0]
        torch.testing.assert_close(cut, masked, rtol=1e-9, atol=1e-9)
