"""Training while rounding: better than rounding alone, and the gain is still there in the file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.capture import capture
from hasten.recipe import Technique
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.task import Task
from hasten.techniques.quantize import Quantize
from hasten.techniques.train_quantized import TrainQuantized


def error(graph: GraphModule, reference: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((graph(x) - reference(x)).square().mean() / reference(x).square().mean())


def test_training_at_three_bits_beats_rounding_and_survives_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6),
    ).eval()  # fmt: skip
    batches = [(torch.randn(16, 3, 8, 8), None) for _ in range(16)]
    task = Task(model, (batches[0][0],), holdout=batches, calibration=[x for x, _ in batches])
    graph = capture(model, task.example)
    options = dict(weight_bits=3, samples=64)
    untrained = TrainQuantized(lr=0.0, epochs=1, max_steps=1, **options).apply(graph, task)  # type: ignore[arg-type]
    trained = TrainQuantized(lr=0.003, epochs=6, optimizer="adamw", **options).apply(graph, task)  # type: ignore[arg-type]
    x = torch.randn(64, 3, 8, 8)
    assert error(trained, graph, x) < 0.6 * error(untrained, graph, x)
    weights = [b for b in trained.buffers() if b.dtype == torch.int8]
    assert len(weights) == 3
    assert max(int(w.abs().max()) for w in weights) == 3

    target = OnnxRuntime()
    target.compile(trained, task, tmp_path)
    with torch.no_grad():
        expected = trained(x).numpy()
    step = (expected.max() - expected.min()) / 255
    assert np.abs(target.load(tmp_path)(x.numpy())[0] - expected).max() <= step


def test_it_is_a_technique_and_leaves_its_input_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    model = nn.Linear(5, 3).eval()
    task = Task(model, (x,), holdout=[(x, torch.randint(3, (8,)))], train=[(x, torch.randint(3, (8,)))])
    graph = capture(model, (x,))
    before = graph(x)
    technique = TrainQuantized(epochs=1)
    assert isinstance(technique, Technique)
    result = technique.apply(graph, task)
    assert torch.equal(graph(x), before)
    assert error(result, graph, x) < 0.05
    assert error(Quantize().apply(graph, task), graph, x) < 0.05
