"""Write a workload as files that every peer can read, and keep it until what it is made from changes."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from hasten.measure.arrays import ArrayFile, ArrayWriter
from hasten_bench import job
from hasten_bench.material import Material, Part, cache
from hasten_bench.workloads import Workload

NETS = Path(__file__).parent / "nets"
DATA = Path(__file__).parent / "data"
EXAMPLE_ROWS = 2
TEST_ROWS = 2000  # prepared for every network; a quick run judges by the first of them


@dataclass(frozen=True)
class Handover:
    """A workload on disk.

    Attributes:
        folder: What peers see.
        inputs: The rows that the timer and the judge use: test rows, or calibration rows where there is no test.
        test_target: Targets of the test rows, or None.
    """

    workload: Workload
    folder: Path
    inputs: list[ArrayFile]
    test_target: np.ndarray | None

    @property
    def about(self) -> dict[str, Any]:
        """`work.json`."""
        found: dict[str, Any] = json.loads((self.folder / "work.json").read_text())
        return found

    @property
    def key(self) -> str:
        """Changes when what the files are made from changes."""
        return self.folder.parent.name


def hand_over(workload: Workload) -> Handover:
    """The workload's files, made if they are not in the cache.

    Args:
        workload: From the work list.

    Raises:
        Skipped: Its data is not on this machine.
    """
    key = hashlib.sha256(_sources(workload).encode()).hexdigest()[:12]
    home = cache() / "work" / f"{workload.name}-{key}"
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        _write(workload, workload.make(TEST_ROWS), home)
        (home / "done").touch()
    # Test rows lie outside the folder that peers see.
    described = json.loads((home / "test.json").read_text())
    target = home / "test_target.npy"
    return Handover(
        workload,
        home / "work",
        [ArrayFile.from_json(x) for x in described],
        np.load(target) if target.exists() else None,
    )


def _sources(workload: Workload) -> str:
    """The code that decides the content, so that changing it makes the files anew."""
    paths = [Path(__file__), Path(job.__file__), NETS / f"{workload.net}.py", DATA / f"{workload.source}.py"]
    return "".join(path.read_text() for path in paths) + json.dumps(dict(workload.options))


def _write(workload: Workload, material: Material, home: Path) -> None:
    folder = home / "work"
    folder.mkdir(parents=True)
    shutil.copy(NETS / f"{workload.net}.py", folder / "network.py")
    save_file({name: x.contiguous() for name, x in material.weights.items()}, folder / "weights.safetensors")
    _save(folder, "calibration", material.calibration)
    _save(folder, "example", Part(tuple(x[:EXAMPLE_ROWS] for x in material.calibration.inputs)))
    for name, part in (("train", material.train), ("validation", material.validation)):
        if part is not None:
            _save(folder, name, part)
    model = _network(workload, folder)
    parameters = sum(p.numel() for p in model.parameters())
    about = {
        "name": workload.name,
        "title": workload.title,
        "kind": workload.kind,
        "options": dict(workload.options),
        "inputs": [
            {"name": name, "dtype": str(x.dtype), "shape": list(x.shape[1:])}
            for name, x in zip(workload.input_names, material.calibration.inputs, strict=True)
        ],
        "metric": workload.metric,
        "max_drop": workload.max_drop,
        "trained": workload.trained,
        "parameters": parameters,
    }
    (folder / "work.json").write_text(json.dumps(about, indent=2))
    example = tuple(torch.from_numpy(np.array(x[:EXAMPLE_ROWS])) for x in material.calibration.inputs)
    job.export_onnx(model, example, list(workload.input_names), folder / "model.onnx")
    judged = material.test or material.calibration
    files = [ArrayWriter(home / f"test_{i}.bin", x).close() for i, x in enumerate(judged.inputs)]
    (home / "test.json").write_text(json.dumps([x.to_json() for x in files]))
    if judged.target is not None:
        np.save(home / "test_target.npy", judged.target)


def _network(workload: Workload, folder: Path) -> torch.nn.Module:
    import importlib

    from safetensors.torch import load_file

    model: torch.nn.Module = importlib.import_module(f"hasten_bench.nets.{workload.net}").network(**workload.options)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval()


def _save(folder: Path, name: str, part: Part) -> None:
    for index, x in enumerate(part.inputs):
        np.save(folder / f"{name}_{index}.npy", np.ascontiguousarray(x))
    if part.target is not None:
        np.save(folder / f"{name}_target.npy", part.target)
