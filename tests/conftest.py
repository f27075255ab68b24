"""What the tests share: a small trained network on scikit-learn's digits, and an artifact made of it."""

import sys
from pathlib import Path

import pytest
import torch

import hasten
from hasten.artifact import Artifact

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two test processes share two cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_task() -> hasten.Task:
    """A convolutional network trained in seconds, with 900 holdout images."""
    import digits

    return digits.task()


@pytest.fixture(scope="session")
def digits_artifact(digits_task: hasten.Task, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The digits network compiled for ONNX Runtime; do not change it, copy it."""
    graph = hasten.capture(digits_task.model, digits_task.example)
    return hasten.compile(graph, digits_task, "onnxruntime", tmp_path_factory.mktemp("artifact") / "digits.hasten")
