"""The engine's decisions as a state machine without threads or a clock of its own: events in, batches out.

The live engine drives it from its lanes' threads with the real clock; the simulator drives the same code with a
virtual one, so that every scheduling rule is tested deterministically. It is not thread-safe: the caller locks.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from hasten.engine.placement import LaneView, earliest_finish, share_of_twins, water_fill
from hasten.engine.service import RunningQuantile
from hasten.engine.work import Batch, Device, DeviceFailed, Lane, Limits, Mode, Piece, Work, fail, split

_FIRST_REST_S = 0.01
_LONGEST_REST_S = 5.0


class Dispatcher:
    """Shares waiting rows out to lanes; see the module's docstring.

    Args:
        devices: Devices with their numbers of lanes.
        limits: What to keep to; None: the defaults.
    """

    def __init__(self, devices: Sequence[tuple[Device, int]], limits: Limits | None = None) -> None:
        self.devices = [device for device, _ in devices]
        self.lanes: list[Lane] = []
        for number, (device, lanes) in enumerate(devices):
            self.lanes += [Lane(len(self.lanes) + i, device, number) for i in range(lanes)]
        self.limits = limits or Limits()
        self.mode = Mode.ONLINE
        # Offline, more rows are coming than are waiting: the tail has not begun.
        self.more_coming = False
        self.waiting_rows = 0
        self.resent = 0
        self._queue: deque[Piece] = deque()
        # A tenth of the bound is kept free until there is experience.
        self._slack = RunningQuantile(0.99, 0.1 * (self.limits.bound_s or 0.0))
        self._helpless_since: float | None = None

    def add(self, work: Work) -> None:
        """Queue a work."""
        if self.limits.bound_s is not None:
            work.promised_s = work.arrived_s + self._expected_latency(work.rows, work.arrived_s)
        self._queue.append(Piece(work, 0, work.rows))
        self.waiting_rows += work.rows

    def take(self, lane: Lane, now: float) -> Batch | None:
        """The batch that an idle lane should start now, or None."""
        if lane.batch is not None or lane.dead or not self._queue or self._rests(lane.device, now):
            return None
        skip, rows = self._share(lane, now)
        if rows <= 0 or self._lingers(rows, lane, now):
            return None
        pieces = self._cut(skip, rows, lane)
        if not pieces:
            return None
        total = sum(piece.rows for piece in pieces)
        lane.batch = Batch(pieces, total, now, now + lane.device.model.predict(total))
        return lane.batch

    def wake_at(self, now: float) -> float | None:
        """When to ask the idle lanes again although nothing happened; None: only at the next event."""
        if not self._queue:
            return None
        times = [device.rest_until_s for device in self.devices]
        if self.limits.linger_s > 0:
            times.append(self._queue[0].work.arrived_s + self.limits.linger_s)
        return min((at for at in times if at > now), default=None)

    def finished(self, lane: Lane, now: float) -> list[Work]:
        """A lane's batch came back; returns the works that are complete by it, each exactly once."""
        batch = lane.batch
        assert batch is not None
        lane.batch, lane.stalled, self._helpless_since = None, False, None
        device = lane.device
        seconds = now - batch.started_s
        device.model.observe(batch.rows, seconds)
        device.errors, device.rest_until_s = 0, 0.0
        device.rows_done += batch.rows
        device.batches_done += 1
        device.busy_s += seconds
        complete = []
        for piece in batch.pieces:
            work = piece.work
            if work.over:
                continue
            work.missing -= work.answered.count(0, piece.start, piece.stop)
            work.answered[piece.start : piece.stop] = b"\1" * piece.rows
            if work.missing == 0:
                complete.append(work)
                if work.promised_s is not None:
                    self._slack.observe(now - work.promised_s)
        return complete

    def failed(
        self, lane: Lane, now: float, error: BaseException, *, dead: bool = False, reviving: bool = False
    ) -> list[Work]:
        """A lane's batch raised; its rows are sent once more, one by one piece, elsewhere if there is an elsewhere.

        Args:
            lane: The lane.
            now: The time, in seconds.
            error: What it raised.
            dead: It takes nothing any more.
            reviving: The caller tries to bring it back, and tells by `revived` or `given_up`.

        Returns:
            Works that failed for good; their `error` is set.
        """
        batch, lane.batch = lane.batch, None
        stalled, lane.stalled = lane.stalled, False
        device = lane.device
        lane.dead, lane.reviving = lane.dead or dead, reviving
        device.errors += 1
        device.rest_until_s = now + min(_LONGEST_REST_S, _FIRST_REST_S * 2**device.errors)
        lost: list[Work] = []
        if batch is not None and stalled:  # what was sent for the first time was sent again when it stalled
            lost = fail([piece for piece in batch.pieces if piece.tries], error)
        elif batch is not None:
            lost = self._resend(batch.pieces, device, error)
        return lost + self._fail_if_all_dead(error)

    def hopeless(self, now: float) -> list[Lane]:
        """Lanes stalled for half of `give_up_s`: better ended, where that is possible, than waited for."""
        return [
            lane
            for lane in self.lanes
            if lane.stalled and lane.batch is not None and now - lane.batch.started_s > 0.5 * self.limits.give_up_s
        ]

    def revived(self, lane: Lane) -> None:
        """A lane that was dead takes batches again."""
        lane.dead = lane.reviving = False
        lane.device.errors, lane.device.rest_until_s = 0, 0.0

    def given_up(self, lane: Lane, error: BaseException) -> list[Work]:
        """A lane that was reviving stays dead; returns works that failed for good."""
        lane.reviving = False
        return self._fail_if_all_dead(error)

    def _fail_if_all_dead(self, error: BaseException) -> list[Work]:
        if any(not x.dead or x.reviving for x in self.lanes):
            return []
        return self._fail_waiting(DeviceFailed(f"Every device is dead; the last error was: {error}"))

    def overdue(self, now: float) -> list[Work]:
        """Notice lanes that stall and send their rows once more; returns works that failed for good.

        Rows that stall a second time are left where they are: the first of the two lanes that comes back answers them,
        and only when neither does within `give_up_s` they fail.
        """
        lost: list[Work] = []
        for lane in self.lanes:
            if lane.batch is None or lane.dead:
                continue
            elapsed = now - lane.batch.started_s
            allowed = self.limits.stall_factor * lane.device.model.predict(lane.batch.rows)
            if not lane.stalled and elapsed > max(self.limits.stall_s, allowed):
                lane.stalled = True
                first = [piece for piece in lane.batch.pieces if not piece.tries]
                self._resend(first, lane.device, DeviceFailed(""))
            elif lane.stalled and elapsed > self.limits.give_up_s:
                error = DeviceFailed(
                    f"A batch stalled twice, the second time on {lane.device.name} for {elapsed:.1f} s."
                )
                lost += fail([piece for piece in lane.batch.pieces if piece.tries], error)
        if not self._queue or any(x.reviving or not (x.dead or x.stalled) for x in self.lanes):
            self._helpless_since = None
        else:
            self._helpless_since = now if self._helpless_since is None else self._helpless_since
            if now - self._helpless_since > self.limits.give_up_s:
                lost += self._fail_waiting(
                    DeviceFailed(f"Every device has been stalled or dead for {self.limits.give_up_s:g} s.")
                )
        return lost

    def predicted_wait(self, now: float) -> float:
        """Seconds until rows that arrive now would start: what is waiting at the devices' joint speed, after the
        first lane is free."""
        frees, speed = [], 0.0
        for lane in self.lanes:
            if lane.dead or lane.stalled:
                continue
            frees.append(self._free_at(lane, now) - now)
            full = lane.device.model.predict(lane.device.largest)
            speed += lane.device.largest / full if full > 0 else 0.0
        if not frees:
            return float("inf")
        return min(frees) + (self.waiting_rows / speed if speed > 0 else 0.0)

    def predicted_latency(self, rows: int, now: float) -> float:
        """Seconds until `rows` that arrive now would be answered; where there is a bound, with the 99th percentile of
        how much later than expected earlier answers came."""
        return self._expected_latency(rows, now) + max(0.0, self._slack.value)

    def _expected_latency(self, rows: int, now: float) -> float:
        usable = [lane.device for lane in self.lanes if not lane.dead and not lane.stalled]
        if not usable:
            return float("inf")
        ahead = min(self.waiting_rows, max(device.largest for device in usable) - 1)
        service = min(device.model.predict(min(rows + ahead, device.largest)) for device in usable)
        return self.predicted_wait(now) + service

    def admits(self, rows: int, bound_s: float, now: float) -> bool:
        """Whether `rows` that arrive now would be answered within the bound; always when a lane is idle."""
        if not self.waiting_rows and any(x.batch is None and not x.dead for x in self.lanes):
            return True
        return self.predicted_latency(rows, now) <= bound_s

    def abandon(self, error: BaseException) -> list[Work]:
        """Fail everything that waits or runs; returns those works."""
        lost = self._fail_waiting(error)
        for lane in self.lanes:
            lost += fail(lane.batch.pieces if lane.batch is not None else (), error)
        return lost

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue and all(lane.batch is None for lane in self.lanes)

    def _share(self, lane: Lane, now: float) -> tuple[int, int]:
        lanes = [x for x in self.lanes if not x.dead and not x.stalled and not self._rests(x.device, now)]
        if self.mode is Mode.OFFLINE and self.more_coming:
            return 0, min(self.waiting_rows, self._largest(lane.device))
        if self.mode is Mode.ONLINE and all(x.device is lane.device for x in lanes):
            idle = sum(x.batch is None for x in lanes)
            largest = self._largest(lane.device)
            return 0, share_of_twins(self.waiting_rows, largest, idle, len(lanes), lane.device.model)
        if lane not in lanes:
            return 0, 0
        views = [LaneView(self._free_at(x, now), x.device.model, self._largest(x.device), x.number) for x in lanes]
        if self.mode is Mode.OFFLINE:
            return 0, water_fill(views, lanes.index(lane), self.waiting_rows, now)
        return earliest_finish(views, lanes.index(lane), self.waiting_rows, now)

    def _largest(self, device: Device) -> int:
        bound = self.limits.bound_s
        if bound is None or not device.model.known or self.mode is Mode.OFFLINE:
            return device.largest
        return max(1, min(device.largest, device.model.rows_within(bound / 2, device.largest)))

    def _free_at(self, lane: Lane, now: float) -> float:
        if lane.batch is None:
            return now
        # A batch that is late tends to stay: expect a quarter of what it has taken so far on top.
        late = now + 0.25 * (now - lane.batch.started_s) if now > lane.batch.expected_s else 0.0
        return max(lane.batch.expected_s, late)

    def _rests(self, device: Device, now: float) -> bool:
        if device.rest_until_s <= now:
            return False
        return any(x.device is not device and not x.dead and not x.stalled for x in self.lanes)

    def _lingers(self, rows: int, lane: Lane, now: float) -> bool:
        if self.limits.linger_s <= 0 or self.mode is Mode.OFFLINE:
            return False
        # Compared as `wake_at` computes it, so that waking at that time is late enough in floating point too.
        return rows < self._largest(lane.device) and now < self._queue[0].work.arrived_s + self.limits.linger_s

    def _cut(self, skip: int, rows: int, lane: Lane) -> list[Piece]:
        """Take up to `rows` rows out of the queue after leaving `skip`; a piece sent again runs on its own."""
        passed: list[Piece] = []
        taken: list[Piece] = []
        while self._queue and rows > 0:
            piece = self._queue.popleft()
            if piece.work.over:
                self.waiting_rows -= piece.rows
            elif taken and piece.work.key != taken[0].work.key:
                self._queue.appendleft(piece)
                break
            elif piece.avoid is lane.device and self._elsewhere(lane.device):
                passed.append(piece)
            elif piece.tries and piece.rows <= lane.device.largest:
                if taken:
                    self._queue.appendleft(piece)
                else:
                    taken.append(piece)
                break
            elif skip >= piece.rows:
                skip -= piece.rows
                passed.append(piece)
            else:
                head, middle, tail = split(piece, skip, rows)
                passed += head
                skip = 0
                rows -= middle.rows
                taken.append(middle)
                if tail is not None:
                    self._queue.appendleft(tail)
        self._queue.extendleft(reversed(passed))
        self.waiting_rows -= sum(piece.rows for piece in taken)
        return taken

    def _elsewhere(self, device: Device) -> bool:
        return any(x.device is not device and not x.dead and not x.stalled for x in self.lanes)

    def _resend(self, pieces: Iterable[Piece], device: Device, error: BaseException) -> list[Work]:
        lost = []
        for piece in reversed(list(pieces)):
            if piece.work.over:
                continue
            if piece.tries >= 1:
                piece.work.error = error
                lost.append(piece.work)
                continue
            self._queue.appendleft(Piece(piece.work, piece.start, piece.stop, piece.tries + 1, device))
            self.waiting_rows += piece.rows
            self.resent += 1
        return lost

    def _fail_waiting(self, error: BaseException) -> list[Work]:
        lost = fail(self._queue, error)
        self._queue.clear()
        self.waiting_rows = 0
        return lost
