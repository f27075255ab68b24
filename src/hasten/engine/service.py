"""How long a device takes for a batch: a + b * rows, learned online from what it really took."""

import statistics
from collections import deque

_WINDOW = 32
_REFIT_EVERY = 4
_DRIFT = 1.5
_DRIFT_RUN = 3


class ServiceModel:
    """Seconds per batch as `base_s + row_s * rows`, a robust running estimate.

    The medians per batch size over the last 32 batches are fitted, so that single hiccups do not count. Three batches
    in a row that are off by more than half in the same direction are taken for a change of the device, and what was
    seen before them is forgotten.

    Args:
        base_s: First guess of the time of an empty batch; 0 with `row_s` 0 means unknown.
        row_s: First guess of the time per row.
        fixed: The only batch size that the device takes; smaller batches are filled up and cost the same.
    """

    def __init__(self, base_s: float = 0.0, row_s: float = 0.0, fixed: int | None = None) -> None:
        self.base_s, self.row_s, self.fixed = base_s, row_s, fixed
        self._seen: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._since_fit = 0
        self._drift = 0

    @property
    def known(self) -> bool:
        """Whether anything is known about the device yet."""
        return self.base_s > 0 or self.row_s > 0

    def predict(self, rows: int) -> float:
        """Seconds for a batch of `rows`; 0 while nothing is known."""
        return self.base_s + self.row_s * (rows if self.fixed is None else self.fixed)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one finished batch."""
        if self.fixed is not None:
            rows = self.fixed
        expected = self.predict(rows)
        direction = (seconds > _DRIFT * expected) - (seconds * _DRIFT < expected)
        self._drift = self._drift + direction if direction * self._drift >= 0 and direction else direction
        self._seen.append((rows, seconds))
        self._since_fit += 1
        drifted = abs(self._drift) >= _DRIFT_RUN
        if drifted:
            last = list(self._seen)[-_DRIFT_RUN:]
            self._seen.clear()
            self._seen.extend(last)
            self._drift = 0
        if drifted or len(self._seen) <= 2 * _REFIT_EVERY or self._since_fit >= _REFIT_EVERY:
            self._fit()

    def rows_within(self, seconds: float, largest: int) -> int:
        """How many rows the device finishes in `seconds`, in batches of at most `largest`."""
        if not self.known:
            return largest
        full = self.predict(largest)
        batches = int(max(0.0, seconds) / full + 1e-9)
        left = seconds - batches * full
        if self.fixed is not None:
            return batches * min(largest, self.fixed)
        extra = int((left - self.base_s) / self.row_s + 1e-9) if self.row_s > 0 else (largest if left > 0 else 0)
        return batches * largest + min(largest, max(0, extra))

    def _fit(self) -> None:
        self._since_fit = 0
        groups: dict[int, list[float]] = {}
        for rows, seconds in self._seen:
            groups.setdefault(rows, []).append(seconds)
        points = [(rows, statistics.median(times), len(times)) for rows, times in groups.items()]
        if len(points) == 1:
            self._rescale(points[0][0], points[0][1])
        else:
            self._fit_line(points)

    def _rescale(self, rows: int, seconds: float) -> None:
        """One batch size says nothing about the split into base and row time: keep the ratio, move the level."""
        expected = self.base_s + self.row_s * rows
        if expected > 0:
            self.base_s *= seconds / expected
            self.row_s *= seconds / expected
        else:
            self.row_s = seconds / rows

    def _fit_line(self, points: list[tuple[int, float, int]]) -> None:
        """Least squares of relative errors over (rows, median seconds, count), both coefficients kept at 0 or more."""
        s0 = s1 = s2 = t0 = t1 = 0.0
        for rows, seconds, count in points:
            weight = count / max(seconds, 1e-9) ** 2
            s0, s1, s2 = s0 + weight, s1 + weight * rows, s2 + weight * rows * rows
            t0, t1 = t0 + weight * seconds, t1 + weight * seconds * rows
        determinant = s0 * s2 - s1 * s1
        row_s = (s0 * t1 - s1 * t0) / determinant
        base_s = (t0 - row_s * s1) / s0
        if row_s < 0:
            base_s, row_s = t0 / s0, 0.0
        elif base_s < 0:
            base_s, row_s = 0.0, t1 / s2
        self.base_s, self.row_s = base_s, row_s


class RunningQuantile:
    """A quantile tracked without storing samples: up by a step times p when exceeded, down by a step times 1 - p.

    Stochastic approximation (Robbins and Monro 1951) with a step that follows the spread of the samples.
    """

    def __init__(self, quantile: float, start: float = 0.0) -> None:
        self.value, self._quantile, self._spread = start, quantile, 0.0

    def observe(self, sample: float) -> None:
        """Move towards the quantile of the samples seen so far."""
        self._spread += 0.05 * (abs(sample - self.value) - self._spread)
        step = 0.2 * self._spread
        self.value += step * self._quantile if sample > self.value else -step * (1 - self._quantile)
