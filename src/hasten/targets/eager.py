"""PyTorch eager: the captured graph run operator by operator. The baseline that every ratio is taken against."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Eager:
    """PyTorch without a compiler."""

    evidence: ClassVar[str] = "timed"
    # Linear layers may read activations that are rounded as they come.
    dynamic_activations: ClassVar[bool] = True

    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True
    )

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if PyTorch can be imported."""
        return "" if importlib.util.find_spec("torch") else "pip install torch"

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write the graph as JSON and its tensors as safetensors."""
        from hasten.graph.storage import save_graph

        save_graph(graph, folder)

    def load(self, folder: Path) -> Program:
        """The stored graph, run by PyTorch operator by operator."""
        import torch

        from hasten.graph.storage import load_graph
        from hasten.machine import usable_cores

        torch.set_num_threads(self.threads or usable_cores())
        graph = load_graph(folder)

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            with torch.inference_mode():
                output = graph(*(torch.from_numpy(x) for x in inputs))
            return tuple(y.numpy() for y in (output if isinstance(output, tuple) else (output,)))

        return program
