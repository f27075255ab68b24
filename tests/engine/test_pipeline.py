import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from hasten.engine.pipeline import Pipeline, Stage
from hasten.errors import InvalidInput


def test_results_keep_the_order_of_the_source() -> None:
    def uneven(x: int) -> int:
        time.sleep(0.001 * (x % 3))
        return x * 2

    pipeline = Pipeline([Stage("double", uneven, threads=3), Stage("add", lambda x: x + 1, threads=2)])
    assert list(pipeline.run(range(60))) == [2 * x + 1 for x in range(60)]
    assert [use.items for use in pipeline.use()] == [60, 60]


def test_the_source_is_drawn_only_as_fast_as_results_are_taken() -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        while drawn < 1000:
            yield drawn
            drawn += 1

    results = Pipeline([Stage("a", lambda x: x), Stage("b", lambda x: x)]).run(source())
    assert next(results) == 0
    time.sleep(0.05)
    assert drawn < 20
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if "_work" in t.name]


def test_the_busiest_stage_is_named() -> None:
    def sleepy(x: int) -> int:
        time.sleep(0.005)
        return x

    pipeline = Pipeline([Stage("fast", lambda x: x), Stage("slow", sleepy)])
    list(pipeline.run(range(40)))
    assert pipeline.bottleneck() == "slow"
    fast, slow = pipeline.use()
    assert fast.utilisation < slow.utilisation <= 1.0

    def trickle() -> Iterator[int]:
        for i in range(10):
            time.sleep(0.005)
            yield i

    waiting = Pipeline([Stage("fast", lambda x: x)])
    list(waiting.run(trickle()))
    assert waiting.bottleneck() == "source"


def test_errors_of_stages_and_of_the_source_are_raised() -> None:
    def fails(x: int) -> int:
        if x == 5:
            raise ValueError("five")
        return x

    results = Pipeline([Stage("fails", fails)]).run(range(10))
    with pytest.raises(ValueError, match="five"):
        list(results)

    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(Pipeline([Stage("same", lambda x: x)]).run(source()))


def test_futures_are_waited_for_by_the_next_stage() -> None:
    def later(x: int) -> "Future[int]":
        future: Future[int] = Future()
        threading.Timer(0.002, future.set_result, (x * 10,)).start()
        return future

    last = Pipeline([Stage("later", later)])
    assert list(last.run(range(5))) == [0, 10, 20, 30, 40]
    middle = Pipeline([Stage("later", later), Stage("add", lambda x: x + 1)])
    assert list(middle.run(range(5))) == [1, 11, 21, 31, 41]


def test_rules() -> None:
    with pytest.raises(InvalidInput, match="at least one stage"):
        Pipeline([])
    with pytest.raises(InvalidInput, match="`threads` of stage 'x' must be at least 1"):
        Stage("x", lambda x: x, threads=0)
