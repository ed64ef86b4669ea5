"""Leaks of the hint: phrases of a rationale that reveal that its writer saw the answer."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from femtune.data.leaks import JUDGE_LEAKS, LEAKS, MARK, compiled, copies_of, find_leak, marked
from femtune.data.prompts import HINT, Prompts
from femtune.types import Problem

PROMPTS = Prompts()
JUDGE = Problem("j", "Rate the response from 1 to 5.", "4")
GROUPS = yaml.safe_load((Path(__file__).parents[1] / "fixtures" / "leaks.yaml").read_text("utf-8"))
ALL = tuple(dict.fromkeys((*LEAKS, *JUDGE_LEAKS, *copies_of(HINT))))
words = st.text("Answer: 4*_`$.{}\\boxed\n", max_size=40) | st.text(max_size=40)


def sentences(kind: str) -> list[Any]:
    """All sentences of a kind, each with its group."""
    return [pytest.param(group, said, id=said) for group in GROUPS for said in group[kind]]


def prompts_of(group: dict[str, Any]) -> Prompts:
    judged = group["task"] == "judge"
    return Prompts(leaks=JUDGE_LEAKS if judged else LEAKS, hint=group.get("hint", HINT))


def problem_of(group: dict[str, Any]) -> Problem:
    asked = "Rate the response from 1 to 5." if group["task"] == "judge" else "How many apples?"
    return Problem("p", asked, group["answer"])


@pytest.mark.parametrize(("group", "said"), sentences("leaking"))
def test_what_reveals_the_hint_is_found(group: dict[str, Any], said: str) -> None:
    found = prompts_of(group).leak(problem_of(group), f"{said} That is all.")
    assert found and found in said


@pytest.mark.parametrize(("group", "said"), sentences("clean"))
def test_what_reveals_nothing_is_not(group: dict[str, Any], said: str) -> None:
    assert prompts_of(group).leak(problem_of(group), f"I begin. {said} That is all.") == ""


@pytest.mark.parametrize(
    "rationale",
    [
        "The hint says 4.",
        "As hinted, it is 4.",
        "The hint that it is 4 helps.",
        "I was told the answer is 4.",
        "We are given the correct answer.",
        "The correct answer was given as 4.",
        "The rating is provided: 4.",
        "The given correct rating fits.",
        "This matches the given answer.",
        "Since the correct answer is 4, it must be good.",
        "Given that the rating is 4, the flaws are small.",
        "KNOWING THAT THE ANSWER IS 4, we look back.",
    ],
)
def test_leaks_are_caught(rationale: str) -> None:
    found = PROMPTS.leak(JUDGE, f"It is short. {rationale}")
    assert found and found in rationale


@pytest.mark.parametrize(
    "rationale",
    [
        "",
        "The response is correct and complete, so I give it a 4.",
        "There is no hint of irony in it.",
        "The author hinted at a second reason.",
        "Among the given answer choices, B fits best.",
        "The user is given a list of steps.",
        "We are told that Ann has four apples.",
        "So the answer is 4.",
        "The final answer must be even.",
        "It answers what was asked. The rating should be 4.",
        "The label on the box was red.",
        "A chinthe is a lion.",
    ],
)
def test_ordinary_sentences_are_no_leaks(rationale: str) -> None:
    assert PROMPTS.leak(JUDGE, rationale) == ""


def test_words_of_the_problem_are_no_leak() -> None:
    problem = Problem("q", "Use the hint: it is even.", "4")
    assert PROMPTS.leak(problem, "The Hint says even.") == ""
    assert PROMPTS.leak(problem, "By the hint, the given answer fits.") == "the given answer"


def test_leak_patterns_can_be_replaced() -> None:
    assert Prompts(leaks=()).leak(JUDGE, "The hint says 4.") == ""
    assert Prompts(leaks=("secret(?:ly)?",)).leak(JUDGE, "Secretly 4.") == "Secretly"


# --- copies of a hint


@pytest.mark.parametrize("judged", [False, True])
@settings(max_examples=20)
@given(data=st.data())
def test_five_words_of_a_hint_in_a_row_are_a_leak(judged: bool, data: st.DataObject) -> None:
    telling = st.text("bcdfghjklmnpqrstvwxz", min_size=3, max_size=8)
    said = data.draw(st.lists(telling, min_size=6, max_size=12))
    start = data.draw(st.integers(0, len(said) - 5))
    hint = f"{{answer}}: {' '.join(said)}."
    prompts = Prompts(leaks=JUDGE_LEAKS if judged else LEAKS, hint=hint)
    assert prompts.leak(JUDGE, f"I say, {' '.join(said[start : start + 5])}!")


def test_a_writer_speaks_of_itself_in_the_words_of_the_hint() -> None:
    hint = "It is {answer}. Never tell anybody that you looked at your notes."
    assert find_leak("I never tell anybody that I looked.", "4", compiled(copies_of(hint)))
    assert find_leak("anybody that we looked at our notes", "4", compiled(copies_of(hint)))
    assert not find_leak("He looked at his notes.", "4", compiled(copies_of(hint)))


def test_words_of_the_plain_prompt_are_no_copies_of_the_hint() -> None:
    hint = "Compare clarity with brevity, and weigh clarity twice; {answer} is due."
    said = "I compare clarity with brevity, and weigh clarity twice."
    assert find_leak(said, "4", compiled(copies_of(hint)))
    assert not find_leak(said, "4", compiled(copies_of(hint, said)))


def test_a_conclusion_in_the_usual_words_of_the_hint_is_none() -> None:
    assert PROMPTS.leak(JUDGE, "It is clear. The correct answer is 4.") == ""
    assert PROMPTS.leak(JUDGE, "The correct answer is 4. It is clear.") == "The correct answer is 4"
    assert PROMPTS.leak(JUDGE, "The correct answer is 3. It is clear.") == ""


# --- y* in a text


@pytest.mark.parametrize(
    ("text", "answer", "shown"),
    [
        ("4 of 14, 4.5, 4,000 or 4.", "4", "# of 14, 4.5, 4,000 or #."),
        ("A response or a tie: A", "A", "# response or a tie: #"),
        ("A Tie is a tie", "tie", "A ### is a ###"),
        ("答案是17。", "17", "答案是##。"),
        ("x^2 + 1 and x^2 + 12", "x^2 + 1", "####### and x^2 + 12"),
        ("nothing", "", "nothing"),
        (f"4{MARK}", "5", "4 "),
    ],
)
def test_the_answer_is_marked_where_it_stands_as_a_whole(text: str, answer: str, shown: str) -> None:
    assert marked(text, answer).replace(MARK, "#") == shown


@given(words, words, st.text(max_size=5))
def test_any_text_can_be_searched_for_leaks(question: str, rationale: str, answer: str) -> None:
    assert len(marked(rationale, answer)) == len(rationale)
    problem = Problem("q", question, answer)
    for prompts in (PROMPTS, Prompts(leaks=JUDGE_LEAKS)):
        assert prompts.leak(problem, rationale) in rationale


@settings(max_examples=200)
@given(st.one_of([st.from_regex(compiled((leak,))) for leak in ALL]))
def test_what_a_pattern_matches_is_found_in_any_case(phrase: str) -> None:
    text = re.sub(f"{MARK}+", "4", phrase).upper()
    assume((len(text) == len(phrase) and MARK in marked(text, "4")) or MARK not in phrase)
    assume(compiled(ALL).search(marked(text, "4").lower()))
    prompts = Prompts(leaks=ALL)
    assert prompts.leak(JUDGE, text)
    assert prompts.leak(Problem("q", text, "4"), text) == ""  # the problem says it too


def test_capitals_of_a_pattern_of_ones_own_do_not_matter() -> None:
    for pattern in ("Secret", r"\bSECRET\b", r"secret\W"):
        assert Prompts(leaks=(pattern,)).leak(JUDGE, "A seCret!")


def test_long_texts_are_searched_fast() -> None:
    since = time.process_time()
    repeated = ("*", "as the answer ", "I must say the the the ", "4 is 4 ", "I need to justify a ")
    for text in (each * (50_000 // len(each)) for each in repeated):
        PROMPTS.leak(JUDGE, text)
        Prompts(leaks=JUDGE_LEAKS).leak(JUDGE, text)
    assert time.process_time() - since < 10  # it took 0.4 s
