"""What a peer is handed: a folder of files, read here inside the peer's own environment.

Needs numpy alone until a method that returns PyTorch objects is called. The folder of a workload holds `work.json`,
`network.py` with `weights.safetensors`, the same network as `model.onnx`, and the data as .npy files:
`calibration_*` (inputs), `train_*` and `validation_*` (inputs and targets). The test rows stay with the harness.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """One variant of one peer on one workload.

    Attributes:
        workload: Folder with the handed-over files.
        out: Empty folder for the result.
        threads: Cores that the result will be timed on.
        minutes: What a peer that searches or trains may spend.
    """

    workload: Path
    out: Path
    threads: int
    minutes: float

    @property
    def about(self) -> dict[str, Any]:
        """`work.json`: name, kind, inputs (name, dtype, shape without batch), classes, metric, max_drop, trained."""
        return json.loads((self.workload / "work.json").read_text())

    @property
    def onnx(self) -> Path:
        """The float network, exported by PyTorch with a dynamic batch."""
        return self.workload / "model.onnx"

    def arrays(self, part: str) -> tuple[np.ndarray, ...]:
        """Inputs of "example", "calibration", "train" or "validation", [n, ...] each, mapped from disk."""
        files = sorted(self.workload.glob(f"{part}_[0-9].npy"))
        return tuple(np.load(file, mmap_mode="r") for file in files)

    def targets(self, part: str) -> np.ndarray:
        """Targets of "train" or "validation", [n]."""
        return np.load(self.workload / f"{part}_target.npy")

    def feeds(self, part: str = "calibration", batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Batches by input name."""
        names = [x["name"] for x in self.about["inputs"]]
        for rows in self._rows(part, batch):
            yield {name: np.ascontiguousarray(x[rows]) for name, x in zip(names, self.arrays(part), strict=True)}

    def network(self) -> Any:
        """The trained nn.Module in eval mode."""
        from safetensors.torch import load_file

        spec = importlib.util.spec_from_file_location("handed_over_network", self.workload / "network.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # some tools pickle the network
        spec.loader.exec_module(module)
        model = module.network(**self.about["options"])
        model.load_state_dict(load_file(self.workload / "weights.safetensors"))
        return model.eval()

    def example(self) -> tuple[Any, ...]:
        """One batch of inputs as tensors."""
        import torch

        return tuple(torch.from_numpy(np.array(x)) for x in self.arrays("example"))

    def tensors(self, part: str, batch: int = 16) -> list[tuple[Any, ...]]:
        """Batches of inputs as tensors; targets stand last where the part has them."""
        import torch

        arrays = self.arrays(part)
        if (self.workload / f"{part}_target.npy").exists():
            arrays = (*arrays, self.targets(part))
        return [tuple(torch.from_numpy(np.array(x[rows])) for x in arrays) for rows in self._rows(part, batch)]

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The workload's score of every row, [n]; higher is better."""
        return scores(self.about["metric"], outputs, targets)

    @staticmethod
    def rank_correlation(outputs: Any, targets: Any) -> float:
        """See `rank_correlation`: what the metric "spearman" gives for a whole set."""
        return rank_correlation(outputs, targets)

    def export_onnx(self, model: Any, path: Path) -> None:
        """Write an nn.Module as one ONNX file with a dynamic batch, as the harness wrote `model.onnx`."""
        export_onnx(model, self.example(), [x["name"] for x in self.about["inputs"]], path)

    @staticmethod
    def declare_torchvision() -> None:
        """Let torchvision's Python parts be imported where only a build for another device is installed.

        Its compiled operators do not load on the CPU build of PyTorch, and its import stops at the first of them that
        is not declared. None of them is called by any work here.
        """
        import torch

        heads = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        for name in ("nms", "qnms", "qroi_align", *heads, *(f"_{head}_backward" for head in heads)):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")

    def _rows(self, part: str, batch: int) -> list[slice]:
        count = len(self.arrays(part)[0])
        return [slice(start, min(start + batch, count)) for start in range(0, count, batch)]


def export_onnx(model: Any, example: tuple[Any, ...], names: list[str], path: Path) -> None:
    """`torch.onnx.export` of a module in eval mode, batch dynamic, weights inside the file."""
    import logging
    import warnings

    import torch

    # The exporter talks about its own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # A batch of 1 would be taken for a constant.
    pair = tuple(torch.cat([x[:1], x[:1]]) for x in example)
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), pair, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=["output"],
            verbose=False,
        )  # fmt: skip
        program.save(str(path), external_data=False)


def scores(metric: str, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Per-row scores, [n] float64.

    Args:
        metric: "top1" (targets are labels [n]) or "cosine" (targets are vectors [n, d]).
        outputs: [n, classes] or [n, d].
        targets: See `metric`.
    """
    if metric == "top1":
        return (outputs.argmax(-1) == targets).astype(np.float64)
    a, b = outputs.reshape(len(outputs), -1).astype(np.float64), targets.reshape(len(targets), -1).astype(np.float64)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


def rank_correlation(outputs: Any, targets: Any) -> float:
    """Spearman's correlation of cosine similarity with the human score, without both sentences of a pair at hand.

    A tool judges rows one by one, so a row is one sentence, and its pair's other is known by its embedding. The harness
    itself embeds both sentences of its test pairs with what it judges.

    Args:
        outputs: Embeddings [n, d], arrays or tensors.
        targets: [n, d + 1]: the original's embedding of the pair's other sentence, and last the human score.
    """
    own, target = np.asarray(outputs), np.asarray(targets)
    similarity = scores("cosine", own, target[:, :-1])
    return float(np.corrcoef(_ranks(similarity), _ranks(target[:, -1]))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean; numpy alone, since not every tool's environment has scipy."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: np.ndarray = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts + 1) / 2)[index]
    return ranks
