"""Operators that move, copy, choose or make values without arithmetic on them."""

from typing import Any

import numpy as np

from hasten.graph.aten.table import Function, entering

TABLE: dict[str, Function] = {
    "aten.sym_size": lambda xp, self, dim: self.shape[dim],
    "aten.sym_numel": lambda xp, self: self.size,
    "aten.permute": lambda xp, self, dims: xp.transpose(self, dims),
    "aten.transpose": lambda xp, self, dim0, dim1: xp.swapaxes(self, dim0, dim1),
    "aten.t": lambda xp, self: xp.swapaxes(self, 0, -1),
    "aten.movedim": lambda xp, self, source, destination: xp.moveaxis(self, source, destination),
    "aten.unsqueeze": lambda xp, self, dim: xp.expand_dims(self, dim),
    "aten.cat": lambda xp, tensors, dim=0: xp.concatenate([x for x in tensors if x.shape != (0,)], axis=dim),
    "aten.concat": lambda xp, tensors, dim=0: xp.concatenate(tensors, axis=dim),
    "aten.stack": lambda xp, tensors, dim=0: xp.stack(tensors, axis=dim),
    "aten.flip": lambda xp, self, dims: xp.flip(self, axis=tuple(dims)),
    "aten.index_select": lambda xp, self, dim, index: xp.take(self, index, axis=dim),
    "aten.tril": lambda xp, self, diagonal=0: xp.tril(self, diagonal),
    "aten.triu": lambda xp, self, diagonal=0: xp.triu(self, diagonal),
}


@entering(
    TABLE,
    "aten.clone",
    "aten.contiguous",
    "aten.alias",
    "aten.detach",
    "aten.lift_fresh_copy",
    "aten.dropout",
    "aten.to",
    "aten._to_copy",
    "aten.type_as",
)
def _same(xp: Any, **arguments: Any) -> Any:
    x = arguments["self"] if "self" in arguments else arguments["input"]
    dtype = arguments.get("dtype") or getattr(arguments.get("other"), "dtype", None)
    return x if dtype is None else x.astype(dtype)


@entering(TABLE, "aten.view", "aten.reshape", "aten._unsafe_view")
def _reshape(xp: Any, self: Any, size: Any = None, shape: Any = None) -> Any:
    return xp.reshape(self, tuple(shape if size is None else size))


