"""Prompts: what a model is asked, and what a completion is read as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.answer_format import bare
from femtune.data.prompts import Prompts, as_messages
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
    for end in range(len(text) - len("swer: 42"), len(text)):  # "A" alone is an answer of its own
        assert PROMPTS.parse(text[:end]).answer in ("", "4")


def test_long_texts_are_read_fast() -> None:
    for text in ("*" * 50_000, "Answer: " + "$" * 50_000, "x\nAnswer: " + "\\boxed{" * 20_000):
        PROMPTS.parse(text)
