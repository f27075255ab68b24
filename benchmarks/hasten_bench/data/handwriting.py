"""scikit-learn's handwritten digits and a network trained in seconds, as `examples/digits.py` does it."""

import torch

from hasten_bench.material import Material, Part, example_module


def make(test_rows: int) -> Material:
    """700 images train, 700 are for the tools to judge themselves by, the rest tests."""
    digits = example_module("digits")
    torch.manual_seed(0)
    images, labels = digits.data()
    model = digits.train(digits.network(), images[:700], labels[:700])

    def part(start: int, end: int) -> Part:
        return Part((images[start:end].numpy(),), labels[start:end].numpy())

    return Material(
        weights=model.state_dict(),
        calibration=Part((images[:100].numpy(),)),
        train=part(0, 700),
        validation=part(700, 1400),
        test=part(1400, min(1400 + test_rows, 1797)),
    )
