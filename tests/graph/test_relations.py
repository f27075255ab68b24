"""The solver: whatever units are chosen, every relation holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.graph.relations import Axis, Relations, Solution


def live(solution: Solution, axis: Axis) -> int:
    return len({u for units in solution.units(axis) for u in units})


def test_tied_positions_share_a_unit() -> None:
    relations = Relations()
    a, b = relations.fresh(4), relations.fresh(4)
    relations.tie(a, b)
    solution = relations.solve()
    assert solution.units(a) == solution.units(b)
    assert live(solution, a) == 4


def test_concatenation_is_concatenated_positions() -> None:
    relations = Relations()
    a, b, weight = relations.fresh(2), relations.fresh(3), relations.fresh(5)
    relations.tie(Axis(np.concatenate([a.positions, b.positions])), weight)
    solution = relations.solve()
    assert solution.units(weight) == solution.units(a) + solution.units(b)


def test_frozen_through_a_chain_of_ties() -> None:
    relations = Relations()
    a, b, c = relations.fresh(3), relations.fresh(3), relations.fresh(3)
    relations.tie(a, b)
    relations.tie(b, c)
    relations.freeze(c.take(slice(1, 2)), "because")
    solution = relations.solve()
    assert [len(u) for u in solution.units(a)] == [1, 0, 1]
    assert relations.reasons()[a.positions[1]] == {"because"}


def test_heads_and_head_dimensions_are_both_units() -> None:
    relations = Relations()
    whole = relations.fresh(12)
    heads, inner = relations.split(whole, [3, 4])
    solution = relations.solve()
    units = solution.units(whole)
    assert units[5] == (*solution.units(heads)[1], *solution.units(inner)[1])
    first_head = solution.units(heads)[0][0]
    assert solution.removed(whole, {first_head}).tolist() == [True] * 4 + [False] * 8


def test_two_ways_to_split_agree_on_the_coarser() -> None:
    relations = Relations()
    whole = relations.fresh(24)
    fine, _ = relations.split(whole, [6, 4])
    coarse, _ = relations.split(whole, [3, 8])
    solution = relations.solve()
    assert live(solution, coarse) == 3
    assert live(solution, fine) == 3  # heads of 4 leave in pairs


def test_splits_that_share_no_structure_freeze() -> None:
    relations = Relations()
    whole = relations.fresh(6)
    relations.split(whole, [2, 3])
    relations.split(whole.take([0, 1, 3, 2, 4, 5]), [3, 2])
    solution = relations.solve()
    assert live(solution, whole) == 0


def test_a_permutation_that_keeps_a_row_keeps_that_row_removable() -> None:
    relations = Relations()
    whole = relations.fresh(6)
    relations.split(whole, [2, 3])
    relations.split(whole.take([0, 3, 5, 1, 4, 2]), [3, 2])  # {0, 3} is a column there and a row here
    units = relations.solve().units(whole)
    assert units[0] == units[3] != units[1] == units[2] == units[4] == units[5]


def test_frozen_inner_factor_leaves_the_outer() -> None:
    relations = Relations()
    whole = relations.fresh(12)
    outer, inner = relations.split(whole, [3, 4])
    relations.freeze(inner, "space")
    solution = relations.solve()
    assert solution.units(whole) == [u for u in solution.units(outer) for _ in range(4)]


def test_single_position_is_never_removed() -> None:
    relations = Relations()
    assert relations.fresh(1).is_frozen


@st.composite
def systems(draw: st.DrawFn) -> tuple[Relations, list[tuple[Axis, Axis]], list[tuple[Axis, list[Axis]]], list[Axis]]:
    relations = Relations()
    axes = [relations.fresh(n) for n in draw(st.lists(st.sampled_from([4, 6, 8, 12]), min_size=2, max_size=5))]
    ties, products, frozen = [], [], []
    for _ in range(draw(st.integers(1, 6))):
        axis = draw(st.sampled_from(axes))
        action = draw(st.sampled_from(["split", "tie", "freeze", "permute", "slice", "cat"]))
        if action == "split" and axis.size > 3:
            outer = draw(st.sampled_from([d for d in range(1, axis.size + 1) if axis.size % d == 0]))
            factors = relations.split(axis, [outer, axis.size // outer])
            products.append((axis, factors))
            axes += factors
        elif action == "tie":
            other = draw(st.sampled_from([a for a in axes if a.size == axis.size]))
            relations.tie(axis, other)
            ties.append((axis, other))
        elif action == "freeze":
            part = axis.take(slice(draw(st.integers(0, axis.size - 1)), axis.size))
            relations.freeze(part, "test")
            frozen.append(part)
        elif action == "permute":
            axes.append(axis.take(draw(st.permutations(range(axis.size)))))
        elif action == "slice":
            axes.append(axis.take(slice(0, max(axis.size // 2, 1))))
        elif action == "cat":
            axes.append(Axis(np.concatenate([axis.positions, draw(st.sampled_from(axes)).positions])))
    return relations, ties, products, frozen


@settings(max_examples=150, deadline=None)
@given(systems(), st.randoms(use_true_random=False))
def test_any_choice_of_units_satisfies_every_relation(
    system: tuple[Relations, list[tuple[Axis, Axis]], list[tuple[Axis, list[Axis]]], list[Axis]], chooser: object
) -> None:
    relations, ties, products, frozen = system
    solution = relations.solve()
    everything = [a for pair in ties for a in pair] + [a for whole, parts in products for a in [whole, *parts]]
    units = sorted({u for a in everything for found in solution.units(a) for u in found})
    chosen = {u for u in units if chooser.random() < 0.4}  # type: ignore[attr-defined]
    for a, b in ties:
        assert (solution.removed(a, chosen) == solution.removed(b, chosen)).all()
    for whole, factors in products:
        grid = np.meshgrid(*(solution.removed(f, chosen) for f in factors), indexing="ij")
        assert (solution.removed(whole, chosen) == np.logical_or.reduce(grid).reshape(-1)).all()
    for part in frozen:
        assert not solution.removed(part, set(units)).any()
