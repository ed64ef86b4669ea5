"""Real Ray workers on this machine: leases, deaths, late comers, errors as they were raised."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'femtune[ray]'")

from femtune._util import interrupts  # noqa: E402
from femtune.data.demos import demos_digest  # noqa: E402
from femtune.engines.fake import FakeEngine  # noqa: E402
from femtune.engines.weight_check import WeightCheck, write_check  # noqa: E402
from femtune.errors import ConfigError, EngineError, ModelError, RunError  # noqa: E402
from femtune.estep import ray_pool as pools  # noqa: E402
from femtune.estep.driver import e_step  # noqa: E402
from femtune.estep.ray_cluster import WorkerSpec  # noqa: E402
from femtune.estep.ray_pool import Pool  # noqa: E402
from femtune.estep.scheduler import Sampler  # noqa: E402
from femtune.rewards.builtin import as_reward, score  # noqa: E402
from femtune.runs.draws import read_draws  # noqa: E402
from femtune.schemes.named import pps, rejection  # noqa: E402
from femtune.types import Capabilities, Draw, Reward  # noqa: E402

from .. import oracle  # noqa: E402
from ..oracle import DEMOS, LINE_CUT, Tables, problem, sampler  # noqa: E402

# Ray's own sockets and files; its workers take seconds to start
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.slow]

WORLD = Tables.random(seed=5)
PROBLEMS = [problem(f"p{i}", i % 3, 0) for i in range(40)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    for module in (sys.modules[__name__], oracle):  # which workers can't import
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


class Noting(FakeEngine):
    """Leaves its process's number in a folder when it begins a lease; dies where it is told to."""

    def __init__(self, notes: Path, dies_at: str = "", times: int = 1, pause_s: float = 0.0) -> None:
        super().__init__(self.noted, room=2)
        self.notes, self.dies_at, self.times, self.pause_s = notes, dies_at, times, pause_s

    def noted(self, prompt: str, seed: int) -> str:
        (self.notes / f"worker-{os.getpid()}").touch()
        with (self.notes / "asked").open("a") as file:
            file.write(f"{seed}\n")
        time.sleep(self.pause_s)
        deaths = len(list(self.notes.glob("death-*")))
        if self.dies_at and deaths < self.times and (self.notes / self.dies_at).exists():
            (self.notes / f"death-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return WORLD.write(prompt, seed)

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        if len(pairs) > 1:  # else of a weight check
            (self.notes / f"scored-{os.getpid()}-{len(pairs)}").touch()
            for prompt, _ in pairs:
                self.noted(self.tokenizer.decode(prompt), 0)
        return super().logprob(pairs)

    def load(self, weights: Path) -> None:
        (self.notes / f"loaded-{os.getpid()}-{weights.name}").touch()
        super().load(weights)


def make_engine(notes: Path, **more: Any) -> Sampler:
    return sampler(Noting(notes, **more), chunk_size=5)


def fails(error: Exception) -> Sampler:
    raise error


def crew(notes: Path, workers: int = 2, **more: Any) -> Pool:
    return Pool(partial(make_engine, notes, **more), WorkerSpec(workers, address="local", gpus=0))


def drawn(pool: Pool, where: Path | None = None, iteration: int = 1) -> list[Draw]:
    made = replace(sampler(FakeEngine(WORLD.write), chunk_size=5), engine=pool)
    place = (lambda index: where / f"{index:05}.parquet") if where else None
    chunks = list(e_step(PROBLEMS, rejection(3), made, iteration=iteration, place=place))
    assert [chunk.index for chunk in chunks] == sorted(chunk.index for chunk in chunks)
    return [draw for chunk in chunks for draw in chunk.draws]


def until(pool: Pool, seen: Callable[[], bool]) -> None:
    """Keep the pool at work until something is seen; workers take seconds to start."""
    deadline = time.monotonic() + 90
    while not seen():
        assert time.monotonic() < deadline
        drawn(pool)


ONE = sampler(FakeEngine(WORLD.write), chunk_size=5)
ALONE = [d for chunk in e_step(PROBLEMS, rejection(3), ONE, iteration=1) for d in chunk.draws]


def test_two_workers_store_what_one_engine_would(notes: Path, tmp_path: Path) -> None:
    pool = crew(notes, pause_s=0.02)
    try:
        assert drawn(pool, tmp_path / "draws") == ALONE
        assert [draw for chunk, _ in read_draws(tmp_path / "draws") for draw in chunk] == ALONE
        assert len(list(notes.glob("worker-*"))) == 2
        assert drawn(pool) == ALONE  # without a place they come back as they are
        assert drawn(pool, tmp_path / "draws") == []  # stored already
    finally:
        pool.close()


def endings(prompt: str, seed: int) -> str:
    """No answer where worked examples are shown, until it is forced."""
    return (
        " y0\nx7?" if prompt.endswith("Answer:") else ("z0", "z1\nAnswer: y0\nx7?")["x8" not in prompt]
    )


def hire_endings() -> Sampler:
    return replace(sampler(FakeEngine(endings), chunk_size=20), cut=LINE_CUT, context=200)


def test_workers_cut_force_answers_and_show_worked_examples_as_leases_say() -> None:
    pool = Pool(hire_endings, WorkerSpec(1, address="local", gpus=0))
    try:
        for changes in ({}, {"demos": DEMOS, "force": "ended"}, {"demos": DEMOS}):
            own = replace(hire_endings(), **changes)
            given, alone = (
                [d for chunk in e_step(PROBLEMS, pps(), made, iteration=1) for d in chunk.draws]
                for made in (replace(own, engine=pool), own)
            )
            assert [repr(draw) for draw in given] == [repr(draw) for draw in alone]
            forced = len(b"\nAnswer: y0\n") if "force" in changes else 0
            assert {draw.completion.num_forced for draw in given} == {forced}
            reason = "stop" if "demos" in changes and not forced else "answered"
            assert {draw.completion.finish_reason for draw in given} == {reason}
            assert {draw.demos for draw in given} == {demos_digest(own.demos)}
    finally:
        pool.close()


def test_a_worker_that_is_killed_loses_its_lease_alone(notes: Path, tmp_path: Path) -> None:
    """It dies in its second lease or later; every chunk is there once, and as it would have been."""
    pool = crew(notes, dies_at="now", pause_s=0.02)
    try:
        made = replace(sampler(FakeEngine(WORLD.write), chunk_size=5), engine=pool)
        place = lambda index: tmp_path / "draws" / f"{index:05}.parquet"  # noqa: E731
        chunks = e_step(PROBLEMS, rejection(3), made, iteration=1, place=place)
        draws = list(next(chunks).draws)
        (notes / "now").touch()
        draws += [draw for chunk in chunks for draw in chunk.draws]
        assert draws == ALONE
        assert len(list(notes.glob("death-*"))) == 1
        until(pool, lambda: len(list(notes.glob("worker-*"))) == 3)  # another takes its post
    finally:
        pool.close()


def test_what_a_killed_worker_had_drawn_is_taken_up_by_another(notes: Path, tmp_path: Path) -> None:
    """It dies in the middle of a lease: what was in flight alone, two requests, is asked for again."""
    pool = crew(notes, dies_at="now", pause_s=0.05)
    place = lambda index: tmp_path / "draws" / f"{index:05}.parquet"  # noqa: E731

    def kill_once_it_has_drawn() -> None:
        journals: list[Path] = []
        while not any(path.read_bytes().count(b"\n") >= 5 for path in journals):
            time.sleep(0.01)
            journals = list((tmp_path / "draws").glob("*.open.jsonl"))
        (notes / "now").touch()

    try:
        made = replace(sampler(FakeEngine(WORLD.write), chunk_size=20), engine=pool)
        threading.Thread(target=kill_once_it_has_drawn, daemon=True).start()
        chunks = e_step(PROBLEMS, rejection(3), made, iteration=1, place=place)
        assert [draw for chunk in chunks for draw in chunk.draws] == ALONE
        assert len(list(notes.glob("death-*"))) == 1
        asked = Counter((notes / "asked").read_text().split())
        assert len(asked) == len(ALONE)
        assert 0 < asked.total() - len(asked) <= 2
    finally:
        pool.close()


def test_a_lease_that_kills_every_worker_ends_the_run(notes: Path) -> None:
    (notes / "always").touch()
    pool = crew(notes, workers=1, dies_at="always", times=99)
    try:
        with pytest.raises(EngineError, match=r"3 workers died over chunk 0 \(problems p0 to p4\)"):
            drawn(pool)
    finally:
        pool.close()


def test_workers_load_the_weights_of_the_lease_and_check_them(notes: Path, tmp_path: Path) -> None:
    pool = crew(notes, workers=1)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    logprobs = FakeEngine(WORLD.write).logprob([((1, 2), (3, 4))])
    write_check(first, WeightCheck([[1, 2]], [[3, 4]], logprobs, [0.0]))
    write_check(second, WeightCheck([[1, 2]], [[3, 4]], [-1.0], logprobs))
    try:
        pool.load(first)
        drawn(pool)
        pool.release()
        drawn(pool)  # a released engine is loaded again
        assert len(list(notes.glob("loaded-*-first"))) == 1
        pool.load(second)
        with pytest.raises(EngineError, match="still serves the weights from before"):
            drawn(pool)
        pool.load(tmp_path / "absent")
        with pytest.raises(RunError, match="a file system that all machines share"):
            drawn(pool)
    finally:
        pool.close()


PAIRS = [((120, 48 + i % 3), (48 + i % 10,) * (1 + i % 7)) for i in range(300)]
LOGPROBS = FakeEngine(WORLD.write).logprob(PAIRS)


def test_pairs_are_scored_by_all_workers_in_their_order(notes: Path, tmp_path: Path) -> None:
    """By the weights that were named last; 300 pairs are four slices of 64 and one of 44."""
    first = tmp_path / "first"
    first.mkdir()
    pool = crew(notes, pause_s=0.002)
    try:
        until(pool, lambda: len(list(notes.glob("worker-*"))) == 2)
        pool.load(first)
        assert pool.logprob(PAIRS) == LOGPROBS
        assert len(list(notes.glob("loaded-*-first"))) == 2
        assert {path.name.split("-")[2] for path in notes.glob("scored-*")} == {"64", "44"}
        assert pool.logprob([]) == []
        assert drawn(pool) == ALONE  # leases again
    finally:
        pool.close()


def test_continuations_are_scored_by_all_workers_in_their_order(notes: Path) -> None:
    """100 prefixes are a slice of 64 and one of 36, here of three pairs a prefix."""
    asked = [(prompt, [done, (*done, 48), (*done, 49)]) for prompt, done in PAIRS[:100]]
    pool = crew(notes, pause_s=0.002)
    try:
        assert pool.logprobs_after(asked) == FakeEngine(WORLD.write).logprobs_after(asked)
        assert {path.name.split("-")[2] for path in notes.glob("scored-*")} == {"192", "108"}
        assert pool.logprobs_after([]) == []
    finally:
        pool.close()


def test_a_worker_that_is_killed_as_it_scores_loses_its_slice_alone(notes: Path) -> None:
    pool = crew(notes, dies_at="now", pause_s=0.002)
    try:
        (notes / "now").touch()
        assert pool.logprob(PAIRS) == LOGPROBS
        assert len(list(notes.glob("death-*"))) == 1
    finally:
        pool.close()


def test_pairs_over_which_workers_die_are_told_by_their_length() -> None:
    said = pools._too_many(pools.Task(pools.ScoreBatch(0, PAIRS[:64]), None))
    assert said.startswith("3 workers died scoring 64 draws (the longest: 9 tokens)")
    asked = pools.AskedSlice(0, [((1, 2), [(3,), (3, 4)]), ((1,), [])])
    said = pools._too_many(pools.Task(asked, None))
    assert said.startswith("3 workers died scoring 2 draws (the longest: 4 tokens)")


def test_no_slice_is_begun_once_the_run_is_to_stop(notes: Path) -> None:
    pool = crew(notes, workers=1, pause_s=0.01)
    try:
        until(pool, lambda: bool(list(notes.glob("worker-*"))))
        with pytest.raises(interrupts.Stopped), interrupts.graceful(tells=False):
            timer = threading.Timer(0.1, interrupts.request_stop)
            timer.start()
            pool.logprob(PAIRS)
        assert len(list(notes.glob("scored-*"))) == 1
        assert pool.logprob(PAIRS) == LOGPROBS  # and it goes on by the same call
    finally:
        pool.close()


def test_what_a_worker_raises_is_raised_here_as_it_is() -> None:
    pool = Pool(partial(fails, ModelError("no such model")), WorkerSpec(1, address="local", gpus=0))
    with pytest.raises(ModelError, match=r"^no such model$"):
        drawn(pool)
    pool.close()
    pool = Pool(partial(fails, OSError("odd")), WorkerSpec(1, address="local", gpus=0))
    with pytest.raises(EngineError, match="OSError: odd"):
        drawn(pool)
    pool.close()


class Unseeded(FakeEngine):
    capabilities = Capabilities(seeds=False, adapters=False)


def test_a_pool_can_do_what_its_workers_engines_can(notes: Path) -> None:
    pool = Pool(
        partial(sampler, Unseeded(WORLD.write), chunk_size=5), WorkerSpec(1, address="local", gpus=0)
    )
    try:
        assert pool.capabilities == Unseeded.capabilities
        assert len(drawn(pool)) == len(ALONE)
    finally:
        pool.close()


def test_capabilities_of_workers_that_cannot_start_are_an_error() -> None:
    pool = Pool(partial(fails, ModelError("no such model")), WorkerSpec(1, address="local", gpus=0))
    with pytest.raises(ModelError, match=r"^no such model$"):
        _ = pool.capabilities
    pool.close()


def test_a_caller_that_stops_leaves_workers_that_go_on_with_the_next(notes: Path) -> None:
    pool = crew(notes, pause_s=0.01)
    try:
        made = replace(sampler(FakeEngine(WORLD.write), chunk_size=5), engine=pool)
        chunks = e_step(PROBLEMS, rejection(3), made, iteration=1)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]  # a generator
        again = drawn(pool, iteration=2)
        assert {draw.key.iteration for draw in again} == {2}
        assert len({draw.key for draw in again}) == len(again)
    finally:
        pool.close()


