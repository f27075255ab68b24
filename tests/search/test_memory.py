"""What a technique has freed is not kept beside what the next one needs."""

import sys

import psutil
import pytest
import torch

from hasten.search.memory import give_back


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of Linux keeps what is freed")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Many small blocks, and one that stays behind them: nothing below it goes back by itself."""
    process = psutil.Process()
    blocks = [torch.ones(16_000) for _ in range(3000)]
    last = torch.ones(16_000)
    held = process.memory_info().rss
    del blocks
    give_back()
    assert process.memory_info().rss < held - 150e6
    assert last.sum() == 16_000
