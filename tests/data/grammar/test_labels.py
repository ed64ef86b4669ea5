"""Labels of choices: one letter is read, two are none, and a choice's own text takes nothing back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.grammar.labels import Choices, read_label
from femtune.data.rows import BadRow
from femtune.data.tasks.choice import problem as choice_problem
from femtune.data.tasks.frames import frame, scale_of
from femtune.evaluation.evaluate import as_item
from femtune.rewards.builtin import AnswerReward, as_reward, choice
from femtune.types import Completion, Draw, DrawKey, Parsed, Problem, Score

# fmt: off
ALONE = (
    "B", "b", "(B)", "(b)", "B)", "B.", "[B]", "{B}", '"B"', "'B'", "“B”", "**B**", "`B`", "$B$",
    r"\text{B}",
    r"\mathrm{B}", r"\boxed{B}", r"\boxed{\text{B}}", "[[B]]", "**(B)**", "Ｂ", "B;",
)
LED = ("Option {}", "option {}", "Choice {}", "Answer {}", "Answer: {}", "The answer is {}",
    "The correct option is {}",
       "So the final answer is: {}", "Response {}", "**Answer:** {}", "Label: {}")
OWN_TEXT = (
    "B. Paris", "(B) Paris", "B) Paris", "B: Paris", "B - Paris", "B – Paris", "[B] Paris",
    "**B.** Paris",
    "**B. Paris**", "B. **Paris**", "Option B: Paris", "B (Paris)", "B. f(x) = 2x", "B) O(n)",
    "B. Both A and C",
    "B. Vitamins D and E", "B. None of the above", "B. It is not rude.", "B. x > 3, y < 4",
    "B is correct",
    "B is the right answer", "B. Plan A", "B. Group A and group C",
)
TWO = (
    "B or C", "B and C", "B, C", "B/C", "(B)(C)", "(B) or (C)", "(b) or (c)", "B. Paris or C. Rome",
    "B) Paris. No: C) Rome", "B. Wait, actually Answer: C", "B. Paris (C) Rome", "B. Paris, or C",
    "B. or C",
    "B. Paris. Actually C", "B, no, C", "B. C and D", "B is wrong", "B is not right", "not B", "B?",
    "B. Paris; sorry, C",
    "B. Paris\nC. Rome", "either B or C", "B. On second thought, C", "B. Paris, not C", "B & C",
    "B. I mean C", "BC",
    "Bob", "B.C.", "B Paris", "", "Between B and C", "B. Paris instead of C. Rome",
)
# fmt: on


@pytest.mark.parametrize("lead", ["{}", *LED])
@pytest.mark.parametrize("text", ALONE)
def test_markup_brackets_quotes_and_nouns_are_dropped(text: str, lead: str) -> None:
    said = lead.format(text)
    assert read_label(said) == "b"
    assert Choices(("A", "B")).read(said) == "B"
    assert choice().grade(said, "B") == 1 and choice().grade(said, "A") == 0


@pytest.mark.parametrize("text", OWN_TEXT)
def test_words_after_a_label_leave_it(text: str) -> None:
    assert read_label(text) == "b"


@pytest.mark.parametrize("text", TWO)
def test_two_labels_or_a_doubt_are_none(text: str) -> None:
    assert read_label(text) == ""
    assert Choices(tuple("ABCD")).read(text) is None
    assert Choices(tuple("ABCD"), ("Lima", "Paris", "Rome", "Oslo")).read(text) in (None, "B")
    assert all(choice().grade(text, gold) == 0 for gold in "ABCD")


TEXTS = (
    "Paris",
    "f(x) = 2x",
    "O(n)",
    "Both A and C",
    "Vitamins D and E",
    "Not enough information",
    "A",
    "no; wait",
)
LABELS = tuple("ABCDEFGH")
KNOWN = Choices(LABELS, TEXTS)
COPIES = ("{}. {}", "({}) {}", "{}) {}", "{}: {}", "**{}.** {}", "**{}. {}**", "Option {}: {}",
    "{} {}", "{} - {}", "[{}] {}",
          "The answer is {}. {}.", r"\boxed{{{}. {}}}", "{}.{}", "{}, {}", "{} ({})")  # fmt: skip


@pytest.mark.parametrize("form", COPIES)
@pytest.mark.parametrize("place", range(len(TEXTS)))
def test_a_copy_of_a_choice_is_its_label_whatever_its_words(place: int, form: str) -> None:
    assert KNOWN.read(form.format(LABELS[place], TEXTS[place])) == LABELS[place]
    assert KNOWN.read(form.format(LABELS[place].lower(), TEXTS[place])) == LABELS[place]


@pytest.mark.parametrize("form", COPIES)
def test_a_label_before_another_choice_s_text_is_none(form: str) -> None:
    choices = Choices(tuple("ABC"), ("Paris", "Rome", "Lima or Oslo"))
    for label, own in zip(choices.labels, choices.texts, strict=True):
        read = {other: choices.read(form.format(label, other)) for other in choices.texts}
        assert read == {other: label if other == own else None for other in choices.texts}


def test_a_choice_s_text_alone_is_its_label() -> None:
    assert [
        KNOWN.read(text) for text in ("paris", "**Paris.**", "Both A and C", "not Paris", "Rome")
    ] == [*("A", "A", "D", None, None)]
    assert KNOWN.read("A") == "A"  # the label, though it is the text of G


def test_choices_that_differ_by_case_alone_are_different() -> None:
    row = {"question": "Which?", "choices": ["BB", "Bb", "bb"], "labels": [*"ABC"], "answer": "B"}
    made = choice_problem(row, "q")
    assert isinstance(made, Problem)
    scale = scale_of(made)
    assert scale is not None
    said = ["BB", "Bb", "bb", "B. Bb", "A. bb", "bB", "B", "b"]
    assert [scale.read(text) for text in said] == ["A", "B", "C", "B", None, None, "B", "B"]
    assert isinstance(choice_problem({**row, "choices": ["Bb", "Bb ", "bb"]}, "q"), BadRow)


@pytest.mark.parametrize(
    ("texts", "said", "label"),
    [
        (("4", "6", "8", "2"), "2", "D"),
        (("4", "6", "8", "2"), "C. 2", None),
        (("Mg", "mg", "kg", "g"), "B. mg", "B"),
        (("Mg", "mg", "kg", "g"), "B. Mg", None),
        (("P", "p", "q", "Q"), "C. q", "C"),
    ],
)
def test_texts_that_look_like_other_labels_or_values(
    texts: tuple[str, ...], said: str, label: str | None
) -> None:
    assert Choices(tuple("ABCD"), texts).read(said) == label


def asked(labels: str, texts: tuple[str, ...], answer: str) -> Problem:
    row = {"question": "Which?", "choices": list(texts), "labels": [*labels], "answer": answer}
    made = choice_problem(row, "q")
    assert isinstance(made, Problem)
    return made


def test_the_reward_and_the_votes_know_the_problem_s_choices() -> None:
    reward, problem = as_reward("choice"), asked("1234", ("ant", "2 or 3 hens", "cat", "dog"), "2")
    assert isinstance(reward, AnswerReward)
    said = ["2. 2 or 3 hens", "2 or 3 hens", "(2)", "2 or 3", "3. 2 or 3 hens", "ant"]
    wanted = ["2", "2", "2", "", "", "1"]
    completion = Completion((1,), "", "stop", 0.0)
    made = reward([problem] * 6, [completion] * 6, [Parsed("z", text) for text in said])
    assert list(made) == [float(label == "2") for label in wanted]
    draws = [
        Draw(DrawKey(0, "q", 0, place), "plain", 0, completion, Score(0.0, text))
        for place, text in enumerate(said)
    ]
    assert as_item(problem, draws).votes == tuple(wanted)


def test_a_run_stored_without_the_texts_of_choices_is_read_by_labels() -> None:
    problem = asked("12", ("ant", "bee"), "2")
    stored = {key: value for key, value in problem.columns["frame"].items() if key != "choices"}
    old = Problem("q", problem.prompt, "2", {"frame": stored})
    scale = scale_of(old)
    assert frame(old) is not None and scale is not None
    assert [scale.read(text) for text in ("2. bee", "bee", "1", "2.0")] == ["2", None, "1", None]


PIECES = st.sampled_from(
    [*"ABCab12.():,[]*\"' -/", "or ", "and ", "Paris", "Rome", "not ", "wait ", "Option ", "is better"]
)


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=40))
def test_any_text_has_at_most_one_label_and_takes_no_time(text: str) -> None:
    begun = time.process_time()
    choices = Choices(tuple("ABC"), ("Paris", "Rome", "A or B"))
    label = choices.read(text)
    assert label in (None, *"ABC") and read_label(text) == read_label(text).lower()
    assert sum(choice().grade(text, gold) for gold in "ABC") <= 1
    assert time.process_time() - begun < 1


BETWEEN = (" or ", " and ", ", ", "/", ". ", ") or (", ". Paris or ", ". Wait, ", ". No, ",
    "; sorry, ", " (or ")  # fmt: skip


@given(st.sampled_from("ABC"), st.sampled_from("ABC"), st.sampled_from(BETWEEN))
def test_no_text_with_two_different_letters_is_right(one: str, other: str, between: str) -> None:
    choices = Choices(tuple("ABC"), ("Lima", "Rome", "Oslo"))
    said = f"{one}{between}{other}"
    assert one == other or choices.read(said) is None
