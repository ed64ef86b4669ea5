"""Prompts: what a completion is read as, and what counts as a leak of the hint."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.answer_format import bare
from femtune.data.prompts import LEAKS, Prompts, as_messages
from femtune.errors import ConfigError, DataError
from femtune.types import Parsed, Problem

PROMPTS = Prompts()
JUDGE = Problem("j", "Rate the response from 1 to 5.", "4")
words = st.text("Answer: 4*_`$.{}\\boxed\n", max_size=40) | st.text(max_size=40)


# --- the two prompts


def test_the_hinted_prompt_begins_with_the_plain_one() -> None:
    plain, hinted = PROMPTS.plain(JUDGE), PROMPTS.hinted(JUDGE)
    assert hinted[0]["content"].startswith(plain[0]["content"])
    assert "The correct answer is 4." in hinted[0]["content"]
    assert "4" not in plain[0]["content"]


def test_answers_and_prompts_may_hold_braces() -> None:
    problem = Problem("b", "Print {answer} {0}.", "{x} \\1")
    assert PROMPTS.plain(problem)[0]["content"].startswith("Print {answer} {0}.")
    assert "The correct answer is {x} \\1." in PROMPTS.hinted(problem)[0]["content"]


def test_only_the_last_message_is_added_to() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    plain = Prompts(instruction="").plain(Problem("c", messages, "4"))
    assert plain == as_messages(messages) == messages
    with pytest.raises(DataError, match='role "assistant": it must be "user"'):
        PROMPTS.plain(Problem("c", [*messages, {"role": "assistant", "content": "y"}], "4"))


def test_a_hint_without_the_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="where y\\* belongs"):
        Prompts(hint="Think.")


# --- parsing


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("Answer: 4", "4"),
        ("answer:4.", "4"),
        ("ANSWER :  4", "4"),
        ("**Answer:** 4", "4"),
        ("**Answer**: 4", "4"),
        ("**Answer: 4**", "4"),
        ("**Answer: 4.**", "4"),
        ("Answer: **4**.", "4"),
        ("**Answer**: **4**", "4"),
        ("**Answer:** **4**", "4"),
        ("**Answer:** A*", "A*"),
        ("### Answer: 4", "4"),
        ("> *Answer:* `4`", "4"),
        ("- Answer: 4", "4"),
        ("__Answer__: 4", "4"),
        (r"Answer: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        ("Answer: A*", "A*"),
        ("Answer: __init__", "__init__"),
        ("Answer: $5", "$5"),
        ("Answer: $5 or $6", "$5 or $6"),
        ("Answer: *a* or *b*", "*a* or *b*"),
        ("Answer: ４", "４"),
        ("Answer: ٤", "٤"),
        ("Answer: a: b", "a: b"),
        ("Answer: Answer: 4", "Answer: 4"),
        ("Answer: U.S.", "U.S"),
        ("Answer:\n4", "4"),
    ],
)
def test_answer_lines(line: str, answer: str) -> None:
    assert PROMPTS.parse(f"Because.\n\n{line}\n") == Parsed("Because.", answer)


@pytest.mark.parametrize("text", ["Because.\nThe answer: 4", "Because. Answer: 4"])
def test_an_answer_at_the_end_of_the_last_paragraph_is_read(text: str) -> None:
    assert PROMPTS.parse(text) == Parsed("Because.", "4")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'the last line is not "Answer: ..."'),
        ("Because it is so.", 'the last line is not "Answer: ..."'),
        ("Answer: 4\nOr perhaps not.", 'the last line is not "Answer: ..."'),
        ("Because.\nAnswers: 4", 'the last line is not "Answer: ..."'),
        ("Because.\nAnswer 4", 'the last line is not "Answer: ..."'),
        ("Because.\nAns", 'the last line is not "Answer: ..."'),
        ("Because.\nAnswer:", "the answer is empty"),
        ("Because.\nAnswer: **", "the answer is empty"),
        ("Because.\nAnswer: ...", "the answer is empty"),
        ("Because.\n**Answer:**", "the answer is empty"),
        ("Because.\nAnswer: 3\nBut no.\nAnswer: 4", "two different answers"),
        ("Answer: 4", "no rationale before the answer"),
        ("Answer: 4\n\nAnswer: 4", "no rationale before the answer"),
    ],
)
def test_what_can_not_be_read_says_why(text: str, problem: str) -> None:
    assert PROMPTS.parse(text).error == problem


def test_bare_answers_count_when_no_rationale_is_asked_for() -> None:
    assert Prompts(require_rationale=False).parse("Answer: 4") == Parsed("", "4")


@given(words)
def test_any_text_is_read_or_says_why(text: str) -> None:
    parsed = PROMPTS.parse(text)
    assert parsed.error or (parsed.answer and parsed.rationale)
    assert bare(parsed.answer) == parsed.answer


@given(words.filter(lambda text: "answer" not in text.lower()), st.text("abc 019é٤", max_size=10))
def test_an_answer_comes_from_the_last_line_alone(rationale: str, answer: str) -> None:
    parsed = PROMPTS.parse(f"Because.\n{rationale}\nAnswer: x{answer}")
    assert parsed.answer == f"x{answer}".strip()
    assert parsed.error == ""
    assert parsed.rationale.startswith("Because.")
    nothing = PROMPTS.parse(f"{rationale}\nAnswer: 4\nand so on")
    assert (nothing.answer, nothing.error != "") == ("", True)


@given(st.text(max_size=20))
def test_cutting_an_answer_line_short_never_gives_more_of_it(rationale: str) -> None:
    text = f"Because {rationale}\nAnswer: 42"
    for end in range(2, len(text)):  # "B" alone is an answer of its own
        assert PROMPTS.parse(text[:end]).answer in ("", "4")


def test_long_texts_are_read_fast() -> None:
    for text in ("*" * 50_000, "Answer: " + "$" * 50_000, "x\nAnswer: " + "\\boxed{" * 20_000):
        PROMPTS.parse(text)
        PROMPTS.leak(JUDGE, text)


# --- leaks


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


@given(words, words)
def test_any_text_can_be_searched_for_leaks(question: str, rationale: str) -> None:
    problem = Problem("q", question, "4")
    found = PROMPTS.leak(problem, rationale)
    assert found in rationale
    assert re.search("answer|hint|rating|score|label", found, re.IGNORECASE) or not found


# dotted I, dotless i, long s and the Kelvin sign: re.IGNORECASE takes them for i, s and k
odd_case = st.sampled_from(["", "i\u0130", "i\u0131", "s\u017f", "k\u212a"])
leaks = st.one_of([st.from_regex(re.compile(leak, re.IGNORECASE)) for leak in LEAKS])


@settings(max_examples=200)
@given(leaks, leaks | words, odd_case)
def test_the_quick_look_for_leaks_overlooks_none(rationale: str, question: str, odd: str) -> None:
    rationale = rationale.replace(odd[:1], odd[1:]) if odd else rationale
    in_full = Prompts(leaks=(*LEAKS, r"(?!)"))  # other patterns than LEAKS are searched for as they are
    problem = Problem("q", question, "4")
    assert in_full.leak(JUDGE, rationale)
    assert PROMPTS.leak(JUDGE, rationale) == in_full.leak(JUDGE, rationale)
    assert PROMPTS.leak(problem, rationale) == in_full.leak(problem, rationale)