@entering(TABLE, "aten.flatten")
def _flatten(xp: Any, self: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    start, end = start_dim % self.ndim, end_dim % self.ndim
    merged = 1
    for size in self.shape[start : end + 1]:
        merged = merged * size
    return xp.reshape(self, (*self.shape[:start], merged, *self.shape[end + 1 :]))


@entering(TABLE, "aten.unflatten")
def _unflatten(xp: Any, self: Any, dim: int, sizes: Any) -> Any:
    dim %= self.ndim
    return xp.reshape(self, (*self.shape[:dim], *sizes, *self.shape[dim + 1 :]))


@entering(TABLE, "aten.squeeze")
def _squeeze(xp: Any, self: Any, dim: Any = None) -> Any:
    wanted = range(self.ndim) if dim is None else dim if isinstance(dim, list) else [dim]
    gone = tuple(d % self.ndim for d in wanted if self.shape[d] == 1)
    return xp.squeeze(self, axis=gone)


@entering(TABLE, "aten.expand")
def _expand(xp: Any, self: Any, size: Any, implicit: bool = False) -> Any:
    lead = len(size) - self.ndim
    shape = [
        self.shape[i - lead] if i >= lead and isinstance(want, int) and want == -1 else want
        for i, want in enumerate(size)
    ]
    return xp.broadcast_to(self, tuple(shape))


TABLE["aten.expand_as"] = lambda xp, self, other: xp.broadcast_to(self, other.shape)


@entering(TABLE, "aten.repeat")
def _repeat(xp: Any, self: Any, repeats: Any) -> Any:
    return xp.tile(self, tuple(repeats))


@entering(TABLE, "aten.slice")
def _slice(xp: Any, self: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    limit = np.iinfo(np.int64).max
    end = None if isinstance(end, int) and end >= limit else end
    return self[(slice(None),) * (dim % self.ndim) + (slice(start, end, step),)]


@entering(TABLE, "aten.select")
def _select(xp: Any, self: Any, dim: int, index: Any) -> Any:
    return self[(slice(None),) * (dim % self.ndim) + (index,)]


@entering(TABLE, "aten.narrow")
def _narrow(xp: Any, self: Any, dim: int, start: Any, length: Any) -> Any:
    # From the end, two elements from the last but one would end at 0, which is nothing.
    start = start + self.shape[dim] if isinstance(start, int) and start < 0 else start
    return _slice(xp, self, dim, start, start + length)


@entering(TABLE, "aten.index")
def _index(xp: Any, self: Any, indices: Any) -> Any:
    return self[tuple(slice(None) if index is None else index for index in indices)]


@entering(TABLE, "aten.gather")
def _gather(xp: Any, self: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    dim %= self.ndim
    # torch takes an index that is smaller than the tensor in the other dimensions.
    part = self[tuple(slice(None) if d == dim else slice(index.shape[d]) for d in range(self.ndim))]
    return xp.take_along_axis(part, index, axis=dim)


@entering(TABLE, "aten.split", "aten.split_with_sizes")
def _split(xp: Any, self: Any, split_size: Any = None, split_sizes: Any = None, dim: int = 0) -> Any:
    size, length = (split_size if split_sizes is None else split_sizes), self.shape[dim]
    sizes = size if isinstance(size, list) else [min(size, length - at) for at in range(0, length, size)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_slice(xp, self, dim, at, at + n) for at, n in zip(starts, sizes, strict=True)]


@entering(TABLE, "aten.chunk")
def _chunk(xp: Any, self: Any, chunks: int, dim: int = 0) -> Any:
    return _split(xp, self, -(-self.shape[dim] // chunks), dim=dim)


@entering(TABLE, "aten.unbind")
def _unbind(xp: Any, self: Any, dim: int = 0) -> Any:
    return [_select(xp, self, dim, i) for i in range(self.shape[dim])]


@entering(TABLE, "aten.roll")
def _roll(xp: Any, self: Any, shifts: Any, dims: Any = ()) -> Any:
    return xp.roll(self, tuple(shifts), axis=tuple(dims)) if dims else xp.roll(self, shifts[0])


@entering(TABLE, "aten.diff")
def _diff(xp: Any, self: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    x = xp.concatenate([p for p in (prepend, self, append) if p is not None], axis=dim)
    return xp.diff(x, n=n, axis=dim)


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@entering(TABLE, "aten.pad", "aten.constant_pad_nd")
def pad(xp: Any, self: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Pad pairs from the last dimension backwards; a negative amount crops."""
    pairs = [(0, 0)] * (self.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    crop = tuple(slice(-min(lo, 0), size + min(hi, 0)) for (lo, hi), size in zip(pairs, self.shape, strict=True))
    x = self[crop] if any(lo < 0 or hi < 0 for lo, hi in pairs) else self
    widths = [(max(lo, 0), max(hi, 0)) for lo, hi in pairs]
    if mode == "constant":
        return xp.pad(x, widths, constant_values=value or 0)
    return xp.pad(x, widths, mode=_MODES[mode])


@entering(TABLE, "aten.arange")
def _arange(xp: Any, end: Any, start: Any = 0, step: Any = 1, dtype: Any = None, **_: Any) -> Any:
    whole = not any(isinstance(x, float) for x in (start, end, step))
    return xp.arange(start, end, step, dtype=dtype or (xp.int64 if whole else xp.float32))


def _default(xp: Any, value: Any) -> Any:
    return xp.bool_ if isinstance(value, bool) else xp.int64 if isinstance(value, int) else xp.float32


@entering(TABLE, "aten.full", "aten.scalar_tensor")
def _full(xp: Any, size: Any = (), fill_value: Any = None, s: Any = None, dtype: Any = None, **_: Any) -> Any:
    value = s if fill_value is None else fill_value
    kind = dtype or (xp.float32 if fill_value is None else _default(xp, value))
    return xp.full(tuple(size), value, dtype=kind)


TABLE["aten.zeros"] = lambda xp, size, dtype=None, **_: xp.zeros(tuple(size), dtype=dtype or xp.float32)
TABLE["aten.ones"] = lambda xp, size, dtype=None, **_: xp.ones(tuple(size), dtype=dtype or xp.float32)


@entering(TABLE, "aten.full_like", "aten.new_full")
def _full_like(xp: Any, self: Any, fill_value: Any, size: Any = None, dtype: Any = None, **_: Any) -> Any:
    return xp.full(self.shape if size is None else tuple(size), fill_value, dtype=dtype or self.dtype)


for _name, _value in (("zeros", 0), ("ones", 1)):
    TABLE[f"aten.{_name}_like"] = lambda xp, self, _value=_value, **rest: _full_like(xp, self, _value, **rest)
    TABLE[f"aten.new_{_name}"] = lambda xp, self, size, _value=_value, **rest: _full_like(
        xp, self, _value, size=size, **rest
    )
