"""The nouns of the dispatcher: works and their pieces, batches, devices and lanes, limits."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hasten.engine.service import ServiceModel
from hasten.errors import HastenError


class DeviceFailed(HastenError):
    """A device died or stalled, and so did the one that the work was sent to again, or there was none."""


class Mode(enum.Enum):
    """Which rule shares the waiting rows out."""

    ONLINE = "earliest finish"
    OFFLINE = "water-fill"


@dataclass(eq=False, slots=True)
class Work:
    """Rows that were submitted together and are answered together; large ones run in several pieces.

    Attributes:
        rows: Number of rows.
        arrived_s: When it was submitted.
        payload: The caller's own; not looked at here.
        key: Only works with equal keys share a batch: the shapes of their rows, where those may differ.
        promised_s: When its answer was expected when it arrived; None: nobody asked.
        missing: Rows without an answer so far.
        error: Why it failed, if it did.
        cancelled: Set by the caller when nobody waits for the answer any more.
    """

    rows: int
    arrived_s: float
    payload: Any = None
    key: object = None
    promised_s: float | None = None
    missing: int = field(init=False)
    error: BaseException | None = None
    cancelled: bool = False
    answered: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.missing = self.rows
        self.answered = bytearray(self.rows)

    @property
    def over(self) -> bool:
        """Answered, failed or cancelled."""
        return self.missing == 0 or self.error is not None or self.cancelled


@dataclass(eq=False, slots=True)
class Piece:
    """Rows [start, stop) of a work, with how often they were sent and the device that failed them."""

    work: Work
    start: int
    stop: int
    tries: int = 0
    avoid: "Device | None" = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(eq=False, slots=True)
class Batch:
    """Pieces that run together on one lane."""

    pieces: list[Piece]
    rows: int
    started_s: float
    expected_s: float


@dataclass(eq=False)
class Device:
    """A program on some hardware, with the limits of its batches.

    Attributes:
        name: For people.
        model: Its service times.
        largest: Largest batch worth running (the knee), or the only one it takes.
    """

    name: str
    model: ServiceModel
    largest: int
    errors: int = 0
    rest_until_s: float = 0.0
    rows_done: int = 0
    batches_done: int = 0
    busy_s: float = 0.0


@dataclass(eq=False)
class Lane:
    """One caller of a device: runs one batch at a time.

    Attributes:
        dead: Takes nothing; while it is `reviving` there is hope that it comes back.
    """

    index: int
    device: Device
    number: int
    batch: Batch | None = None
    stalled: bool = False
    dead: bool = False
    reviving: bool = False


@dataclass(frozen=True)
class Limits:
    """What the dispatcher keeps to.

    Attributes:
        bound_s: Latency bound; a batch may take half of it, since a request may arrive just after one started. None: no
            bound.
        linger_s: How long an idle lane may wait for a batch to fill; 0 is work-conserving.
        stall_s, stall_factor: A batch that took longer than both `stall_s` and `stall_factor` times its prediction has
            stalled.
        give_up_s: A process that is stalled for half of it is ended and started again. Work fails when it stalled
            twice and the second lane is stuck for that long, and when every device has been dead or stalled for that
            long.
    """

    bound_s: float | None = None
    linger_s: float = 0.0
    stall_s: float = 2.0
    stall_factor: float = 10.0
    give_up_s: float = 60.0


def fail(pieces: Iterable[Piece], error: BaseException) -> list[Work]:
    """Fail the works of pieces that are not over; returns them, each once."""
    lost = []
    for piece in pieces:
        if not piece.work.over:
            piece.work.error = error
            lost.append(piece.work)
    return lost


def split(piece: Piece, skip: int, rows: int) -> tuple[list[Piece], Piece, Piece | None]:
    """`piece` as (rows left before, rows taken, rows left after)."""
    start = piece.start + skip
    stop = min(piece.stop, start + rows)
    head = [Piece(piece.work, piece.start, start, piece.tries, piece.avoid)] if skip else []
    tail = Piece(piece.work, stop, piece.stop, piece.tries, piece.avoid) if stop < piece.stop else None
    return head, Piece(piece.work, start, stop, piece.tries, piece.avoid), tail
