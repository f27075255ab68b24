"""Which positions of which tensor dimensions must leave together: boolean relations and their solution.

Every dimension of every tensor is an `Axis`, an array of numbered positions. Slicing or concatenating tensors slices or
concatenates these arrays, so most operators need nothing else. An assignment says of every position whether it is
removed. Three relations constrain it:

- tie: two positions are removed together or not at all (a residual addition, a weight's input and its activation);
- product: position (i, j) of a merged dimension is removed if and only if i of the outer or j of the inner factor is
  (a linear layer's output seen as heads x head size, a grouped convolution's channels);
- freeze: never removed (graph inputs and outputs, spatial dimensions, whatever meets an unknown operator).

`Relations.solve` finds units such that *every* choice of units to remove satisfies all relations: ties and frozen
positions are connected components; a product makes its whole a disjunction of its factors. Where two products see
the same positions differently (12 heads of 64 here, 6 of 128 there), the factors are coarsened until they agree, and
frozen where they cannot. Coarsening only ever takes freedom away, so it can make a cut impossible but never wrong.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Positions = NDArray[np.int64]

_RESERVED = 256
"""Position ids below this are frozen; which one it is says why."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a tensor.

    Attributes:
        positions: [n] ids of the positions, in order.
        dynamic: The dimension has a symbolic size: the `n` positions repeat an unknown number of times, as the heads
            do in a `batch * heads` dimension.
    """

    positions: Positions
    dynamic: bool = False

    @property
    def size(self) -> int:
        """Number of positions; of a dynamic axis, in one repetition."""
        return len(self.positions)

    @property
    def is_frozen(self) -> bool:
        """Whether every position was made frozen; ties found later may freeze more."""
        return bool((self.positions < _RESERVED).all())

    def take(self, index: Any) -> "Axis":
        """The axis of what numpy-style `index` picks."""
        return Axis(self.positions[index], self.dynamic)


@dataclass(frozen=True)
class _Product:
    whole: Positions
    factors: tuple[Positions, ...]

    def columns(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(whole), number of factors] labels of the factor positions behind every position of the whole."""
        grid = np.meshgrid(*(label[f] for f in self.factors), indexing="ij")
        return np.stack([g.reshape(-1) for g in grid], axis=1)


