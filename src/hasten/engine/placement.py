"""Where the waiting rows should run: earliest finish while requests keep coming, water-fill when all work is known.

Both rules are asked by one idle lane ("how many rows are mine now?") and commit nothing beyond that answer, so a slow
guess about another lane is corrected at the next event: no lane ever holds a queue that another would have to steal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.engine.service import ServiceModel

_ROUNDS_LEFT = 2
_MOST_STEPS = 64
_WORTHWHILE = 4


@dataclass(frozen=True)
class LaneView:
    """What a rule sees of a lane.

    Attributes:
        free_s: Predicted time at which it can start; now or earlier means idle.
        model: Its device's service times.
        largest: Largest batch that it takes.
        device: Number of its device; lanes of one device are alike.
    """

    free_s: float
    model: ServiceModel
    largest: int
    device: int


def earliest_finish(lanes: Sequence[LaneView], own: int, rows: int, now: float) -> tuple[int, int]:
    """Rows that lane `own` should start now, as (rows to leave before them for faster lanes, rows to take).

    The queue is laid out in order, each batch on the lane that would finish it first; `own` takes its first batch of
    that plan. (0, 0) or a take of 0: leave everything to others. With a long queue the faster lanes fill up in the plan
    and the slow ones get their turn, so near saturation the rule becomes plain pulling.

    Args:
        lanes: All usable lanes.
        own: Index of the idle lane that asks.
        rows: Rows waiting.
        now: The time, in seconds.
    """
    mine = lanes[own]
    if not mine.model.known:
        return 0, min(rows, mine.largest)
    free = [max(now, lane.free_s) for lane in lanes]
    position = 0
    for _ in range(_MOST_STEPS):
        if position >= rows:
            return position, 0
        best, best_finish, best_take = own, float("inf"), 0
        for index, lane in enumerate(lanes):
            take = share(rows - position, lane.largest, _idle(lanes, free, lane.device, now))
            finish = free[index] + lane.model.predict(take)
            # Between equals the asking lane wins, or two idle twins would each wait for the other.
            if finish < best_finish or (finish == best_finish and index == own):
                best, best_finish, best_take = index, finish, take
        if best == own or (lanes[best].device == mine.device and free[best] <= now):
            return position, best_take
        free[best] = best_finish
        position += best_take
    return 0, min(rows, mine.largest)


def _idle(lanes: Sequence[LaneView], free: Sequence[float], device: int, now: float) -> int:
    return sum(lane.device == device and at <= now for lane, at in zip(lanes, free, strict=True))


def share(rows: int, largest: int, idle: int) -> int:
    """Rows for one of `idle` equal lanes: an even part, since a batch split over idle lanes finishes no later."""
    return min(rows, largest, -(-rows // max(1, idle)))


def share_of_twins(rows: int, largest: int, idle: int, lanes: int, model: ServiceModel) -> int:
    """Rows for an idle lane of a device whose `lanes` are all alike, `idle` of them idle too.

    The busy ones come back within a batch's time: they are left their even part, so that no lane runs dry while
    another holds all there was; but not where small batches are costly, that is below four times base / row.
    """
    worthwhile = math.ceil(_WORTHWHILE * model.base_s / model.row_s) if model.row_s > 0 else rows
    return min(share(rows, largest, idle), max(share(rows, largest, lanes), worthwhile))


def water_fill(lanes: Sequence[LaneView], own: int, rows: int, now: float) -> int:
    """Rows that lane `own` should start now so that all lanes finish together.

    Full batches until about two rounds of the slowest lane remain; then the smallest common finish time T at which all
    lanes together can do the rest, and each lane takes only what it finishes by T.

    Args:
        lanes: All usable lanes.
        own: Index of the idle lane that asks.
        rows: Rows left, all of them known.
        now: The time, in seconds.
    """
    mine = lanes[own]
    finish = common_finish(lanes, rows, now)
    if finish is None or finish - now >= _ROUNDS_LEFT * max(lane.model.predict(lane.largest) for lane in lanes):
        return min(rows, mine.largest)
    can = mine.model.rows_within(finish - now, mine.largest)
    batches = -(-can // mine.largest)
    # Two even batches rather than a full and a small one: the same cost, and the second can still be corrected.
    return min(rows, mine.largest, -(-can // batches) if batches else 0)


def common_finish(lanes: Sequence[LaneView], rows: int, now: float) -> float | None:
    """The smallest time by which the lanes together can finish `rows`; None if a lane's speed is unknown."""
    if not all(lane.model.known for lane in lanes):
        return None
    starts = [max(now, lane.free_s) for lane in lanes]
    low, high = now, min(s + _alone(lane, rows) for s, lane in zip(starts, lanes, strict=True))
    for _ in range(40):
        middle = (low + high) / 2
        done = 0
        for start, lane in zip(starts, lanes, strict=True):
            done += lane.model.rows_within(middle - start, lane.largest)
        low, high = (low, middle) if done >= rows else (middle, high)
    return high


def _alone(lane: LaneView, rows: int) -> float:
    full, rest = divmod(rows, lane.largest)
    return full * lane.model.predict(lane.largest) + (lane.model.predict(rest) if rest else 0.0) + 1e-9
