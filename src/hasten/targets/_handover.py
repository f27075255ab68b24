"""What targets write for a compiler in another process: the program at one batch size, an example, calibration data."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Inputs, Task


def write_program(graph: "GraphModule", task: "Task", folder: Path, batch: int) -> "Inputs":
    """Write `model.pt2`, exported at a fixed batch size, and `example_0.npy`, ...

    Args:
        graph: A captured graph; one of a fixed batch size keeps it.
        task: Whose example is repeated or cut to `batch` samples.
        folder: Where to.
        batch: Samples per call.

    Returns:
        The example at that batch size.
    """
    import torch

    from hasten.graph.capture import has_dynamic_batch
    from hasten.graph.quiet import quiet

    size = batch if has_dynamic_batch(graph) else len(task.example[0])
    example = tuple(torch.cat([x] * -(-size // len(x)))[:size] for x in task.example)
    with torch.no_grad(), quiet(categories=(Warning,)):
        torch.export.save(torch.export.export(graph, example), folder / "model.pt2")
    for index, x in enumerate(example):
        np.save(folder / f"example_{index}.npy", x.detach().numpy())
    return example


def write_calibration(task: "Task", folder: Path, batch: int, samples: int) -> None:
    """Write `calibration_0.npy`, ...: about `samples` samples as [n, batch, ...] for every input."""
    import torch

    from hasten.task import calibration_inputs

    rows = (row for inputs in calibration_inputs(task) for row in zip(*inputs, strict=True))
    chosen = list(itertools.islice(rows, -(-samples // batch) * batch))
    chosen = (chosen * batch)[: max(batch, len(chosen) // batch * batch)]
    for index in range(len(task.example)):
        values = torch.stack([row[index] for row in chosen]).detach().numpy()
        np.save(folder / f"calibration_{index}.npy", values.reshape(-1, batch, *values.shape[1:]))
