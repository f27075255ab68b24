"""Run a compiled package on a GPU: inputs in fixed places, launches recorded once and replayed as one CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.pieces import in_pieces
from hasten.recipe import Program

_WARM_UP_CALLS = 3


def program_of(
    run: Callable[..., Any], specs: Sequence[tuple[Sequence[int], str]], device: str, graphs: bool
) -> Program:
    """A program over fixed-size calls of `run`; other batch sizes are run in pieces, the last one filled up.

    Args:
        run: The compiled package: tensors on `device` to tensors.
        specs: Shape, batch first, and dtype of every input of one call.
        device: "cuda", or "cpu" in tests.
        graphs: Whether to record the launches as a CUDA graph; only on "cuda".
    """
    places = [torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=device) for shape, dtype in specs]
    call = recorded(run, places) if graphs else lambda: _leaves(run(*places))

    @torch.inference_mode()
    def piece(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for place, x in zip(places, arrays, strict=True):
            place.copy_(torch.from_numpy(np.ascontiguousarray(x)))
        # Copying back waits for the device.
        return [_numpy(y) for y in call()]

    return in_pieces(piece, len(places[0]))


def recorded(run: Callable[..., Any], places: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """`run` over `places` as one CUDA graph; what it returns is overwritten by the next call."""
    with torch.inference_mode():
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Libraries choose algorithms and allocate workspaces at first calls, which a recording must not hold.
            for _ in range(_WARM_UP_CALLS):
                run(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = _leaves(run(*places))

    def replay() -> list[Tensor]:
        graph.replay()
        return outputs

    return replay


def _leaves(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


def _numpy(y: Tensor) -> np.ndarray:
    y = y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
    result: np.ndarray = y.cpu().numpy()
    # On the CPU nothing was copied, and the next call may write to the same place.
    return result.copy() if y.device.type == "cpu" else result
