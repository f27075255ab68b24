"""What PyTorch can tell of the machine: matrix products, memory bandwidth, the cost of an operator. In a child."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hasten.machine import usable_cores

_SECONDS = 0.25


def measure(message: dict[str, Any]) -> dict[str, Any]:
    """The best of every probe: seconds of an n x n x n product by dtype, bytes per second, microseconds per operator.

    Args:
        message: `side` of the matrices, `cache_bytes` and `dram_bytes` of the buffers that are read and copied.
    """
    torch.set_num_threads(usable_cores())
    side = message["side"]
    products = {}
    with torch.inference_mode():
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
            products[name] = _best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        a8, b8 = (torch.randint(-127, 127, (side, side), dtype=torch.int8) for _ in range(2))
        products["int8"] = _best(lambda: torch._int_mm(a8, b8))
        tiny = torch.randn(1, 8)
        return {
            "product_s": products,
            "cache_bytes_per_s": _bandwidth(message["cache_bytes"]),
            "dram_bytes_per_s": _bandwidth(message["dram_bytes"]),
            "operator_us": _best(lambda: torch.softmax(tiny, 1)) * 1e6,
        }


def _bandwidth(size_bytes: int) -> float:
    """Bytes per second of the better of reading all of a buffer and copying one half of it onto the other."""
    buffer = torch.ones(size_bytes // 4)
    one, other = buffer.chunk(2)
    read = size_bytes / _best(buffer.sum)
    copied = size_bytes / _best(lambda: other.copy_(one))
    scaled = size_bytes / _best(lambda: buffer.mul_(1.0)) * 2
    return float(max(read, copied, scaled))


def _best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call within a quarter of a second, after one to warm up."""
    call()
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(found) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return float(np.min(found))
