"""Iterative magnitude pruning of single weights, ResNet-20 on CIFAR-10: accuracy against sparsity.

    python benchmarks/prune_weights_cifar.py --seeds 3

Each level starts from the one before it, raises the share of zeros, and trains for `--epochs` with the dense network's
answers (`PruneWeights`, zeros stay zero); beside it the same sparsity in one step from the dense network with one
level's training, and without any. Says nothing about speed: no CPU runtime here gains from single zeros. The test set
is scored once per level, after its last epoch. Data: see `cifar.py`.
"""

import argparse
from typing import Any

from torch.fx import GraphModule

import hasten
from cifar import BATCH, EXAMPLE, RESULTS, Ledger, Views, accuracy, dense, images, scored
from hasten.pruning.sparsity import sparsity_report
from hasten.techniques.prune_weights import PruneWeights

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
LR = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=10240)
    options = parser.parse_args()
    budget = {
        "network": "ResNet-20", "training_images": options.images, "epochs_per_level": options.epochs, "batch": BATCH,
        "peak_lr": LR, "levels": list(LEVELS), "scope": "global", "reported": "last epoch, test set",
    }  # fmt: skip
    ledger = Ledger(RESULTS / "prune_weights_cifar.json", budget)
    model, test = dense(20), scored("test")
    views = Views(*images("train", options.images), options.epochs)
    task = hasten.Task(model, EXAMPLE, scored("validation")[:1], train=views, name="cifar10")
    graph = hasten.capture(model, EXAMPLE)
    ledger.note("dense_top1", accuracy(graph, test))

    def found(pruned: GraphModule) -> dict[str, Any]:
        return {"top1": accuracy(pruned, test), "zeros": sparsity_report(pruned).sparsity}

    for level in LEVELS:
        untrained = PruneWeights(level, remove_dead=False).apply(graph, task)
        ledger.run(f"{level:.0%}", "one step, not trained", 0, lambda: found(untrained))  # noqa: B023
    for seed in range(options.seeds):
        if ledger.has(f"{LEVELS[-1]:.0%}", "iterative", seed):
            continue  # a level needs the one before it, so a seed is done again as a whole
        current = graph
        for level in LEVELS:
            technique = PruneWeights(level, epochs=options.epochs, lr=LR, seed=seed, remove_dead=False)
            current = technique.apply(current, task)
            ledger.run(f"{level:.0%}", "iterative", seed, lambda: found(current))  # noqa: B023
            if seed == 0:
                ledger.run(f"{level:.0%}", "one step", 0, lambda: found(technique.apply(graph, task)))  # noqa: B023


if __name__ == "__main__":
    main()
