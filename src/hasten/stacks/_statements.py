"""What XLA's compilers print, read without them: the types of products, and how much memory was too much."""

import re
from collections.abc import Sequence


def products(lines: Sequence[str]) -> dict[str, int]:
    """How many convolutions and matrix products of an optimized program give each type (`s32`: from integers)."""
    found: dict[str, int] = {}
    for line in lines:
        if match := re.search(r"= (\w+)\[[^=]*\s(?:convolution|dot)\(", line):
            found[match[1]] = found.get(match[1], 0) + 1
    return found


def memory_needed(message: str) -> str:
    """The sentence of an out-of-memory message that says how much was needed and how much there is."""
    match = re.search(r"(Used|Ran out)[^\n]*", message)
    return (match[0] if match else message)[:300]
