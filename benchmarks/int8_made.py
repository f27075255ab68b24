"""Every tool's int8 files of one network, made once and kept under HASTEN_BENCH_CACHE until they are made anew."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

import hasten
import int8_peers
from hasten.graph.onnx import write_onnx
from hasten.recipe import Target, make_target, name_of, options_of, targets
from hasten_bench.environments import python_for
from hasten_bench.material import cache
from hasten_bench.registry import peer
from int8_networks import NETWORKS, Network

THREADS = int(os.environ.get("HASTEN_BENCH_THREADS", "2"))
CALIBRATION, JUDGED = 32, 32
# hasten's other stacks that run int8: options of the target, and whether it wants Q/DQ or quantizes by itself.
_OWN_STACKS = {"litert": {"precision": "int8", "threads": THREADS}, "executorch": {"threads": THREADS}}


@dataclass(frozen=True)
class Made:
    """One file in one runtime: who made it, how, and where it lies."""

    tool: str
    variant: str
    target: str
    options: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in tables."""
        precision = self.options.get("precision", "fp32")
        return (
            f"{self.tool} {self.variant}".strip()
            + f" / {self.target}"
            + (f" {precision}" if precision != "fp32" else "")
        )


def read(name: str) -> tuple[list[Made], dict[str, str]]:
    """What `make` kept of a network, and why some tools have nothing."""
    folder = cache() / "int8" / name
    if not (folder / "made.json").exists():
        raise SystemExit(f"There is nothing to time: run `int8_speed.py make {name}` first.")
    document = json.loads((folder / "made.json").read_text())
    return [Made(**entry | {"folder": folder / entry["folder"]}) for entry in document["made"]], document["failed"]


def make(name: str) -> None:
    """Every tool's files, in `cache()/int8/NAME`."""
    folder = cache() / "int8" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    network = NETWORKS[name]()
    maker = Maker(network, folder)
    for step in (maker.floats, maker.hasten, maker.onnxruntime, maker.nncf, maker.inductor):
        step()
    document = {
        "made": [asdict(entry) | {"folder": entry.folder.name} for entry in maker.made],
        "failed": maker.failed,
    }
    (folder / "made.json").write_text(json.dumps(document, indent=1) + "\n")


