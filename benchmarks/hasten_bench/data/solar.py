"""EfficientNet-Lite0 on photographs of solar cells, as `examples/solar.py` trains it."""

import numpy as np

from hasten_bench.material import Material, Part, example_module

VALIDATION = 1000
CALIBRATION = 300


def make(test_rows: int) -> Material:
    """The fine-tuned network; the example's training cells train, 1,000 others are for the tools, the rest tests."""
    solar = example_module("solar")
    images, labels = solar.data()
    trained, judged = solar.TRAINING_CELLS, solar.TRAINING_CELLS + VALIDATION
    model = solar.trained_network(images[:trained], labels[:trained])

    def part(start: int, end: int, labelled: bool = True) -> Part:
        rows = np.ascontiguousarray(images[start:end].numpy())
        return Part((rows,), labels[start:end].numpy() if labelled else None)

    return Material(
        weights=model.state_dict(),
        calibration=part(0, CALIBRATION, labelled=False),
        validation=part(trained, judged),
        train=part(0, trained),
        test=part(judged, min(judged + test_rows, len(labels))),
    )
