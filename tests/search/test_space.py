"""What a search tries of every target."""

import pytest

from hasten.recipe import name_of, targets
from hasten.search.space import free, quantized


def test_what_takes_integers_alone_is_not_tried_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.environments.missing", lambda _: "")
    parts = {name: targets()[name] for name in ("fpga", "tpu")}
    limits = {"luts": 1.0, "hbm_bytes": 1.0}
    assert {name_of(recipe.target) for recipe in free(parts, limits)} == {"tpu"}
    assert {name_of(recipe.target) for recipe in quantized(parts, limits)} == {"fpga", "tpu"}