def test_workers_join_when_there_is_room(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, three workers: the third is filled when another worker has gone."""
    pool = crew(notes, workers=3, pause_s=0.02)
    said: list[str] = []
    monkeypatch.setattr(pools.log, "warning", lambda text, *values: said.append(text % values))
    try:
        pool._told = -1e9  # it is a minute since it was told
        assert drawn(pool) == ALONE
        until(pool, lambda: len(list(notes.glob("worker-*"))) == 2)
        assert any("of 3 workers have not started: each needs 1 CPUs" in text for text in said)
        ray.kill(pool._workers[0].actor)
        until(pool, lambda: len(list(notes.glob("worker-*"))) == 3)
    finally:
        pool.close()


def test_a_reward_of_the_users_own_file_goes_along(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("LEAST = 1.0\n\n\ndef always(answer):\n    return LEAST\n")
    pool = Pool(
        partial(graded_by, notes, as_reward(f"{tmp_path / 'mine.py'}:always")),
        WorkerSpec(1, address="local", gpus=0),
    )
    try:
        draws = drawn(pool)
        assert len(draws) == 40 and all(draw.score.reward == 1 for draw in draws)
    finally:
        pool.close()


def graded_by(notes: Path, reward: Reward) -> Sampler:
    return replace(make_engine(notes), grade=partial(score, prompts=oracle.PROMPTS, reward=reward))


def test_gpus_that_are_not_here_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"ray_workers 2 with 1 GPUs each: there are 0 here"):
        Pool(partial(fails, OSError()), WorkerSpec(2, gpus=1.0))
