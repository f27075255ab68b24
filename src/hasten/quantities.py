"""Shares and sizes as people write them."""

import re

from hasten.errors import InvalidInput


def parse_share(text: str, name: str) -> float:
    """`1%` or `0.01` as 0.01.

    Raises:
        InvalidInput: Not a number.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*(%?)\s*", text)
    try:
        if match is None:
            raise ValueError
        return float(match[1]) / (100 if match[2] else 1)
    except ValueError:
        raise InvalidInput(f"`{name}` must be a number like 0.01 or 1%, but got {text!r}.") from None


def parse_size(text: str, name: str) -> int:
    """`256KB`, `4MB`, `1.5GB` or a number of bytes as bytes; a kilobyte has 1000.

    Raises:
        InvalidInput: Not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMG]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise InvalidInput(f"`{name}` must be a size like 256KB or 4MB, but got {text!r}.")
    return round(float(match[1]) * {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}[match[2].lower()])


def parse_limits(texts: list[str]) -> dict[str, float]:
    """`["luts=40000", "hbm_bytes=16GB"]` as numbers by name.

    Raises:
        InvalidInput: Not NAME=VALUE, not a number, or a name given twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(parse_size(value, "--limit")) if name.endswith("_bytes") else float(value)
        except (ValueError, InvalidInput):
            raise InvalidInput(f"`--limit` must be NAME=VALUE, such as luts=40000, but got {text!r}.") from None
        if name in found:
            raise InvalidInput(f"`--limit` must name a quantity once, but {name} is given twice.")
        found[name] = number
    return found