class Maker:
    """Collects files and failures of one network.

    Args:
        network: What to quantize.
        folder: Where to write.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.made: list[Made] = []
        self.failed: dict[str, str] = {}
        self.graph = hasten.capture(network.model, network.example)
        calibration = network.calibration[:CALIBRATION]
        self.task = hasten.Task(network.model, network.example, holdout=[network.example[0]], calibration=calibration)
        self.source, self.inputs = folder / "float.onnx", folder / "calibration.npz"
        write_onnx(self.graph, network.example, self.source)
        columns = [torch.cat(column).numpy() for column in zip(*network.calibration, strict=True)]
        np.savez(self.inputs, **{f"input_{i}": column[:CALIBRATION] for i, column in enumerate(columns)})
        judged = {f"input_{i}": column[-JUDGED:] for i, column in enumerate(columns)}
        np.savez(folder / "judged.npz", **judged, reference=run_torch(self.graph, list(judged.values())))

    def floats(self) -> None:
        """The float network in the runtimes."""
        self._in_every_runtime("float", "", self.source, runtimes())

    def hasten(self) -> None:
        """Static int8 as each target wants it; of transformers also with activations that are rounded as they come."""
        graphs: dict[tuple[str, str], GraphModule] = {}
        for target in runtimes():
            if options_of(target)["precision"] != "fp32":
                continue  # every precision of a target reads the same file
            placement = type(target).placements[0]  # type: ignore[attr-defined]
            for variant, technique in self._own_ways(placement).items():
                graph = graphs.setdefault((placement, variant), technique.apply(self.graph, self.task))
                folder = self._folder(f"hasten {variant} {name_of(target)}")
                target.compile(graph, self.task, folder)
                self._add("hasten", variant, folder, [t for t in runtimes() if type(t) is type(target)])
        for name, options in _OWN_STACKS.items():
            self._own_stack(name, options)

    def _own_ways(self, placement: str) -> dict[str, Any]:
        ways: dict[str, Any] = {"static": hasten.Quantize(placement=placement)}
        if self.network.transformer:
            ways["dynamic"] = hasten.Quantize(placement=placement, activations="int8_dynamic")
        return ways

    def _own_stack(self, name: str, options: dict[str, Any]) -> None:
        target = make_target(name, options)
        if target.missing():
            self._leave_out(f"hasten / {name}", target.missing())
            return
        folder = self._folder(f"hasten static {name}")
        placements = getattr(targets()[name], "placements", ())
        try:
            graph = hasten.Quantize(placement=placements[0]).apply(self.graph, self.task) if placements else self.graph
            target.compile(graph, self.task, folder)
        except Exception as error:
            self._leave_out(f"hasten / {name}", str(error))
            return
        self._add("hasten", "static", folder, [target])

    def onnxruntime(self) -> None:
        """ONNX Runtime's quantizer."""
        ways = int8_peers.onnxruntime_variants(self.source, self.inputs, self.folder, self.network.transformer)
        for variant, write in ways.items():
            file = self.folder / f"onnxruntime {variant}.onnx"
            try:
                write(file)
            except Exception as error:
                self._leave_out(f"onnxruntime quantizer {variant}", str(error))
                continue
            in_all = variant == "U8S8"
            self._in_every_runtime("onnxruntime quantizer", variant, file, runtimes() if in_all else runtimes()[:1])
            file.unlink()

    def nncf(self) -> None:
        """NNCF, for OpenVINO."""
        kind = "-transformer" if self.network.transformer else ""
        here = [target for target in runtimes() if name_of(target) == "openvino"]
        for preset in ("mixed", "performance"):
            self._elsewhere("nncf", preset, f"nncf-{preset}{kind}", self.source, "model.xml", here)

    def inductor(self) -> None:
        """What quantizes the captured graph itself, at batch 1 as it is timed, and compiles it with Inductor."""
        program = self.folder / "float.pt2"
        torch.export.save(torch.export.export(self.graph, self.network.example, strict=False), program)
        here = [make_target("inductor", {"threads": THREADS})]
        for tool in ("torchao", "neural_compressor"):
            self._elsewhere(tool, "static", tool.replace("_", "-"), program, "model.pt2", here)

    def _elsewhere(self, tool: str, variant: str, wanted: str, source: Path, out: str, where: list[Target]) -> None:
        folder = self._folder(f"{tool} {variant}")
        python = python_for(tool, peer(tool).requirements)
        command = [str(python), int8_peers.__file__, wanted, str(source), str(self.inputs), str(folder / out)]
        started = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            self._leave_out(f"{tool} {variant}", (done.stderr.strip().splitlines() or ["?"])[-1])
            return
        print(f"{self.network.name}: {tool} {variant} took {time.perf_counter() - started:.0f} s", flush=True)
        self._add(tool, variant, folder, where)

    def _in_every_runtime(self, tool: str, variant: str, source: Path, where: list[Target]) -> None:
        """One ONNX file in several runtimes."""
        import openvino as ov

        folder = self._folder(f"{tool} {variant}")
        shutil.copy(source, folder / "model.onnx")
        if any(name_of(target) == "openvino" for target in where):
            ov.save_model(ov.convert_model(source), folder / "model.xml", compress_to_fp16=False)
        self._add(tool, variant, folder, where)

    def _folder(self, name: str) -> Path:
        folder = self.folder / name.strip().replace(" ", "_")
        folder.mkdir()
        return folder

    def _add(self, tool: str, variant: str, folder: Path, where: list[Target]) -> None:
        self.made += [Made(tool, variant, name_of(target), options_of(target), folder) for target in where]

    def _leave_out(self, name: str, why: str) -> None:
        self.failed[name] = (why.strip().splitlines() or ["?"])[-1][:300]
        print(f"{self.network.name}: {name} is left out: {self.failed[name]}", flush=True)


def runtimes() -> list[Target]:
    """The best settings of each runtime, for every tool's file alike."""
    found: list[Target] = [make_target("onnxruntime", {"threads": THREADS})]
    for precision in ("fp32", "bf16"):
        target = make_target("openvino", {"threads": THREADS, "precision": precision})
        if not target.missing():
            found.append(target)
    return found


def run_torch(graph: GraphModule, columns: list[np.ndarray]) -> np.ndarray:
    """First outputs, [rows, values], computed row by row."""
    results = []
    with torch.no_grad():
        for row in zip(*columns, strict=True):
            out = graph(*(torch.from_numpy(x[None]) for x in row))
            results.append((out[0] if isinstance(out, tuple) else out).numpy().reshape(-1))
    return np.stack(results)
