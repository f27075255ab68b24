"""The example task files, untrained: each is a task that can be captured, quantized and compiled."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hasten
from hasten.task import labelled

NAMES = ["audio", "decoder", "digits", "tabular"]


def _untrained(model: Any, *_: Any) -> Any:
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_becomes_an_int8_artifact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = importlib.import_module(name)
    monkeypatch.setattr(example, "train", _untrained)
    task: hasten.Task = example.task()
    assert sum(len(target) for _, target in labelled(task.holdout)) >= 520, "too few samples to certify one point"
    graph = hasten.capture(task.model, task.example)
    quantized = hasten.Quantize(rounding="nearest").apply(graph, task)
    artifact = hasten.compile(quantized, task, target="onnxruntime", out=tmp_path / "x.hasten")
    with torch.no_grad():
        expected = task.model(*task.example).numpy()
    found = hasten.load(artifact.path)(*task.example)[0]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
