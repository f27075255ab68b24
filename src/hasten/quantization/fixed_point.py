"""Integer arithmetic of a requantization: multiply by a fixed-point number, shift, round half to even.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.2, with rounding half to even in place of half away from zero.
"""

import numpy as np

_BITS = 31


def multipliers(*factors: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Integers m and one shift n with m / 2**n = factor to 31 significant bits of the largest factor.

    Args:
        factors: Positive float64 arrays of any shapes.

    Returns:
        One int64 array per factor, each below 2**31, and the shift.
    """
    largest = max(float(np.max(factor)) for factor in factors)
    shift = min(_BITS - 1 - int(np.floor(np.log2(largest))), 61)
    return [np.rint(np.asarray(factor, np.float64) * 2.0**shift).astype(np.int64) for factor in factors], shift


def round_shift(values: np.ndarray, shift: int) -> np.ndarray:
    """`values / 2**shift` for int64 values, rounded half to even."""
    if shift <= 0:
        return values << -shift
    floor = values >> shift
    rest = values - (floor << shift)
    half = np.int64(1) << (shift - 1)
    rounded: np.ndarray = floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))
    return rounded