@dataclass
class Relations:
    """Collects axes and relations; `solve` finds the units."""

    _count: int = _RESERVED
    _reasons: list[str] = field(default_factory=list)
    _ties: list[tuple[Positions, Positions]] = field(default_factory=list)
    _products: list[_Product] = field(default_factory=list)

    def fresh(self, size: int, dynamic: bool = False) -> Axis:
        """An axis of new positions; an axis of one position is frozen, for removing it would leave nothing."""
        if size == 1:
            return self.frozen(1, "it has one position", dynamic)
        start, self._count = self._count, self._count + size
        return Axis(np.arange(start, start + size, dtype=np.int64), dynamic)

    def frozen(self, size: int, reason: str, dynamic: bool = False) -> Axis:
        """An axis whose positions are never removed, for `reason`."""
        return Axis(np.full(size, self._reason(reason), dtype=np.int64), dynamic)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Never remove a position of `axis`."""
        self.tie(axis, self.frozen(axis.size, reason))

    def tie(self, a: Axis, b: Axis) -> None:
        """Position i of `a` is removed if and only if position i of `b` is."""
        if a.size != b.size:
            raise ValueError(f"tied axes must have equal sizes, but got {a.size} and {b.size}.")
        self._ties.append((a.positions, b.positions))

    def product(self, whole: Axis, factors: Sequence[Axis]) -> None:
        """Row-major position (i, j, ...) of `whole` is removed if and only if i or j or ... is, each in its factor."""
        if whole.size != math.prod(f.size for f in factors):
            raise ValueError(f"a product of {[f.size for f in factors]} must have as many positions, got {whole.size}.")
        wide = [f for f in factors if f.size > 1]
        if len(wide) == 1:
            self.tie(whole, wide[0])
        elif len(wide) > 1:
            self._products.append(_Product(whole.positions, tuple(f.positions for f in wide)))

    def merge(self, factors: Sequence[Axis]) -> Axis:
        """The axis of dimensions flattened into one; none of them is dynamic."""
        live = [i for i, f in enumerate(factors) if not f.is_frozen]
        if len(live) > 1:
            whole = self.fresh(math.prod(f.size for f in factors))
            self.product(whole, factors)
            return whole
        main = live[0] if live else 0
        shape = [f.size if i == main else 1 for i, f in enumerate(factors)]
        full = np.broadcast_to(factors[main].positions.reshape(shape), [f.size for f in factors])
        return Axis(full.reshape(-1))

    def split(self, whole: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The axes of one dimension seen as several; it is not dynamic."""
        if whole.is_frozen:
            return [Axis(np.full(n, whole.positions[0], dtype=np.int64)) for n in sizes]
        axes = [self.fresh(n) for n in sizes]
        self.product(whole, axes)
        return axes

    def solve(self) -> "Solution":
        """Find the units; see the module's text."""
        while True:
            label = self._components()
            composites, new = _Round(label, self._products).run()
            if not new:
                return Solution(label, composites)
            self._ties += new

    def reasons(self) -> list[frozenset[str]]:
        """For every position, why it is frozen (through any chain of ties); empty if ties alone do not freeze it."""
        ties = [(a[(a >= _RESERVED) & (b >= _RESERVED)], b[(a >= _RESERVED) & (b >= _RESERVED)]) for a, b in self._ties]
        root = _connect(self._count, ties)
        found: dict[int, set[str]] = {int(root[i]): {text} for i, text in enumerate(self._reasons)}
        for one, other in self._ties:
            for a, b in ((one, other), (other, one)):
                for position, reserved in zip(a.tolist(), b.tolist(), strict=True):
                    if reserved < _RESERVED <= position:
                        found.setdefault(int(root[position]), set()).add(self._reasons[reserved])
        return [frozenset(found.get(int(r), ())) for r in root]

    def _reason(self, text: str) -> int:
        if text not in self._reasons:
            if len(self._reasons) == _RESERVED - 1:
                text = self._reasons[-1]
            else:
                self._reasons.append(text)
        return self._reasons.index(text)

    def _components(self) -> NDArray[np.int64]:
        """Component number of every position; all frozen ones are in that of position 0."""
        frozen = (np.zeros(_RESERVED, dtype=np.int64), np.arange(_RESERVED, dtype=np.int64))
        return _connect(self._count, [*self._ties, frozen])


@dataclass(frozen=True)
class Solution:
    """Units of a set of relations: any choice of units to remove satisfies every relation."""

    _label: NDArray[np.int64]
    _composites: dict[int, tuple[int, ...]]

    def units(self, axis: Axis) -> list[tuple[int, ...]]:
        """For every position of `axis`, the units it belongs to: it is removed with any of them; none: never."""
        frozen = self._label[0]
        return [
            tuple(dict.fromkeys(u for u in _expand(int(root), self._composites) if u != frozen))
            for root in self._label[axis.positions]
        ]

    def removed(self, axis: Axis, units: frozenset[int] | set[int]) -> NDArray[np.bool_]:
        """[n] True where a position of `axis` is removed when `units` are."""
        roots, inverse = np.unique(self._label[axis.positions], return_inverse=True)
        gone = [any(u in units for u in _expand(int(root), self._composites)) for root in roots]
        return np.array(gone, dtype=np.bool_)[inverse]


