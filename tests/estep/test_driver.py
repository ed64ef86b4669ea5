"""The driver: what it asks and when, and that whatever comes back is data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.engines.fake import FakeEngine
from femtune.errors import RewardError
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Chunk, upcoming
from femtune.rewards.builtin import ordinal, score
from femtune.schemes.filters import Accepted
from femtune.schemes.named import pps, rejection, star
from femtune.types import (
    Completion,
    Draw,
    DrawKey,
    Problem,
    Request,
    Sampling,
    Scheme,
    Score,
    Stage,
    draw_seed,
)

from ..oracle import PROMPTS, Tables, ask, problem, sampler

WORLD = Tables.random(seed=5)
PROBLEMS = [problem(f"p{i}", i % 3, 0) for i in range(20)]


def wrong(prompt: str, seed: int) -> str:
    return "z0\nAnswer: none"


# --- the order of requests


def test_a_retry_goes_ahead_of_fresh_problems() -> None:
    """One at a time: each problem is finished before the next is begun."""
    engine = FakeEngine(wrong, room=1)
    list(e_step(PROBLEMS[:3], rejection(2), sampler(engine), iteration=1))
    asked = [(request.key.problem_id, request.key.index) for request in engine.asked]
    assert asked == [("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1), ("p2", 0), ("p2", 1)]


def test_no_attempt_waits_for_another_problems() -> None:
    """The engine is full to the end: after every grading there is a request for each free place."""
    engine = FakeEngine(wrong, room=8)
    rooms: list[tuple[int, int]] = []
    generate = engine.generate

    def watched(pull: Callable[[int], Sequence[Request]], sampling: Sampling) -> Iterator[Any]:
        def seen(room: int) -> Sequence[Request]:
            requests = pull(room)
            rooms.append((room, len(requests)))
            return requests

        return generate(seen, sampling)

    engine.generate = watched  # type: ignore[method-assign]  # in place of the method
    list(e_step(PROBLEMS, rejection(5), sampler(engine), iteration=1))
    short = next(i for i, (room, given) in enumerate(rooms) if given < room)
    # 20 problems x 5 attempts: short of requests only once fewer than 8 problems are left
    assert sum(given for _, given in rooms[:short]) > 5 * (20 - 8)
    assert sum(given for _, given in rooms) == 5 * 20


def test_no_more_is_pulled_than_there_is_room_for() -> None:
    engine = FakeEngine(WORLD.write, room=2)  # it asserts so itself
    scheme = Scheme("all", (Stage("plain", 5, "all"),), weigh=Accepted())
    [chunk] = e_step(PROBLEMS, scheme, sampler(engine), iteration=1)
    assert len(chunk.draws) == 5 * 20 == len(engine.asked)


@given(st.lists(st.booleans(), max_size=5), st.integers(1, 4))
def test_attempts_end_at_the_first_accepted_or_with_the_budget(
    outcomes: list[bool], budget: int
) -> None:
    scoring: list[Draw] = []
    for index, right in enumerate(outcomes):
        if not upcoming((Stage("plain", budget),), scoring):
            break
        score = Score(float(right), "", "" if right else "wrong")
        scoring.append(Draw(DrawKey(1, "p", 0, index), "plain", 0, Completion((), "", "stop", 0), score))
    asked = outcomes.index(True) + 1 if True in outcomes else len(outcomes)
    assert len(scoring) == min(budget, asked)


# --- what the model is fed


def test_prompts_are_plain_or_hinted_as_the_stage_says() -> None:
    engine = FakeEngine(wrong)
    [chunk] = e_step(PROBLEMS, star(), sampler(engine), iteration=1)
    fed = {(r.key.problem_id, r.key.stage): engine.tokenizer.decode(r.tokens) for r in engine.asked}
    for each in PROBLEMS:
        assert fed[each.id, 0] == PROMPTS.plain(each)[0]["content"] == each.prompt
        assert fed[each.id, 1] == PROMPTS.hinted(each)[0]["content"]
        assert "The correct answer is y0." in fed[each.id, 1]
    assert {(d.key.stage, d.prompt_kind) for d in chunk.draws} == {(0, "plain"), (1, "hinted")}


def test_seeds_differ_between_runs_iterations_problems_stages_and_attempts() -> None:
    keys = [
        DrawKey(iteration, name, stage, index)
        for iteration in (1, 11)
        for name in ("", "1", "11", "1\x001", "é")
        for stage in (0, 1)
        for index in (0, 1)
    ]
    seeds = {draw_seed(run_seed, key) for run_seed in (0, 1, 11) for key in keys}
    assert len(seeds) == 3 * len(keys)


def test_another_seed_gives_other_draws() -> None:
    texts = [[d.completion.text for d in ask(WORLD.write, PROBLEMS, pps(), seed=s)] for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


# --- chunks


def test_stored_chunks_are_left_out_and_the_others_stay_the_same(tmp_path: Path) -> None:
    def chunks(*stored: int) -> list[Chunk]:
        made = sampler(FakeEngine(WORLD.write), chunk_size=6)
        folder = tmp_path / str(stored)
        for index in stored:
            folder.mkdir(exist_ok=True)
            (folder / str(index)).touch()
        place = lambda index: folder / str(index)  # noqa: E731
        return list(e_step(PROBLEMS, rejection(3), made, iteration=1, place=place))

    every = chunks()
    assert [chunk.index for chunk in every] == [0, 1, 2, 3]  # 6 + 6 + 6 + 2 problems
    odd = [(chunk.index, chunk.draws) for chunk in every[1::2]]
    assert [(chunk.index, chunk.draws) for chunk in chunks(0, 2)] == odd
    assert chunks(0, 1, 2, 3) == []


def test_a_chunk_is_drawn_only_when_it_is_asked_for() -> None:
    engine = FakeEngine(WORLD.write)
    chunks = e_step(PROBLEMS, pps(), sampler(engine, chunk_size=5), iteration=1)
    assert engine.asked == []
    next(chunks)
    assert len(engine.asked) == 5


def test_every_draw_is_shown_once_as_it_is_graded() -> None:
    shown: list[Draw] = []
    made = sampler(FakeEngine(WORLD.write), chunk_size=7)
    chunks = list(e_step(PROBLEMS, rejection(3), made, iteration=1, on_draws=shown.extend))
    stored = [draw for chunk in chunks for draw in chunk.draws]
    assert shown != stored  # the engine's order is not that of the problems
    assert sorted(shown, key=lambda d: d.key) == sorted(stored, key=lambda d: d.key)


def test_no_problems_are_no_chunks() -> None:
    assert list(e_step([], pps(), sampler(FakeEngine(wrong)), iteration=1)) == []


def test_seconds_are_split_between_engine_and_driver() -> None:
    [chunk] = e_step(PROBLEMS, pps(), sampler(FakeEngine(wrong)), iteration=1)
    assert 0 < chunk.engine_s < chunk.total_s


# --- what comes back is data


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("z0\nAnswer: y0", "", ""),
        ("z0\nAnswer: y1", "wrong", "answer y1, expected y0"),
        ("z0 is so long a rationale", "truncated", "no end after 16 tokens"),
        ("z0, so y0", "parse_error", "the last line is not"),
        ("Answer: y0", "parse_error", "no rationale"),
        ("", "parse_error", "the last line is not"),
        ("hint\nAnswer: y0", "hint_leak", "hint"),
        ("raise", "engine_failed", "RuntimeError: out of ink"),
    ],
)
def test_a_draw_that_fails_says_why_and_stops_nothing(text: str, reason: str, detail: str) -> None:
    def write(prompt: str, seed: int) -> str:
        if "x1" not in prompt:
            return "z0\nAnswer: y0"
        if text == "raise":
            raise RuntimeError("out of ink")
        return text

    draws = ask(write, PROBLEMS, pps())
    assert len(draws) == len(PROBLEMS)
    odd = {each.id for each in PROBLEMS if each.prompt == "x1"}
    for draw in draws:
        if draw.key.problem_id in odd:
            assert draw.score.reason == reason
            assert detail in draw.score.detail
        else:
            assert draw.accepted


def test_a_failing_reward_ends_the_run_with_its_error() -> None:
    made = sampler(FakeEngine(WORLD.write))

    def grade(*args: object, **kwargs: object) -> list[Score]:
        raise RewardError("broken")

    with pytest.raises(RewardError, match="broken"):
        list(e_step(PROBLEMS, pps(), replace(made, grade=grade), iteration=1))


@pytest.mark.parametrize("accept_at", [0.25, 0.75])
def test_a_scheme_says_from_which_reward_on_it_accepts(accept_at: float) -> None:
    rated = [Problem(f"r{i}", "x0", "5") for i in range(4)]
    engine = FakeEngine(lambda prompt, seed: "z0\nAnswer: 3")  # reward 1 - 2/4
    made = replace(sampler(engine), grade=partial(score, prompts=PROMPTS, reward=ordinal((1, 5))))
    [chunk] = e_step(rated, replace(pps(), accept_at=accept_at), made, iteration=1)
    assert all(draw.score.reward == 0.5 for draw in chunk.draws)
    assert all(draw.accepted == (accept_at <= 0.5) for draw in chunk.draws)
