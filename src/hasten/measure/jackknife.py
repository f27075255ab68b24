"""A metric of a whole set as scores of its parts, so that it is tested and certified like any score of samples.

Some metrics are no mean over samples: F1, the area under a curve, rank correlation, mean average precision. The
jackknife's pseudo-values (Tukey 1958; Miller, "The jackknife: a review", Biometrika 61, 1974, section 3) are what every
part of the set contributes: nearly independent numbers, whose mean is the metric and whose spread is its own. Those of
two models on the same parts are paired.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from hasten.errors import InvalidInput

# A metric is computed once for each, and so many are enough for the bootstrap of their mean.
MOST_PARTS = 200


def pseudo_values(metric: Callable[[Any, Any], Any], output: Any, target: Any) -> np.ndarray:
    """What each part of a set contributes to its metric, [parts] float64; their mean is the metric of the set.

    Up to 200 samples every sample is a part; of more, 200 random parts are made, the same for every set of that size.

    Args:
        metric: `metric(output, target)`, one number for the set, higher is better.
        output: A pytree of tensors [n, ...].
        target: A pytree of tensors [n, ...].

    Raises:
        InvalidInput: The metric raises, or gives anything but a finite number.
    """
    count = len(pytree.tree_leaves(output)[0])
    # A set that is sorted by class must not have parts of one class.
    order = np.arange(count) if count <= MOST_PARTS else np.random.default_rng(0).permutation(count)
    parts = np.array_split(order, min(count, MOST_PARTS))
    whole = _value(metric, output, target)
    left_out = []
    for part in parts:
        stays = torch.ones(count, dtype=torch.bool)
        stays[part] = False
        without = (pytree.tree_map(lambda x, stays=stays: x[stays], tree) for tree in (output, target))
        left_out.append(_value(metric, *without))
    found = len(parts) * whole - (len(parts) - 1) * np.array(left_out)
    # The plain metric is what a user would compute; the jackknife's correction of its bias is taken off again.
    centred: np.ndarray = found - found.mean() + whole
    return centred


def _value(metric: Callable[[Any, Any], Any], output: Any, target: Any) -> float:
    rows = len(pytree.tree_leaves(output)[0])
    try:
        value = float(metric(output, target))
    except Exception as error:
        raise InvalidInput(
            f"`metric` must give one number for (outputs, targets) of any part of the holdout, but for {rows} samples "
            f"it raised {type(error).__name__}: {str(error)[:300]}."
        ) from error
    if not np.isfinite(value):
        raise InvalidInput(
            f"`metric` must give a finite number for any part of the holdout, but gave {value} for {rows} samples. "
            "Add samples, so that each part holds every class."
        )
    return value
