"""Worked examples that a model gives itself."""

from __future__ import annotations

from femtune.tools.own_demos import choose
from femtune.types import Completion, Draw, DrawKey, Score


def draw(problem: str, answer: str, length: int, *, prompt: str = "plain", reason: str = "") -> Draw:
    key = DrawKey(1, problem, 0, 0)
    completion = Completion((7,) * length, "So.\nAnswer: " + answer, "stop", -1.0)
    return Draw(key, prompt, 0, completion, Score(1.0, answer, reason))  # type: ignore[arg-type]  # a reason by its name


def test_examples_are_kept_short_and_of_different_answers() -> None:
    draws = [
        draw("long", "4", 90),
        draw("short", "4", 10),
        draw("wrong", "5", 5, reason="wrong"),
        draw("other", "7", 40),
        draw("told", "9", 3, prompt="hinted"),
    ]
    assert [each.key.problem_id for each in choose(draws, 2)] == ["short", "other"]
    # hinted ones last, and a second one of an answer after the first of every answer
    assert [each.key.problem_id for each in choose(draws, 9)] == ["short", "other", "told", "long"]


def test_a_problem_gives_one_example_its_shortest() -> None:
    draws = [draw("p", "4", 20), draw("p", "4", 10), draw("q", "4", 30)]
    assert [len(each.completion.tokens) for each in choose(draws, 3)] == [10, 30]


def test_a_forced_answer_is_no_example() -> None:
    forced = draw("p", "4", 9)
    made = Draw(
        forced.key, "plain", 0, Completion((7,) * 9, "So 4.", "stop", -1.0, num_forced=3), forced.score
    )
    assert choose([made], 1) == []
