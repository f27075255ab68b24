"""Artifacts small enough to compile in a test run."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A [rows, 4] -> [rows, 3] network in ONNX Runtime."""
    import torch
    from torch import nn

    import hasten

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    example = (torch.randn(4, 4),)
    task = hasten.Task(model=model, example=example, holdout=[(example[0], torch.zeros(4, dtype=torch.long))])
    out = tmp_path_factory.mktemp("artifacts") / "tiny.hasten"
    hasten.compile(hasten.capture(model, example), task, "onnxruntime", out)
    return out
