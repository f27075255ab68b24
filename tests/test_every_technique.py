"""What every technique promises; a new file in `hasten/techniques/` is picked up by itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hasten
from every_technique import QUICK, check
from hasten.graph.capture import capture
from hasten.recipe import make_technique, techniques

TECHNIQUES = techniques()


class Net(nn.Module):
    """Convolutions with batch norm and a residual, then attention with a layer norm, then a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(self.a(x)))
        x = (x + torch.relu(self.d(self.c(x)))).flatten(2).mT
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = self.down(torch.relu(self.up(x.mean(1))))
        return y


@pytest.fixture(scope="module")
def net_task(digits_task: hasten.Task) -> hasten.Task:
    """The network on some of the digits."""
    torch.manual_seed(0)
    some: Any = digits_task
    return hasten.Task(
        model=Net().eval(), example=digits_task.example, holdout=some.holdout[:4], train=some.train[:4], name="net"
    )


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_keeps_its_promises(name: str, net_task: hasten.Task, tmp_path: Path) -> None:
    known = {f.name: f for f in dataclasses.fields(TECHNIQUES[name])}  # type: ignore[arg-type]
    quick = {k: v for k, v in QUICK.items() if k in known and type(known[k].default) is type(v)}
    technique = make_technique(name, quick)
    check(technique, capture(net_task.model, net_task.example), net_task, tmp_path)
