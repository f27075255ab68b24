"""EfficientNet-Lite0 on photographs of solar cells, as `examples/solar.py` trains it."""

import numpy as np

from hasten_bench.material import Material, Part, example_module

VALIDATION = 1000
CALIBRATION = 300


def make(test_rows: int) -> Material:
    """The fine-tuned network; 1,024 cells train, 1,000 are for the tools to judge themselves by, the rest tests."""
    solar = example_module("solar")
    images, labels = solar.data()
    cells, test = solar.TRAINING_CELLS, solar.TRAINING_CELLS + VALIDATION
    model = solar.trained_network(images[:cells], labels[:cells])

    def part(start: int, end: int, labelled: bool = True) -> Part:
        rows = np.ascontiguousarray(images[start:end].numpy())
        return Part((rows,), labels[start:end].numpy() if labelled else None)

    return Material(
        weights=model.state_dict(),
        calibration=part(0, CALIBRATION, labelled=False),
        validation=part(cells, test),
        train=part(0, cells),
        test=part(test, min(test + test_rows, len(labels))),
    )
