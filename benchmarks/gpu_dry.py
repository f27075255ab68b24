"""What `make bench-gpu` can do without a GPU: everything up to the launch. Nothing is timed, and every row says so.

Networks are lowered as the target `cuda` does before Inductor, engines are built by TensorRT-RTX, and the int8
convolution is compiled to machine code, in which the instructions of Tensor Cores are counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.fx import GraphModule

from gpu import HASTEN, NETWORKS, Network
from hasten import environments
from hasten.errors import HastenError
from hasten.gpu import build, lowering
from hasten.graph.capture import capture
from hasten.graph.cost import total_macs
from hasten.graph.duplicate import duplicate
from hasten.machine import cpu_name, versions
from hasten.recipe import make_target, make_technique
from hasten.task import Task

NOT_RUN = "not run on a GPU yet"
CAPABILITIES = (80, 89, 90, 100)
ENGINES = {"TensorRT-RTX fp32": "", "TensorRT-RTX int8": "signed"}  # and where they quantize


def dry(out: Path, names: list[str], small: bool) -> None:
    """Write the rows of every network, and of the kernel at every compute capability, after each of them."""
    found: dict[str, Any] = {"device": f"no GPU ({cpu_name()})", "status": NOT_RUN, "small": small}
    found |= {"versions": versions(), "kernels": [], "networks": []}
    for capability in CAPABILITIES:
        found["kernels"].append({"capability": capability, "status": NOT_RUN} | attempt(lambda c=capability: kernel(c)))  # type: ignore[misc]
        print(found["kernels"][-1], flush=True)
        out.write_text(json.dumps(found, indent=2) + "\n")
    for name in names:
        found["networks"].append({"network": name, "rows": []})
        for variant in (*HASTEN, *ENGINES):
            found["networks"][-1]["rows"].append(row(name, variant, small))
            out.write_text(json.dumps(found, indent=2) + "\n")


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it found, or why it did not."""
    try:
        return work()
    except (HastenError, RuntimeError) as error:
        return {"failure": f"{type(error).__name__}: {str(error)[:200]}"}


def kernel(capability: int) -> dict[str, Any]:
    """The int8 convolution of 128 channels to 128 filters as machine code, by Triton's compiler."""
    made = environments.call("triton", "machine_code", capability=capability, channels=128, filters=128, kernel=3)
    kept: dict[str, Any] = {name: made[name] for name in ("products", "cubin_bytes", "shared_bytes")}
    return kept


def row(name: str, variant: str, small: bool) -> dict[str, Any]:
    """One row, made in a process of its own: copies of a billion weights are given back, and what the system ends for
    want of memory leaves a row that says so.
    """
    command = [sys.executable, __file__, name, variant, *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    failure = {} if found else {"failure": f"its process ended with {done.returncode}: {done.stderr[-200:]}"}
    print(name, made := {"variant": variant, "status": NOT_RUN} | found | failure, flush=True)
    return made


def own_row(name: str, variant: str, small: bool) -> dict[str, Any]:
    """What a row says, made here."""
    network = NETWORKS[name]
    steps, options = HASTEN.get(variant, ([], {}))
    if ENGINES.get(variant):
        how = {"placement": ENGINES[variant], "rounding": "nearest", "bias_correction": False, "samples": 2}
        steps = [("quantize", how)]
    task = compressed(network, steps, small)
    return engine(task) if variant in ENGINES else lowered(task, options)


def compressed(network: Network, steps: list[tuple[str, dict[str, Any]]], small: bool) -> Task:
    """A task whose model is the network's graph after `steps`; the network itself is given back, a billion weights."""
    torch.manual_seed(0)
    model = network.make(small).eval()
    size = (2, *network.shape(small))
    x = torch.randint(0, 100, size) if network.tokens else torch.randn(size)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(2, dtype=torch.int64))])
    graph = capture(model, task.example)
    for technique, values in steps:
        graph = make_technique(network.prune if technique == "PRUNE" else technique, values).apply(graph, task)
    return replace(task, model=graph)


def lowered(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """How many products each lowering took, and that the program exports with them."""
    graph = cast(GraphModule, task.model)
    precision = options.get("precision", "fp32")
    fp8, sparse = options.get("fp8", False), options.get("sparse", False)
    found = {"macs": total_macs(graph), **products(graph, precision, fp8, sparse)}
    # cuSPARSELt packs weights on a GPU alone, so that those products are only counted here.
    program = build.lowered(graph, task.example, "cpu", precision, fp8, False, 0)
    return found | {"operators": len(program.graph.nodes)}


def products(graph: GraphModule, precision: str, fp8: bool, sparse: bool) -> dict[str, int]:
    """How many layers each lowering takes."""
    counted = duplicate(graph, share_tensors=True)
    return {
        "sparse_layers": two_four_layers(counted) if sparse else 0,
        "fp8_layers": lowering.lower_fp8(counted) if fp8 else 0,
        "int8_layers": lowering.lower_integers(counted, build.DTYPES[precision]),
    }


def two_four_layers(graph: GraphModule) -> int:
    """Linear layers whose weights are 2:4 sparse."""
    from hasten.gpu.products import is_two_four

    weights = (p for p in graph.parameters() if p.ndim == 2 and p.shape[1] % 4 == 0)
    return sum(is_two_four(weight) for weight in weights)


def engine(task: Task) -> dict[str, Any]:
    """What TensorRT-RTX's builder states of an engine for compute capability 8.9."""
    with tempfile.TemporaryDirectory() as scratch:
        make_target("tensorrt", {"capability": "8.9"}).compile(cast(GraphModule, task.model), task, Path(scratch))
        report = json.loads((Path(scratch) / "report.json").read_text())
    return {f"engine_{key}" if key == "bytes" else key: report[key] for key in ("bytes", "layers", "quantize", "tool")}


def main() -> None:
    """Print one row as JSON; for `row`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network")
    parser.add_argument("variant")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(attempt(lambda: own_row(arguments.network, arguments.variant, arguments.small))))


if __name__ == "__main__":
    main()
