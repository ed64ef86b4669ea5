"""Drawing on while grading and storing go on: the same draws, no idle engine, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.engines.fake import FakeEngine
from femtune.errors import EngineError, RewardError
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.runs.draws import read_draws
from femtune.schemes.filters import Accepted
from femtune.schemes.named import pps, rejection, star
from femtune.types import Completion, Draw, Request, Sampling, Scheme, Stage

from ..oracle import Tables, problem, sampler

WORLD = Tables.random(seed=5)
PROBLEMS = [problem(f"p{i}", i % 3, 0) for i in range(40)]
ALL = Scheme("all", (Stage("plain", 3, "all"), Stage("hinted", 2)), weigh=Accepted())


def overlapping(engine: FakeEngine, chunk_size: int = 7) -> Sampler:
    return replace(sampler(engine, chunk_size=chunk_size), overlap=True)


def drawn(made: Sampler, scheme: Scheme, **more: Any) -> list[Draw]:
    chunks = e_step(PROBLEMS, scheme, made, iteration=1, **more)
    return [draw for chunk in chunks for draw in chunk.draws]


@given(
    st.sampled_from([rejection(1), rejection(4), star(), pps(), ALL]),
    st.integers(1, 50),
    st.integers(1, 20),
    st.integers(0, 3),
)
def test_the_draws_are_those_without_overlap(
    scheme: Scheme, chunk_size: int, room: int, order: int
) -> None:
    one, other = (FakeEngine(WORLD.write, room=room, order_seed=order) for _ in range(2))
    plain = drawn(sampler(one, chunk_size=chunk_size), scheme)
    assert drawn(overlapping(other, chunk_size), scheme) == plain


def test_chunks_are_stored_in_order_and_those_stored_left_out(tmp_path: Path) -> None:
    made = overlapping(FakeEngine(WORLD.write))
    place = lambda index: tmp_path / f"{index:05}.parquet"  # noqa: E731
    first = e_step(PROBLEMS, star(), made, iteration=1, place=place)
    assert next(first).index == 0
    first.close()  # type: ignore[attr-defined]  # a generator
    rest = [chunk.index for chunk in e_step(PROBLEMS, star(), made, iteration=1, place=place)]
    assert rest == list(range(6))[-len(rest) :] and 4 <= len(rest) <= 5
    stored = [draw for chunk, _ in read_draws(tmp_path) for draw in chunk]
    assert stored == drawn(sampler(FakeEngine(WORLD.write)), star())


class Stepwise(FakeEngine):
    """Ends half of what it has in hand at each step, oldest first, and notes how much that was."""

    def __init__(self, room: int, step_s: float = 0.0) -> None:
        super().__init__(WORLD.write, room=room)
        self.step_s = step_s
        self.in_hand: list[int] = []
        self.third_step = threading.Event()

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        hand: list[Request] = []
        while True:
            hand += pull(self.room - len(hand))
            if not hand:
                return
            self.in_hand.append(len(hand))
            if len(self.in_hand) == 3:
                self.third_step.set()
            time.sleep(self.step_s)
            ended, hand = hand[: self.room // 2], hand[self.room // 2 :]
            yield [(request, self._complete(request, sampling)) for request in ended]


def test_a_slow_reward_does_not_keep_the_engine() -> None:
    """What ended first is being graded still when the engine takes its third step."""
    engine = Stepwise(room=8)
    made = overlapping(engine, 10)
    waited = []

    def slow(*args: Any, **kwargs: Any) -> Any:
        waited.append(engine.third_step.wait(timeout=30))
        return made.grade(*args, **kwargs)

    drawn(replace(made, grade=slow), pps())
    assert waited[0]


def test_the_engine_is_full_across_chunks() -> None:
    engine = Stepwise(room=8, step_s=0.03)  # grading four draws takes far less
    drawn(replace(sampler(engine, chunk_size=10), overlap=True), pps())
    assert engine.in_hand[:9] == [8] * 9  # 40 problems, 4 end at a time: full until the last 8


def test_what_the_grading_raises_reaches_the_caller_and_ends_the_threads() -> None:
    made = overlapping(FakeEngine(WORLD.write))

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RewardError("no number")

    with pytest.raises(RewardError, match="no number"):
        drawn(replace(made, grade=broken), pps())
    assert_no_threads()


def test_what_the_engine_raises_reaches_the_caller() -> None:
    class Broken(FakeEngine):
        def generate(self, pull: Any, sampling: Sampling) -> Iterator[Any]:
            requests = pull(4)
            yield [(request, self._complete(request, sampling)) for request in requests]
            raise EngineError("it is gone")

    with pytest.raises(EngineError, match="it is gone"):
        drawn(overlapping(Broken(WORLD.write)), pps())
    assert_no_threads()


def test_an_engine_that_loses_a_request_is_found_out() -> None:
    class Forgetful(FakeEngine):
        def generate(self, pull: Any, sampling: Sampling) -> Iterator[Any]:
            while requests := pull(4):
                done = requests[1:] or requests
                yield [(request, self._complete(request, sampling)) for request in done]

    with pytest.raises(EngineError, match="without an answer"):
        drawn(overlapping(Forgetful(WORLD.write)), pps())


def test_a_caller_that_stops_ends_the_threads() -> None:
    chunks = e_step(PROBLEMS, rejection(4), overlapping(FakeEngine(WORLD.write), 4), iteration=1)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert_no_threads()


def test_few_chunks_are_in_memory_however_slow_the_caller_is() -> None:
    engine = FakeEngine(WORLD.write, room=4)
    chunks = e_step(PROBLEMS, pps(), overlapping(engine, 4), iteration=1)
    next(chunks)
    time.sleep(0.3)
    assert len(engine.asked) <= 4 * 6  # of 40: one given, one or two waiting, those that are open
    assert len(list(chunks)) == 9


def assert_no_threads() -> None:
    assert [t.name for t in threading.enumerate() if t.name.startswith("femtune")] == []