class _Round:
    """One pass over the products under the current ties: what they make composite, and which further ties they need."""

    def __init__(self, label: NDArray[np.int64], products: list[_Product]) -> None:
        self.label = label
        self.frozen = int(label[0])
        self.products = products
        self.composites: dict[int, tuple[int, ...]] = {}
        self.source: dict[int, tuple[int, int]] = {}
        self.conflicts: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.ties: list[tuple[int, int]] = []

    def run(self) -> tuple[dict[int, tuple[int, ...]], list[tuple[Positions, Positions]]]:
        columns = [p.columns(self.label) for p in self.products]
        for index, product in enumerate(self.products):
            whole = self.label[product.whole]
            for row, (root, members) in enumerate(zip(whole.tolist(), columns[index].tolist(), strict=True)):
                self._row(index, row, root, tuple(members))
        if not self.ties:
            self._check_cycles()
        if not self.ties:
            self._find_conflicts(columns)
            for (a, b), rows in self.conflicts.items():
                picked = np.array(rows)
                self._reconcile(self._expanded(columns[a][picked[:, 0]]), self._expanded(columns[b][picked[:, 1]]))
        return self.composites, self._as_positions()

    def _row(self, index: int, row: int, root: int, members: tuple[int, ...]) -> None:
        live = {m for m in members if m != self.frozen}
        if root == self.frozen:
            self._freeze(live)
        elif not live:
            self._freeze({root})
        elif len(live) == 1:
            if root not in live:
                self.ties.append((root, live.pop()))
        elif root in live:
            self._freeze(live - {root})
        elif root not in self.composites:
            self.composites[root], self.source[root] = members, (index, row)

    def _find_conflicts(self, columns: list[NDArray[np.int64]]) -> None:
        cache: dict[int, frozenset[int]] = {}

        def atoms(labels: Iterable[int]) -> frozenset[int]:
            found: set[int] = set()
            for one in labels:
                if one not in cache:
                    cache[one] = frozenset(_expand(one, self.composites)) - {self.frozen}
                found |= cache[one]
            return frozenset(found)

        for index, product in enumerate(self.products):
            agree = True
            pairs = []
            whole = self.label[product.whole].tolist()
            for row, (root, members) in enumerate(zip(whole, columns[index].tolist(), strict=True)):
                if root in self.composites:
                    pairs.append((self.source[root], row))
                    agree = agree and atoms(members) == atoms((root,))
            if not agree:
                for (other, other_row), row in pairs:
                    self.conflicts.setdefault((other, index), []).append((other_row, row))

    def _reconcile(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Make rows of `a` and of `b` name the same units: tie the factors that can be, freeze the others."""
        scored = []
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                classes = len(set(_join(a[:, i], b[:, j]).values()))
                if classes > 1:
                    scored.append((classes, -i, -j))
        left, right = set(range(a.shape[1])), set(range(b.shape[1]))
        for _, i, j in sorted(scored, reverse=True):
            if -i in left and -j in right:
                left.remove(-i)
                right.remove(-j)
                self.ties += zip(a[:, -i].tolist(), b[:, -j].tolist(), strict=True)
        self._freeze({int(x) for i in left for x in a[:, i]} | {int(x) for j in right for x in b[:, j]})

    def _expanded(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """`columns` with composites replaced by their factors, where all rows have equally many."""
        rows = [[u for x in row for u in _expand(x, self.composites)] for row in columns.tolist()]
        return np.array(rows) if len({len(r) for r in rows}) == 1 else columns

    def _check_cycles(self) -> None:
        """A position that is one of its own factors can only be kept."""
        state: dict[int, bool] = {}

        def visit(root: int) -> bool:
            if root in state:
                return state[root]
            state[root] = True
            state[root] = any(visit(m) for m in self.composites.get(root, ()))
            return state[root]

        self._freeze({root for root in self.composites if visit(root)})

    def _freeze(self, labels: set[int]) -> None:
        self.ties += [(x, self.frozen) for x in labels if x != self.frozen]

    def _as_positions(self) -> list[tuple[Positions, Positions]]:
        if not self.ties:
            return []
        first = np.full(int(self.label.max()) + 1, -1, dtype=np.int64)
        first[self.label[::-1]] = np.arange(len(self.label), dtype=np.int64)[::-1]
        pairs = np.array(sorted(set(self.ties)), dtype=np.int64)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        return [(first[pairs[:, 0]], first[pairs[:, 1]])] if len(pairs) else []


def _expand(root: int, composites: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    members = composites.get(root)
    if members is None:
        return (root,)
    return tuple(u for m in members for u in _expand(m, composites))


def _join(a: NDArray[np.int64], b: NDArray[np.int64]) -> dict[int, int]:
    """Class of every label when each a[i] is tied to b[i]."""
    names, flat = np.unique(np.concatenate([a, b]), return_inverse=True)
    classes = _connect(len(names), [(flat[: len(a)], flat[len(a) :])])
    return dict(zip(names.tolist(), classes.tolist(), strict=True))


def _connect(count: int, ties: Sequence[tuple[Positions, Positions]]) -> NDArray[np.int64]:
    if not ties:
        return np.arange(count, dtype=np.int64)
    a, b = (np.concatenate(side) for side in zip(*ties, strict=True))
    matrix = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(count, count))
    return np.asarray(connected_components(matrix, directed=False)[1], dtype=np.int64)
