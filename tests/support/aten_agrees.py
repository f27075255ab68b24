"""One operator of `hasten.graph.aten` on numpy arrays against the operator of torch that it stands for."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from hasten.graph.aten import TABLE

Case = tuple[OpOverload, tuple[Any, ...], dict[str, Any]]


def case(operator: OpOverload, *args: Any, **kwargs: Any) -> Case:
    return operator, args, kwargs


def name_of(value: Any) -> str | None:
    """What a test is called: the operator, and what it is given beside tensors."""
    if not (isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], OpOverload)):
        return None
    operator, args, kwargs = value
    given = [_short(x) for x in args] + [f"{name}={_short(x)}" for name, x in kwargs.items()]
    return f"{operator}({', '.join(given)})"


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return f"{str(value.dtype)[6:]}{list(value.shape)}" if isinstance(value, Tensor) else str(value)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(made: Case, *, tolerance: float = 1e-5, outputs: int | None = None) -> None:
    """Same values, shapes and dtypes; arguments go by the names of the schema with its defaults, as in a plan.

    Args:
        made: Operator and arguments.
        tolerance: Relative and absolute.
        outputs: How many outputs are compared, of operators that return some only for gradients; all if None.
    """
    operator, args, kwargs = made
    schema = operator._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    named |= {a.name: value for a, value in zip(schema, args, strict=False)} | kwargs
    found = TABLE[str(operator.overloadpacket)](np, **{name: _array(value) for name, value in named.items()})
    expected = operator(*args, **kwargs)
    if isinstance(expected, (list, tuple)):
        expected = expected[:outputs]
        assert len(found) == len(expected)
    else:
        found, expected = [found], [expected]
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, Tensor):
            assert np.shape(ours) == tuple(theirs.shape)
            assert str(np.asarray(ours).dtype) == str(theirs.dtype).removeprefix("torch.")
            theirs = theirs.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, torch.dtype):
        return torch.empty(0, dtype=value).numpy().dtype.type
    if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return None
    return [_array(x) for x in value] if isinstance(value, (list, tuple)) else value
