"""Warnings of E-steps and evaluations: each where it is due and nowhere else, with exact luck."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune import loop
from femtune.data.worlds import WORLDS, make_splits
from femtune.engines.fake import FakeEngine
from femtune.errors import NothingKept
from femtune.evaluation.advice import (
    e_step_warnings,
    evaluation_warnings,
    nothing_kept,
    time_advice,
    time_measuring,
)
from femtune.evaluation.chance import binomial_interval, guessed_share, is_closed, plain_attempts
from femtune.evaluation.evaluate import estep_metrics, evaluation_metrics
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.runs.run import Run
from femtune.schemes.filters import paper_filter
from femtune.schemes.named import parse_scheme, rejection, star
from femtune.types import Completion, Draw, DrawKey, Problem, Sampling, Scheme, Score, Stage

from ..oracle import sampler

RATED, _ = make_splits(WORLDS["rubric"], 40, 10, seed=0)
FINE: dict[str, Any] = {
    **{"num_draws": 100, "answered": 0.9, "truncated_share": 0.1, "forced_share": 0.0},
    **{"num_problems": 100, "num_kept": 60, "kept_share": 0.6, "reasons": {"plain": {"wrong": 40}}},
    **{"luck_share": 0.4, "plain_share": 0.6},
}


def kinds(**changes: Any) -> list[str]:
    return [warned.kind for warned in e_step_warnings(FINE | changes, 160, star())]


def test_each_e_step_warning_has_its_limit() -> None:
    assert kinds() == []
    assert kinds(answered=0.5) == [] and kinds(answered=0.49) == ["E-step answered"]
    assert kinds(forced_share=0.5, answered_unforced=0.4) == ["E-step answered"]
    assert kinds(truncated_share=0.2) == [] and kinds(truncated_share=0.21) == ["E-step truncated"]
    assert kinds(num_kept=5, kept_share=0.05) == []
    assert kinds(num_kept=4, kept_share=0.04) == ["E-step kept"]
    low = binomial_interval(60, 100)[0]
    assert kinds(luck_share=low - 0.001) == [] and kinds(luck_share=low) == ["E-step luck"]
    assert kinds(luck_share=0.9, answered=0.4) == ["E-step answered"]  # one cause at a time
    assert kinds(num_draws=0, answered=0.0) == [] and kinds(kept_share=None) == []


def test_a_warning_says_what_to_do() -> None:
    texts = [
        warned.text
        for warned in e_step_warnings(
            FINE | {"answered": 0.1, "truncated_share": 0.9, "num_kept": 1, "kept_share": 0.01},
            160,
            star(),
        )
    ]
    assert len(texts) == 3 and all("`femtune check`" in text for text in texts)
    assert "at --max-new-tokens 160" in texts[1] and "--temperature" in texts[2]
    shown = evaluation_warnings(FINE | {"answered": 0.1}, 160, demos=True)
    assert [warned.text.partition(":")[0] for warned in shown] == ["Evaluation with worked examples"]
    assert evaluation_warnings(FINE, 160) == []


@pytest.mark.parametrize(
    ("reasons", "remedy"),
    [
        ({"plain": {"truncated": 9, "wrong": 1}}, "Most draws were truncated: raise --max-new-tokens"),
        ({"plain": {"parse_error": 9}}, "--answer-format"),
        ({"plain": {"wrong": 9}}, "Hints may help: --scheme star"),
        ({"plain": {"wrong": 5}, "hinted": {"hint_leak": 9}}, "change --hint"),
        ({"plain": {"wrong": 4, "truncated": 3, "parse_error": 3}}, "Many answers are wrong"),
        ({"plain": {"reward_failed": 9}}, "run it by itself"),
    ],
)
def test_what_keeps_nothing_has_a_cause_and_a_remedy(
    reasons: dict[str, dict[str, int]], remedy: str
) -> None:
    scheme = star() if "hinted" in reasons else rejection(8)
    text = nothing_kept(1, {"num_problems": 9, "reasons": reasons}, scheme)
    assert text.startswith("iteration 1 kept no draw of 9 problems (") and remedy in text
    assert "`femtune check`" in text
    assert ("Hints may help" in text) == ("hinted" not in reasons and " answers are wrong" in text)


def test_remedies_are_of_the_scheme_as_it_is_whatever_its_name() -> None:
    """A scheme made in Python has hints, or many attempts, whether its name says so or not."""
    wrong = {"num_problems": 9, "reasons": {"plain": {"wrong": 9}}}
    eight = Scheme("star", (Stage("plain", 8),), weigh=paper_filter)
    both = Scheme("mine", (Stage("plain"), Stage("hinted")), weigh=paper_filter)
    assert "(--scheme rejection:32)" in nothing_kept(1, wrong, eight)
    assert "Hints may help" in nothing_kept(1, wrong, eight)
    assert "(--scheme rejection:16)" in nothing_kept(1, wrong, both)
    assert "Hints may help" not in nothing_kept(1, wrong, both)
    lucky = FINE | {"luck_share": 0.9}
    assert "Use fewer attempts" in e_step_warnings(lucky, 160, eight)[0].text
    assert "fewer attempts" not in e_step_warnings(lucky, 160, both)[0].text


# --- luck


@given(st.lists(st.sampled_from("ABC"), min_size=1, max_size=6), st.integers(0, 3))
def test_luck_is_the_chance_of_guesses_by_enumeration(answers: list[str], attempts: int) -> None:
    """All problems, and all sequences of guesses, each a random answer of the data."""
    hits = sum(
        own in guesses for own in answers for guesses in itertools.product(answers, repeat=attempts)
    )
    assert guessed_share(answers, attempts) == pytest.approx(hits / len(answers) ** (attempts + 1))


def test_luck_of_a_pair_and_its_attempts() -> None:
    assert guessed_share(["A", "B"], 4) == 0.9375
    attempts = {"rejection:4": 4, "star": 1, "pps:4": 0, "auto": 4}
    assert {spec: plain_attempts(parse_scheme(spec)) for spec in attempts} == attempts
    assert plain_attempts(replace(rejection(4), accept_at=0.75)) == 0  # a near miss is kept too
    assert plain_attempts(replace(rejection(4), accept_at=lambda request: 1.0)) == 0
    assert is_closed(RATED) and not is_closed([*RATED, Problem("a", "b", "c")]) and not is_closed([])


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_interval_of_a_share_solves_its_equation(hits: int, more: int) -> None:
    low, high = binomial_interval(hits, hits + more)
    assert 0 <= low <= high <= 1
    for end in (low, high) if hits and more else ():
        share, total = hits / (hits + more), hits + more
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / total))


def draw(problem: Problem, answer: str, *, prompt: str = "plain", forced: int = 0, num: int = 9) -> Draw:
    reason = "" if answer == problem.answer else "wrong"
    completion = Completion((0,) * num, "", "answered", 0.0, num_forced=forced)
    key = DrawKey(1, problem.id, int(prompt == "hinted"), 0)
    return Draw(key, prompt, 0, completion, Score(float(not reason), answer, reason))


def test_luck_stands_in_the_metrics_of_closed_answers() -> None:
    by_id = {problem.id: problem for problem in RATED}
    chunk = [draw(problem, "3") for problem in RATED]
    chunk += [draw(problem, problem.answer, prompt="hinted") for problem in RATED[:5]]
    timing = {"engine_s": 0.0, "total_s": 0.0}
    chunk.sort(key=lambda each: ([*by_id].index(each.key.problem_id), each.key))
    metrics = estep_metrics(by_id, [(chunk, timing)], 4)
    assert metrics["luck_share"] == guessed_share([problem.answer for problem in RATED], 4)
    threes = sum(problem.answer == "3" for problem in RATED) / len(RATED)
    assert metrics["plain_share"] == threes < metrics["kept_share"]
    assert "luck_share" not in estep_metrics(by_id, [(chunk, timing)])
    bare = {name: replace(problem, columns={}) for name, problem in by_id.items()}
    assert "luck_share" not in estep_metrics(bare, [(chunk, timing)], 4)


def test_truncated_draws_are_counted_where_their_answer_was_forced() -> None:
    chunk = [draw(RATED[0], "3", forced=3, num=num) for num in (18, 19)]  # 15 and 16 before the cue
    by_id, timing = {RATED[0].id: RATED[0]}, {"engine_s": 0.0, "total_s": 0.0}
    assert evaluation_metrics(by_id, [(chunk, timing)], max_new_tokens=16)["truncated_share"] == 0.5
    metrics = evaluation_metrics(by_id, [(chunk, timing)])
    assert (metrics["truncated_share"], metrics["forced_share"]) == (0.0, 1.0)
    assert (metrics["answered"], metrics["answered_unforced"]) == (1.0, 0.0)


# --- in a run


def test_a_run_warns_once_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(f"p{n}", f"{n}?", str(n % 2)) for n in range(8)]
    engine = FakeEngine(lambda prompt, seed: "So.\nAnswer: 0" if prompt.startswith("0?") else "Hm hm.")
    made = replace(sampler(engine), sampling=Sampling(64))
    plan = LoopConfig(scheme=rejection(2), training=Training(), evaluation=Evaluation())
    steps = Steps(
        run=Run(tmp_path),
        base=tmp_path,
        problems=problems,
        eval_problems=problems,
        config=plan,
        sampler=made,
        tokenizer=engine.tokenizer,
        progress=Quiet(),
    )
    steps.serving = tmp_path  # as an engine that needs no weights
    monkeypatch.setattr(steps, "weights", lambda iteration: tmp_path)
    said: list[str] = []
    monkeypatch.setattr(loop.log, "warning", lambda text, *words: said.append(text % words))
    steps.evaluate(0)
    steps.e_step(1)
    # of 8 draws, of 15
    assert [text.partition(" of ")[0] for text in said] == [
        "Evaluation: 12%",
        "E-step: 7%",
    ]  # of 8, of 15
    steps.e_step(2)
    assert len(said) == 2


def test_what_keeps_nothing_says_so_in_a_run(tmp_path: Path) -> None:
    engine = FakeEngine(lambda prompt, seed: "Hm " * 100)
    made = replace(sampler(engine), sampling=Sampling(64))
    problems = [Problem("p", "0?", "0")]
    plan = LoopConfig(scheme=rejection(2), training=Training(), evaluation=Evaluation())
    steps = Steps(
        run=Run(tmp_path),
        base=tmp_path,
        problems=problems,
        eval_problems=[],
        config=plan,
        sampler=made,
        tokenizer=engine.tokenizer,
        progress=Quiet(),
    )
    steps.serving = tmp_path
    with pytest.raises(NothingKept, match=r"2 plain draws: truncated.*raise --max-new-tokens"):
        steps.e_step(1)


@pytest.mark.parametrize(("training_s", "is_much"), [(16.0, False), (15.0, True)])
def test_a_run_says_what_measuring_took_where_it_is_over_a_fifth(
    training_s: float, is_much: bool
) -> None:
    history: Any = [
        {"iteration": 0, "evaluation": {"total_s": 1.0}, "posterior": {"total_s": 0.5}},
        {
            "iteration": 1,
            "e_step": {"total_s": training_s - 10},
            "m_step": {"seconds": 10.0},
            "development": {"total_s": 0.25},
            "evaluation": {"total_s": 1.0},
            "posterior": {"total_s": 0.75},
            "rationales": {"total_s": 0.5},
        },
    ]
    assert time_measuring(history) == (4.0, 4.0 + training_s)
    said = time_advice(history)
    assert (said is not None) == is_much
    if said is not None:
        assert said.startswith("Measuring took 4 s, 21% of the time of all steps.")
    assert time_advice([]) is None
