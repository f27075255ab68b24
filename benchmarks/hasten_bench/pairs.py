"""Sentence embeddings judged without both sentences of a pair at hand: the other's embedding is the original's.

A tool judges rows one by one, so a validation row is one sentence; its target holds the original's embedding of the
other, and the human score of the pair. The harness itself embeds both sentences of its test pairs with what it judges.
"""

from typing import Any

import numpy as np


def rank_correlation(outputs: Any, targets: Any) -> float:
    """Spearman's correlation of cosine similarity with the human score.

    Args:
        outputs: Embeddings [n, d], arrays or tensors.
        targets: [n, d + 1]: the original's embedding of the pair's other sentence, and last the human score.
    """
    own, other, human = (np.asarray(x, np.float64) for x in (outputs, targets[:, :-1], targets[:, -1]))
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
    similarity = (own * other).sum(1) / np.maximum(lengths, 1e-30)
    return float(np.corrcoef(_ranks(similarity), _ranks(human))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean; numpy alone, since not every tool's environment has scipy."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: np.ndarray = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts + 1) / 2)[index]
    return ranks
