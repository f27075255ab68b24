"""Choose the layers that stay precise: those whose rounding disturbs most for the time or memory it saves."""

from collections.abc import Callable, Mapping, Sequence

from torch.fx import GraphModule

from hasten.errors import Unsupported


def by_noise_per_cost(decibels: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Layers in the order in which they should stay precise: most noise per cost of precision first.

    The noises of layers add up and so do costs, so this is the greedy solution of the knapsack problem (Dantzig 1957).

    Args:
        decibels: Signal to noise of the output by layer, with that layer alone rounded.
        costs: What a layer costs more if it is not rounded, in any unit.
    """
    return sorted(decibels, key=lambda name: -(10 ** (-decibels[name] / 10)) / max(costs[name], 1.0))


def fewest_precise(
    order: Sequence[str],
    quantize: Callable[[tuple[str, ...]], GraphModule],
    drop: Callable[[GraphModule], float],
    max_drop: float,
) -> GraphModule:
    """The quantized graph with the shortest prefix of `order` left precise whose score drops by `max_drop` at most.

    Bisects, so it takes about log2 of the layers' number attempts, and relies on what is measured, not on `order`.

    Args:
        order: Names of layers.
        quantize: Makes the graph in which the layers named stay precise.
        drop: The measured drop of a graph's score.
        max_drop: The largest accepted drop.

    Raises:
        Unsupported: Even with all layers precise the score drops more, or nothing is rounded then.
    """
    smallest = drop(best := quantize(()))
    if smallest <= max_drop:
        return best
    low, high, passing = 0, len(order) + 1, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            graph = quantize(tuple(order[:middle]))
        except Unsupported:
            # Nothing that is worth rounding is left.
            high = middle
            continue
        found = drop(graph)
        smallest = min(smallest, found)
        if found <= max_drop:
            high, passing = middle, graph
        else:
            low = middle
    if passing is None:
        raise Unsupported(
            f"No mix of precisions keeps the drop of the score within {max_drop:g}; the smallest found is "
            f"{smallest:g}. Raise `max_drop`, or train with TrainQuantized."
        )
    return passing
