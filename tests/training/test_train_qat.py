"""Training a graph with torchao's fake-quantizers inside."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.capture import capture
from hasten.graph.duplicate import duplicate
from hasten.training import Training, train
from hasten.training.device import pick_dtype

OPTIONS = Training(epochs=2, lr=0.02, device="cpu")


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long()
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]


@pytest.fixture(scope="module")
def prepared() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and torchao say about themselves while importing and preparing
        return prepare()


def prepare() -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    graph = prepare_qat_pt2e(capture(model, (batches()[0][0],)), quantizer)
    assert any(hasattr(module, "enable_fake_quant") for module in graph.modules())
    return graph


def same(first: GraphModule, second: GraphModule) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss_of(graph: GraphModule) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(graph(x), y)) for x, y in batches())


def test_learns_in_float32_and_leaves_the_given_graph_alone(prepared: Any) -> None:
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    trained = train(prepared, batches(), F.cross_entropy, replace(OPTIONS, epochs=8))
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert loss_of(duplicate(trained)) < loss_of(duplicate(prepared))
    assert pick_dtype("auto", torch.device("cpu"), prepared) == torch.float32


def test_killed_and_resumed_equals_uninterrupted(prepared: Any, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(model: nn.Module, steps: int) -> None:
        if steps == 6:
            raise Killed

    saved = replace(OPTIONS, checkpoint=tmp_path / "state.pt", checkpoint_every=1)
    with pytest.raises(Killed):
        train(prepared, batches(), F.cross_entropy, saved, after_step=kill)
    resumed = train(prepared, batches(), F.cross_entropy, saved)
    assert same(resumed, train(prepared, batches(), F.cross_entropy, OPTIONS))


def test_validation_data_does_not_reach_the_observers(prepared: Any) -> None:
    def outlandish(model: nn.Module) -> float:
        model(torch.full((4, 1, 6, 6), 1e6))
        return 0.0

    seen = train(prepared, batches(), F.cross_entropy, OPTIONS, validate=outlandish)
    assert same(seen, train(prepared, batches(), F.cross_entropy, OPTIONS))


def test_moving_average_is_finite(prepared: Any) -> None:
    trained = train(prepared, batches(), F.cross_entropy, replace(OPTIONS, ema=0.9))
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())
