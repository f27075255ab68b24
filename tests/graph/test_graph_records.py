"""What is measured or decided once is not changed later by who was handed it."""

import hasten.graph
from records import changeable


def test_records_cannot_be_changed() -> None:
    assert changeable(hasten.graph) == {"Relations"}
