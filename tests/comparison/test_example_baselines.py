"""Baselines with worked examples that no accuracy chose: random ones, and similar ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from femtune.comparison.baseline_draws import Baseline
from femtune.comparison.baselines import baseline_settings, chosen
from femtune.comparison.example_baselines import (
    RANDOM_SETS,
    random_sets,
    run_examples,
    similar_sets,
)
from femtune.config import Train
from femtune.errors import ConfigError
from femtune.evaluation.evaluate import is_right
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import drawn
from femtune.schemes.named import rejection
from femtune.selection.search import Pool
from femtune.types import Demo, Problem

from ..selection.test_choice import TEST, Learner, steps

WORDS = ("red apple on a table", "green apple", "a blue boat at sea", "a boat and a boat")


def pool(*prompts: str) -> Pool:
    return Pool(tuple(Demo(prompt, "x", f"because\nAnswer: {n}") for n, prompt in enumerate(prompts)))


def test_the_most_similar_problems_are_shown_the_most_similar_last() -> None:
    pytest.importorskip("bm25s")
    asked = [Problem("1", "which apple is green", "x"), Problem("2", "one more boat at sea", "x")]
    found = [[demo.prompt for demo in each] for each in similar_sets(pool(*WORDS), 2, asked)]
    assert found == [[WORDS[0], WORDS[1]], [WORDS[3], WORDS[2]]]


def test_similar_sets_show_a_problem_once_and_fit_into_the_context() -> None:
    pytest.importorskip("bm25s")
    twice = Pool((*pool(*WORDS).candidates, Demo(WORDS[1], "x", "a much longer reason\nAnswer: x")))
    asked = [Problem("1", "green apple", "x")]
    [found] = similar_sets(twice, 3, asked)
    assert [demo.prompt for demo in found].count(WORDS[1]) == 1
    assert found[-1].completion == "because\nAnswer: 1"  # the shorter of the two
    [short] = similar_sets(replace(twice, fits=lambda demos: len(demos) < 2), 3, asked)
    assert short == found[-1:]


def test_random_sets_are_those_of_the_seed() -> None:
    some = pool(*WORDS)
    assert random_sets(some, 2, 0) == random_sets(some, 2, 0) != random_sets(some, 2, 1)
    assert len(random_sets(some, 2, 0)) == RANDOM_SETS


@pytest.mark.parametrize("name", ["random-examples", "similar-examples"])
def test_a_run_measures_each_held_out_problem_under_its_sets(name: str, tmp_path: Path) -> None:
    if name == "similar-examples":
        pytest.importorskip("bm25s")
    settings = Baseline(scheme=name, num_examples=2)
    plan: dict[str, Any] = {"selection": None, "scheme": rejection(4)}
    made = steps(tmp_path / "run", engine := Learner(), Quiet(), **plan)
    metrics = run_examples(made, settings)
    num_sets = RANDOM_SETS if name == "random-examples" else 1
    draws = [draw for chunk in drawn(tmp_path / "run/iteration-001/eval") for draw in chunk]
    names = [problem.id for problem in TEST for _ in range(num_sets)]
    assert [draw.key.problem_id for draw in draws] == names
    assert metrics["evaluation"]["accuracy"] == pytest.approx(sum(map(is_right, draws)) / len(draws))
    of_test = [r for r in engine.asked if r.key.problem_id in {problem.id for problem in TEST}]
    assert len(of_test) == len(TEST) * num_sets
    assert len(engine.asked) == len(of_test) + metrics["e_step"]["num_draws"]
    if name == "random-examples":
        by_set = {draw.demos for draw in draws}
        assert 1 < len(by_set) <= RANDOM_SETS
    # the same again asks for nothing
    again = steps(tmp_path / "run", engine := Learner(), Quiet(), **plan)
    assert run_examples(again, settings) == metrics and engine.asked == []


def test_they_run_on_request_with_the_number_of_examples_that_was_set() -> None:
    settings = Train(task="judge", eval_data="held-out.jsonl", m_step="examples", num_examples=3)
    assert "random-examples" not in chosen(None, settings)
    assert chosen(["random-examples"], settings) == ("random-examples",)
    made = baseline_settings("random-examples", settings, 16)
    assert (made.num_examples, made.m_step, made.dev_share) == (3, "weights", 0.0)
    assert baseline_settings("votes", settings, 16).num_examples == Train.num_examples


def test_similar_examples_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("femtune._util.extras.find_spec", lambda name: None)
    settings = Train(task="judge", eval_data="held-out.jsonl")
    with pytest.raises(
        ConfigError, match=r"similar-examples needs bm25s: pip install 'femtune\[similar\]'"
    ):
        chosen(["similar-examples"], settings)
