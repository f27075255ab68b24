"""Weight-only quantization of a small Llama-like decoder (110 million parameters, random weights), against float.

    python benchmarks/decoder.py

Time per call (one token behind 64 cached ones, and a prompt of 32 tokens), file size, peak memory of a process that
loads and runs the file, and the distance of its logits to the graph in torch and to the float network. Writes
`benchmarks/results/decoder.json`.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hasten
from hasten.graph.capture import as_tuple
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayFile, ArrayWriter
from hasten.measure.latency import compare
from hasten.measure.worker import Worker
from hasten.recipe import Recipe, Target, describe, make_target

RESULTS = Path(__file__).parent / "results" / "decoder.json"
THREADS = int(os.environ.get("HASTEN_BENCH_THREADS", "2"))
TURNS = int(os.environ.get("HASTEN_BENCH_TURNS", "15"))
CACHED, PROMPT, JUDGED, VOCABULARY = 64, 32, 4, 32000
TECHNIQUES: dict[str, tuple[Any, ...]] = {
    "float": (),
    "int8": (hasten.QuantizeWeights(rounding="nearest"),),
    "int4 in groups of 32": (hasten.QuantizeWeights(bits=4, group=32, rounding="nearest"),),
    "int4 in groups of 128": (hasten.QuantizeWeights(bits=4, group=128, rounding="nearest"),),
}


def decoder() -> nn.Module:
    """12 layers of width 768, 12 heads on 4 key/value heads, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=12,
        intermediate_size=2048,
        vocab_size=VOCABULARY,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


class Step(nn.Module):
    """One token behind cached keys and values: ids [N, 1] and 24 caches in, logits and grown caches out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return (logits, *(x for layer in cache.layers for x in (layer.keys, layer.values)))


class Prompt(nn.Module):
    """A whole prompt: ids [N, 32] in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def cases(model: Any) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    config = model.config
    shape = (JUDGED, config.num_key_value_heads, CACHED, config.hidden_size // config.num_attention_heads)
    past = tuple(torch.randn(shape) for _ in range(2 * config.num_hidden_layers))
    return {
        "one token": (Step(model).eval(), (torch.randint(0, VOCABULARY, (JUDGED, 1)), *past)),
        "prompt of 32": (Prompt(model).eval(), (torch.randint(0, VOCABULARY, (JUDGED, PROMPT)),)),
    }


def targets() -> list[Target]:
    found = [make_target("onnxruntime", {"threads": THREADS})]
    for precision in ("fp32", "bf16"):
        target = make_target("openvino", {"threads": THREADS, "precision": precision})
        if not target.missing():
            found.append(target)
    return found


def measure(module: nn.Module, inputs: tuple[Tensor, ...], scratch: Path) -> list[dict[str, Any]]:
    one = tuple(x[:1] for x in inputs)
    graph = hasten.capture(module, one)
    task = hasten.Task(module, one, holdout=[one], calibration=[one])
    files = [ArrayWriter(scratch / f"input_{i}.bin", x.numpy()).close() for i, x in enumerate(inputs)]
    with torch.no_grad():
        exact = logits_of(graph, inputs)
        made, answers = [], {}
        for name, steps in TECHNIQUES.items():
            changed = graph
            for step in steps:
                changed = step.apply(changed, task)
            answers[name] = logits_of(changed, inputs)
            made += [(name, *compiled) for compiled in compile_all(name, changed, task, scratch)]
    with contextlib.ExitStack() as stack:
        workers = {
            f"{name} / {describe(target)}": stack.enter_context(Worker(target, folder, scratch / "log.txt"))
            for name, target, folder in made
        }
        latencies = compare(workers, next(iter(workers)), files, turns=TURNS)
        rows = []
        for (name, target, folder), (key, worker) in zip(made, workers.items(), strict=True):
            found = answer(worker, files, scratch)
            row = {"weights": name, "target": Recipe((), target).to_yaml(), "name": key}
            row |= latencies[key].to_json()
            row["size_bytes"] = sum(path.stat().st_size for path in folder.iterdir())
            row["peak_memory_bytes"] = worker.peak_memory_bytes()
            row["db_to_torch"], row["db_to_float"] = decibels(found, answers[name]), decibels(found, exact)
            rows.append(row)
    return rows


def compile_all(name: str, graph: Any, task: hasten.Task, scratch: Path) -> list[tuple[Target, Path]]:
    """Both precisions of OpenVINO read the same folder."""
    folders: dict[type[Target], Path] = {}
    for target in targets():
        if type(target) not in folders:
            folders[type(target)] = Path(tempfile.mkdtemp(dir=scratch))
            target.compile(graph, task, folders[type(target)])
    return [(target, folders[type(target)]) for target in targets()]


def answer(worker: Worker, files: list[ArrayFile], scratch: Path) -> np.ndarray:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    return np.array(worker.infer(files, np.arange(JUDGED), folder, 1)[0].open())


def logits_of(graph: Any, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """Sample by sample, as the workers run."""
    parts = [as_tuple(graph(*(x[i : i + 1] for x in inputs)))[0].numpy() for i in range(JUDGED)]
    return np.concatenate(parts)


def decibels(found: np.ndarray, exact: np.ndarray) -> float:
    """Signal to noise."""
    return float(10 * np.log10(np.mean(np.square(exact)) / np.mean(np.square(found - exact))))


def main() -> None:
    torch.set_num_threads(THREADS)
    results: dict[str, Any] = {"machine": fingerprint(), "threads": THREADS, "turns": TURNS, "cases": {}}
    for name, (module, inputs) in cases(decoder()).items():
        with tempfile.TemporaryDirectory() as scratch:
            results["cases"][name] = measure(module, inputs, Path(scratch))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{name}: times faster than float in ONNX Runtime")
        for row in results["cases"][name]:
            print(
                f"  {row['name']:60s} x{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  "
                f"{row['size_bytes'] / 1e6:.0f} MB, peak {row['peak_memory_bytes'] / 1e6:.0f} MB, "
                f"{row['db_to_torch']:.0f} dB to torch, {row['db_to_float']:.0f} dB to float"
            )


if __name__ == "__main__":
    main()
