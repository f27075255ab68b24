"""hasten on an NVIDIA GPU beside torch.compile and torchao on the same networks, in turns, against measured ceilings.

make bench-gpu                     everything, into benchmarks/results/gpu_<device>.json; about an hour. Without a GPU
                                   what can be built without one (gpu_dry.py), into benchmarks/results/gpu_not_run.json
python benchmarks/gpu.py --device cpu --small --out x.json     the same code on tiny networks, to check it without a GPU

Times are of the device alone: inputs are on it, launches are replayed from CUDA graphs on both sides. Weights are
random. Errors are the largest difference to the network in float64 on the same device, relative to the largest output.
"""

import argparse
import gc
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hasten.gpu.replay import recorded
from hasten.graph.capture import capture
from hasten.graph.cost import total_macs
from hasten.machine import cpu_name, versions
from hasten.recipe import make_technique
from hasten.targets.cuda import Cuda
from hasten.task import Task

Call = Callable[[], Any]


class Wrapped(nn.Module):
    """Logits of a transformers network; of the last position where it gives one for each."""

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x, **self.arguments).logits
        return logits[:, -1] if logits.ndim == 3 else logits


@dataclass(frozen=True)
class Network:
    """A network with random weights and its input."""

    make: Callable[[bool], nn.Module]
    shape: Callable[[bool], tuple[int, ...]]
    batch: int
    tokens: bool = False
    prune: str = "prune_neurons"


def resnet(small: bool) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    tiny = dict(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_labels=16)
    return Wrapped(ResNetForImageClassification(ResNetConfig(**(tiny if small else dict(num_labels=1000)))))


def vit(small: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    tiny = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32)
    return Wrapped(ViTForImageClassification(ViTConfig(num_labels=16 if small else 1000, **(tiny if small else {}))))


def bert(small: bool) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    tiny = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=100)
    return Wrapped(BertForSequenceClassification(BertConfig(num_labels=16, **(tiny if small else {}))))


def decoder(small: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    full = dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8)
    full |= dict(intermediate_size=8192, vocab_size=32000)
    tiny = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    tiny |= dict(intermediate_size=128, vocab_size=112)
    return Wrapped(LlamaForCausalLM(LlamaConfig(**(tiny if small else full))), use_cache=False)


NETWORKS = {
    "resnet50": Network(resnet, lambda small: (3, 32, 32) if small else (3, 224, 224), 64, prune="prune_filters"),
    "vit_b16": Network(vit, lambda small: (3, 32, 32) if small else (3, 224, 224), 64),
    "bert_base": Network(bert, lambda small: (16 if small else 128,), 64, tokens=True),
    "decoder_1b": Network(decoder, lambda small: (16 if small else 512,), 4, tokens=True),
}
_QUANTIZE = {"placement": "fuse_activations", "rounding": "nearest", "bias_correction": False, "samples": 16}
HASTEN: dict[str, tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]] = {
    "hasten fp32": ([], {}),
    "hasten tf32": ([], {"precision": "tf32"}),
    "hasten fp16": ([], {"precision": "fp16"}),
    "hasten bf16": ([], {"precision": "bf16"}),
    "hasten int8": ([("quantize", _QUANTIZE)], {"precision": "fp16"}),
    "hasten fp8": ([], {"precision": "bf16", "fp8": True}),
    "hasten 2:4": ([("prune_weights", {"scope": "2:4", "sparsity": 0.5})], {"precision": "fp16", "sparse": True}),
    "hasten pruned": ([("PRUNE", {"ratio": 0.5, "importance": "weight_l2", "round_to": 16})], {"precision": "fp16"}),
}
PEERS = (
    "eager fp32",
    "eager fp16",
    "compile fp32",
    "compile tf32",
    "compile fp16",
    "compile bf16",
    "torchao int8",
    "torchao fp8",
)
BASELINE = "eager fp32"


def hasten_call(
    name: str, task: Task, network: Network, device: str, x: Tensor, folder: Path, autotune: bool
) -> tuple[Call, int]:
    """A replay of what the target `cuda` compiles, and its multiply-accumulates per sample."""
    steps, options = HASTEN[name]
    graph = capture(task.model, task.example)
    for technique, values in steps:
        graph = make_technique(network.prune if technique == "PRUNE" else technique, values).apply(graph, task)
    target = Cuda(**options, autotune=autotune, batch=len(x))
    target._compile_for(device, graph, task, folder)
    from torch._inductor import aoti_load_package

    run = aoti_load_package(str(folder / "model.pt2"), run_single_threaded=True)
    return (recorded(run, [x]) if device == "cuda" else lambda: run(x)), total_macs(graph)


def peer_call(name: str, model: nn.Module, device: str, x: Tensor, autotune: bool) -> Call:
    """torch.compile (max-autotune, which replays CUDA graphs too) or eager, in the precision that `name` ends with."""
    kind, precision = name.split()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.bfloat16, "fp8": torch.bfloat16}.get(
        precision
    )
    moved = model.to(device, dtype) if dtype else model.to(device)
    if kind == "torchao":
        quantize_by_torchao(moved, precision)
    if device == "cuda" and not name.startswith("eager"):
        moved = moved.to(memory_format=torch.channels_last) if x.ndim == 4 else moved
    x = x.to(dtype) if dtype and x.is_floating_point() else x
    run = (
        moved
        if kind == "eager"
        else torch.compile(moved, mode="max-autotune" if autotune else "default", fullgraph=True)
    )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    run(x)
    return lambda: run(x)


def quantize_by_torchao(model: nn.Module, precision: str) -> None:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    fp8 = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(model, Int8DynamicActivationInt8WeightConfig() if precision == "int8" else fp8)


