"""No hardware, no arithmetic: fixed answers in the right shapes, so that everything above a target can be tested."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.recipe import Program

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Null:
    """Answers zeros of the shapes and dtypes that the graph would give."""

    evidence: ClassVar[str] = "timed"
    only_by_name: ClassVar[bool] = True

    def missing(self) -> str:
        """Always usable."""
        return ""

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write the output shapes (without batch) and dtypes."""
        import torch

        from hasten.graph.capture import as_tuple

        with torch.no_grad():
            outputs = as_tuple(graph(*task.example))
        spec = [{"shape": list(y.shape[1:]), "dtype": str(y.dtype).removeprefix("torch.")} for y in outputs]
        (folder / "outputs.json").write_text(json.dumps(spec))

    def load(self, folder: Path) -> Program:
        """A program that answers zeros for any batch size."""
        spec = json.loads((folder / "outputs.json").read_text())

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(np.zeros((len(inputs[0]), *s["shape"]), dtype=s["dtype"]) for s in spec)

        return program
