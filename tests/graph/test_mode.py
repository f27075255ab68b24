import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver
from torch.fx import GraphModule

from hasten.graph.capture import capture
from hasten.graph.duplicate import duplicate, move
from hasten.graph.mode import observers_paused, set_training


class Everything(nn.Module):
    """Every layer kind whose behaviour depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.batch_statistics = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(4)
        self.tracked_instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.feature_dropout = nn.Dropout2d(0.5)
        self.dropout = nn.Dropout(0.5)
        self.rrelu = nn.RReLU()
        self.recurrent = nn.LSTM(4, 3, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.batch_statistics(self.norm(self.conv(x)))
        x = self.tracked_instance(self.instance(x))
        x = self.rrelu(self.dropout(self.feature_dropout(x)))
        sequence, _ = self.recurrent(x.flatten(2).transpose(1, 2))
        output: torch.Tensor = self.head(sequence[:, -1])
        return output


def example() -> torch.Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captured() -> tuple[Everything, GraphModule]:
    torch.manual_seed(0)
    model = Everything()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch, on the weights of any LSTM
        return model, capture(model, (example(),))


@pytest.fixture
def graph(captured: tuple[Everything, GraphModule]) -> GraphModule:
    return duplicate(captured[1])


def outcome(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    output = module(x)
    buffers = {name: value.clone() for name, value in module.named_buffers() if "num_batches" not in name}
    return output, buffers


def test_train_mode_equals_that_of_the_module(captured: tuple[Everything, GraphModule], graph: GraphModule) -> None:
    set_training(graph, True)
    expected, expected_buffers = outcome(duplicate(captured[0]).train(), example())
    actual, buffers = outcome(graph, example())
    torch.testing.assert_close(actual, expected)
    assert buffers.keys() == expected_buffers.keys()
    torch.testing.assert_close(buffers, expected_buffers)


def test_back_to_eval_mode_is_the_captured_graph(graph: GraphModule) -> None:
    before, code = graph(example()), graph.code
    set_training(graph, True)
    assert graph.code != code
    set_training(graph, False)
    assert graph.code == code
    assert torch.equal(graph(example()), before)


def test_frozen_batch_norm_keeps_its_statistics_while_dropout_trains(graph: GraphModule) -> None:
    set_training(graph, True, freeze_batch_norm=True)
    before = graph.get_buffer("norm.running_mean").clone()
    first, second = graph(example()), graph(example())
    assert torch.equal(graph.get_buffer("norm.running_mean"), before)
    assert not torch.equal(first, second)


def test_plain_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    set_training(model, True, freeze_batch_norm=True)
    assert [m.training for m in model] == [True, False, True]
    set_training(model, False)
    assert not any(m.training for m in model.modules())


def test_duplicate_shares_nothing() -> None:
    graph = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    copy = duplicate(graph)
    assert isinstance(copy, GraphModule)
    with torch.no_grad():
        copy.get_parameter("weight").zero_()
    assert float(graph.get_parameter("weight").detach().abs().sum()) > 0


class WithConstants(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        return x.to(torch.float32) + positions


def test_move_rewrites_the_devices_written_into_the_graph() -> None:
    graph = capture(WithConstants(), (torch.randn(2, 3),))
    move(graph, torch.device("meta"))
    assert graph(torch.empty(2, 3, device="meta")).device.type == "meta"


def test_moved_graph_runs_under_autocast() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.linear(x).to(torch.float32).softmax(-1)
            return output

    graph = capture(Net(), (torch.randn(2, 3),))
    move(graph, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert graph(torch.randn(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(graph: GraphModule, training: bool) -> None:
    set_training(graph, training)
    graph(example()).square().sum().backward()
    assert all(p.grad is not None for p in graph.parameters())


def test_fake_quantizers_learn_nothing_while_paused_and_those_that_were_off_stay_off() -> None:
    on, off = FakeQuantize(observer=MinMaxObserver), FakeQuantize(observer=MinMaxObserver)
    off.disable_observer()
    model = nn.Sequential(on, nn.Linear(2, 2), off)
    model(torch.tensor([[-1.0, 1.0]]))
    with observers_paused(model):
        model(torch.tensor([[-50.0, 50.0]]))
    assert float(on.activation_post_process.max_val) == 1
    with pytest.raises(ZeroDivisionError), observers_paused(model):
        raise ZeroDivisionError
    model(torch.tensor([[-2.0, 2.0]]))
    assert float(on.activation_post_process.max_val) == 2
    assert not torch.isfinite(off.activation_post_process.max_val)