def seconds(call: Call, device: str, calls: int) -> float:
    """Time of one call, over `calls` in a row."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def interleaved(calls: dict[str, Call], device: str, turns: int) -> dict[str, list[float]]:
    """Seconds per call of every program in each of `turns` rounds, in alternating order."""
    with torch.inference_mode():
        counts = {}
        for name, call in calls.items():
            seconds(call, device, 2)
            counts[name] = max(1, int(0.1 / seconds(call, device, 1)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(turns):
            for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
                times[name].append(seconds(calls[name], device, counts[name]))
    return times


def ceilings(device: str, small: bool) -> dict[str, float]:
    """What this device reaches: square products in TFLOP/s by type, a copy in GB/s; the best of 10 runs each."""
    n = 256 if small else 8192
    a = torch.randn(n, n, device=device)
    eight = (a * 10).to(torch.int8)
    ones = (torch.ones(n, 1, device=device), torch.ones(1, n, device=device))
    products: dict[str, Call] = {"fp32": lambda: a @ a, "tf32": lambda: a @ a}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = a.to(dtype)
        products[name] = lambda half=half: half @ half.t()  # type: ignore[misc]
    products["int8"] = lambda: torch._int_mm(eight, eight.t())
    float8 = a.to(torch.float8_e4m3fn)
    products["fp8"] = lambda: torch._scaled_mm(
        float8, float8.t(), scale_a=ones[0], scale_b=ones[1], out_dtype=torch.bfloat16, use_fast_accum=True
    )
    found = {}
    for name, call in products.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        try:
            call()
            found[f"{name}_tflops"] = 2 * n**3 / min(seconds(call, device, 3) for _ in range(10)) / 1e12
        except RuntimeError as error:
            print(f"ceiling {name}: {str(error)[:100]}")
    big = torch.empty((2**24 if small else 2**30), dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    found["copy_gb_s"] = 2 * big.numel() / min(seconds(lambda: other.copy_(big), device, 3) for _ in range(10)) / 1e9
    return found


def measure(name: str, device: str, small: bool, wanted: list[str], turns: int, autotune: bool) -> dict[str, Any]:
    """All rows of one network."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make(small).eval()
    size = (2 if small else network.batch, *network.shape(small))
    x = torch.randint(0, 100, size) if network.tokens else torch.randn(size)
    task = Task(model=model, example=(x[:2],), holdout=[(x[:16], torch.zeros(min(16, len(x)), dtype=torch.int64))])
    moved = x.to(device)
    with torch.inference_mode():
        double = network.make(small).eval()
        double.load_state_dict(model.state_dict())
        reference = double.double().to(device)(moved[:4] if network.tokens else moved[:4].double()).cpu()
    del double
    calls: dict[str, Call] = {}
    rows: dict[str, dict[str, Any]] = {}
    macs = total_macs(capture(model, task.example))
    with tempfile.TemporaryDirectory() as scratch:
        for index, variant in enumerate(wanted):
            torch._dynamo.reset()
            try:
                if variant in HASTEN:
                    folder = Path(scratch) / str(index)
                    folder.mkdir()
                    calls[variant], used = hasten_call(variant, task, network, device, moved, folder, autotune)
                else:
                    copy = network.make(small).eval()
                    copy.load_state_dict(model.state_dict())
                    calls[variant], used = peer_call(variant, copy, device, moved, autotune), macs
                with torch.inference_mode():
                    output = calls[variant]()
                output = (output[0] if isinstance(output, (list, tuple)) else output)[:4].double().cpu()
                error = float((output - reference).abs().max() / reference.abs().max())
                rows[variant] = {"variant": variant, "error": error, "macs": used}
            except Exception as error:  # a peer or a GPU may lack what a row needs; the row says so
                calls.pop(variant, None)
                rows[variant] = {"variant": variant, "failure": f"{type(error).__name__}: {str(error)[:200]}"}
            print(name, rows[variant], flush=True)
            gc.collect()
        times = interleaved(calls, device, turns)
    for variant, own in times.items():
        base = np.array(times[BASELINE]) / np.array(own) if BASELINE in times else np.full(len(own), np.nan)
        low, high = (float(np.percentile(base, q)) for q in (2.5, 97.5))
        rate = 2 * rows[variant]["macs"] * len(x) / float(np.median(own)) / 1e12
        rows[variant] |= {"ms": float(np.median(own)) * 1e3, "ratio": float(np.median(base)), "low": low, "high": high}
        rows[variant] |= {"tflops": rate}
    return {"network": name, "batch": len(x), "macs": macs, "rows": list(rows.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks: does it run?")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--variants", default=",".join((*PEERS, *HASTEN)))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--no-autotune", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        from gpu_dry import NOT_RUN, dry

        out = arguments.out or Path(__file__).parent / "results" / "gpu_not_run.json"
        dry(out, arguments.networks.split(","), arguments.small)
        raise SystemExit(f"There is no CUDA GPU here: {out} says what was built, and of every row: {NOT_RUN}.")
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    label = re.sub(r"\W+", "_", device.lower()).strip("_")
    out = arguments.out or Path(__file__).parent / "results" / f"gpu_{label}.json"
    found: dict[str, Any] = {
        "device": device,
        "small": arguments.small,
        "versions": versions(),
        "cuda": torch.version.cuda,
    }
    found["ceilings"] = ceilings(arguments.device, arguments.small)
    found["networks"] = []
    for name in arguments.networks.split(","):
        wanted = arguments.variants.split(",")
        row = measure(name, arguments.device, arguments.small, wanted, arguments.turns, not arguments.no_autotune)
        found["networks"].append(row)
        # Written after every network: a run that is cut off keeps what it measured.
        out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
