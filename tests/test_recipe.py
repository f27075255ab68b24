"""Recipes survive YAML; unknown or wrong options are named with a hint."""

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InvalidInput
from hasten.recipe import Recipe, make_target, make_technique, name_of, options_of, targets, techniques


def _default_recipes() -> list[Recipe]:
    recipes = [Recipe((), part()) for part in targets().values()]
    return recipes + [Recipe((part(),), make_target("null")) for part in techniques().values()]


@pytest.mark.parametrize("recipe", _default_recipes(), ids=lambda r: "+".join(map(name_of, (*r.steps, r.target))))
def test_every_part_survives_yaml(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("part", [*targets().values(), *techniques().values()])
def test_every_option_has_help_and_parts_are_frozen(part: Any) -> None:
    assert part.__dataclass_params__.frozen
    assert all(field.metadata.get("help") for field in dataclasses.fields(part))
    for field in dataclasses.fields(part):
        for value in field.metadata["grid"]:
            assert dataclasses.replace(part(), **{field.name: value}) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: openvin", "Did you mean 'openvino'?"),
        ("target: {onnxruntime: {thread: 2}}", "Did you mean 'threads'?"),
        ("target: {onnxruntime: {threads: -1}}", r"`threads` must be in \[0, 1024\], but got -1"),
        ("target: {onnxruntime: {threads: two}}", "`threads` must be of type int, but got 'two'"),
        ("target: {openvino: {precision: fp8}}", "`precision` must be one of 'fp32', 'bf16', but got 'fp8'"),
        ("steps: [quantise]\ntarget: 'null'", "Did you mean 'quantize'?"),
        ("steps: {a: 1}\ntarget: 'null'", "`steps` must be a list"),
        ("steps: []", "must be a mapping with `target`"),
        ("target: [1", "must be valid YAML"),
        ("target: !!python/object/apply:os.system [ls]", "must be valid YAML"),
        ("target: 3", "must be `name` or"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message.replace("?", r"\?")):
        Recipe.from_yaml(text)


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert isinstance(Recipe.from_yaml(text), Recipe)


def test_steps_must_follow_their_stages() -> None:
    quantize, distill = make_technique("quantize"), make_technique("distill")
    with pytest.raises(InvalidInput, match="must be ordered PRUNE, DISTILL, QUANTIZE"):
        Recipe((quantize, distill), make_target("null"))


def test_options_of_gives_what_make_takes() -> None:
    target = make_target("openvino", {"precision": "bf16"})
    assert make_target(name_of(target), options_of(target)) == target
