"""Answers: when two say the same, and which one of a scale a text is; nothing else is taken for it."""

from __future__ import annotations

import re
import string
import unicodedata
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from femtune.data.answers import Scale, infer_scale, parse_scale
from femtune.data.grammar.labels import read_label
from femtune.data.grammar.numbers import as_fraction
from femtune.data.grammar.text import plain, same_text
from femtune.errors import ConfigError, DataError

# --- scales as users write them


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("1,5", "1 2 3 4 5"),
        (" 0 , 2 ", "0 1 2"),
        ("-1,1", "-1 0 1"),
        ("1,2,0.5", "1 1.5 2"),
        ("0,1,0.1", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1"),
        ("0,1,1/4", "0 0.25 0.5 0.75 1"),
        ("0,10,5", "0 5 10"),
        ("999999,1000001,0.5", "999999 999999.5 1000000 1000000.5 1000001"),
        ("bad,fair,good", "bad fair good"),
        ("A,B,tie", "A B tie"),
        ("Nein, Ja", "Nein Ja"),
    ],
)
def test_a_scale_as_it_is_written(text: str, answers: str) -> None:
    assert parse_scale(text).answers == tuple(answers.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least two different answers, got nothing"),
        ("good", "got good"),
        ("good,Good", "got good, Good"),
        ("bad,", "got bad, "),
        ("**yes**,yes", "different"),
        ("5,1", "steps of 1 from 5 do not reach 1"),
        ("1,1", "from 1 do not reach 1"),
        ("1,5,0", "steps of 0 from 1 do not reach 5"),
        ("1,5,-1", "steps of -1 from 1 do not reach 5"),
        ("1,5,3", "steps of 3 from 1 do not reach 5"),
        ("1", 'give "1,5", "1,5,0.5" with a step, or labels'),
        ("1,2,3,4", "is invalid"),
        ("1,many", "is invalid"),
        ("0,1000000", "has 1000001 answers"),
    ],
)
def test_what_is_no_scale_is_refused_with_how_one_is_written(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_scale(text)


@given(st.integers(-50, 50), st.integers(1, 20), st.integers(1, 8))
def test_every_answer_of_a_scale_is_read_as_itself(low: int, steps: int, parts: int) -> None:
    scale = parse_scale(f"{low},{low + steps},1/{parts}")
    assert len(scale.answers) == steps * parts + 1
    for answer in scale.answers:
        assert scale.read(answer) == scale.read(f"**{answer}**.") == answer
    assert sorted(scale.answers, key=scale.value) == [*scale.answers]


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("1,5", "a whole number from 1 to 5"),
        ("0,10,5", "from 0 to 10 in steps of 5"),
        ("1,5,0.5", "from 1 to 5 in steps of 0.5"),
        ("A,B", "A or B"),
        ("A,B,tie", "A, B or tie"),
    ],
)
def test_a_scale_in_the_words_of_a_prompt(scale: str, words: str) -> None:
    assert str(parse_scale(scale)) == words


def test_uneven_steps_are_all_said() -> None:
    assert str(Scale(("1", "2", "4"))) == "1, 2 or 4"


# --- scales as the data shows them


@pytest.mark.parametrize(
    ("answers", "scale"),
    [
        (["4", "1", "5", "4", "2", "3"], "1,5"),
        (["2", "0", "1"], "0,2"),
        (["٢", "１", "3.0"], "1,3"),
        ([str(number) for number in range(11)], "0,10"),
    ],
)
def test_whole_numbers_from_0_or_1_on_show_their_scale(answers: list[str], scale: str) -> None:
    assert infer_scale(answers) == parse_scale(scale)


@pytest.mark.parametrize(
    "answers",
    [
        ["1", "2", "3", "3.5"],  # half points, or quarters?
        ["bad", "fair", "good"],  # which is better?
        ["1", "2", "good"],
        ["0", "1"],  # there may be a 2
        ["1", "2", "4"],  # are there 3 and 5?
        ["3", "4", "5"],
        ["-1", "0", "1"],
        [],
    ],
)
def test_what_shows_no_scale_is_refused_with_what_to_give(answers: list[str]) -> None:
    with pytest.raises(DataError) as error:
        infer_scale(answers)
    for part in (*answers, "--scale 1,5,", "--scale 1,5,0.5", "--scale bad,fair,good"):
        assert part in str(error.value)


def test_decimals_with_a_comma_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"ratings 1,5; 2,0; 3\. Write decimals with a point"):
        infer_scale(["3", "1,5", "2,0"])


# --- reading


# fmt: off
@pytest.mark.parametrize(
    ("scale", "text", "answer"),
    [
        ("1,5", "4", "4"),
        ("1,5", " **4**. ", "4"),
        ("1,5", "4.0", "4"),
        ("1,5", r"$\boxed{4}$", "4"),
        ("1,5", "４", "4"),  # full width
        ("1,5", "٤", "4"),  # Arabic
        ("1,5", "४", "4"),  # Devanagari
        ("1,5", "٤/٥", "4"),
        ("1,5", "4/5", "4"),
        ("1,5", "4 / 5", "4"),
        ("1,5", "**4**/5", "4"),
        ("1,5", "4/5.0", "4"),
        ("1,5", "4 out of 5", "4"),
        ("1,5", "4 Out Of 5.", "4"),
        ("1,5", "5/5", "5"),
        ("1,5,0.5", "3.5/5", "3.5"),
        ("1,5,0.5", "7/2", None),  # nobody means 3.5
        ("1,5", "4/10", None),  # of another scale
        ("1,5", "10/10", None),  # and no 1
        ("1,10", "5/5", None),
        ("1,5", "4 out of 10", None),
        ("1,5", "9/5", None),
        ("0,1,0.5", "1/2", "0.5"),
        ("0,1", "1/1", "1"),
        ("1,5", "6", None),
        ("1,5", "3.5", None),
        ("1,5", "-4", None),
        ("-2,2", "-2", "-2"),
        ("-2,2", "−2", "-2"),  # a minus sign
        ("1,5", "4 or 5", None),
        ("1,5", "4-5", None),
        ("1,5", "4,5", None),
        ("1,5", "four", "4"),
        ("1,5", "", None),
        ("1,5", "4²", None),
        ("1,50", "4²", None),
        *(("1,5", text, "4") for text in (
            "[[4]]", '"4"', "“4”", "(4)", "[4]", "4 (good)", "**4** (very good)", "4 - good", "4: good",
            "4 stars", "4 points", "4 out of 5 stars", "4/5 stars", "4 of 5", "(4/5)", "4 / 5 (good)",
            "Rating: 4", "**Rating:** 4", "Rating：4", "My rating is 4", "The final score is 4/5.",
            "4;", "4,", "4。", r"\text{4}", "$4$", "Answer: 4", r"\boxed{\text{4}}",
        )),
        *(("1,5", text, None) for text in (
            "4 (not 5)", "4 (5)", "4 (or five)", "4 (wait)", "4 - 5", "4 maybe", "not 4", "~4", "4?",
            "4 km", "4 hours", "4 stars out of 10", "4 out of 10 stars", "between 4 and 5", "4 4", "4!",
            "4%", "3/5/2", "$4 or 5$", "4 stars or 5", "Rating: 4 or 5", "four or five", "-4 stars",
        )),
        ("0,100", "85%", "85"),
        ("0,100", "85 percent", "85"),
        ("0,100", "0.85", None),
        ("1,5,0.5", "3 1/2", "3.5"),
        ("bad,fair,good", "Good.", "good"),
        ("bad,fair,good", "*good*", "good"),
        ("bad,fair,good", "very good", None),
        ("bad,fair,good", "not good", None),
        ("bad,fair,good", "bad or good", None),
        ("bad,fair,good", "g", None),
        ("A,B,tie", "B", "B"),
        ("A,B,tie", "b", "B"),
        ("A,B,tie", "(B)", "B"),
        ("A,B,tie", "B)", "B"),
        ("A,B,tie", "Response B", "B"),
        ("A,B,tie", "response (b)", "B"),
        ("A,B,tie", "Summary A.", "A"),
        ("A,B,tie", "Assistant A", "A"),
        ("A,B,tie", "B. It is a better one.", "B"),
        ("A,B,tie", "Response B: it is clearer.", "B"),
        *(("A,B,tie", text, "A") for text in (
            "[[A]]", "[A]", '"A"', "**A**", r"\text{A}", r"\boxed{A}", "Response A is better",
            "A is better",
            "Response A is better than Response B.", "Response **A**", "A is the best one", "Answer: A",
            "The better response is A", "A (clearer)", "Option A: it is clearer", "The answer is (A).",
        )),
        *(("A,B,tie", text, None) for text in (
            "A or a tie", "A and B", "A, B", "A/B",
            "Response A or B", "A is worse", "A is not better", "A is better or B",
            "A (or B)", "A is better, wait, B", "B is worse than A", "AB", "A B", "neither",
        )),
        ("A,B,tie", "It is a tie.", "tie"),
        ("A,B,tie", "Tie", "tie"),
        ("A,B", "tie", None),
        ("A,B,tie", "C", None),
        ("A,B,tie", "A or B", None),
        ("A,B,tie", "(A) or (B)", None),
        ("A,B,tie", "(a) or (b)", None),
        ("A,B,tie", "A. B", None),
        ("A,B,tie", "A: it is a tie", None),
        ("A,B,tie", "Bob", None),
        ("A,B,tie", "A better one", None),
        ("A,B,tie", "not B", None),
        ("A,B,tie", "", None),
        ("yes,no", "**Yes**", "yes"),
    ],
)
def test_what_is_read_on_a_scale(scale: str, text: str, answer: str | None) -> None:
    assert parse_scale(scale).read(text) == answer
# fmt: on


def digits(text: str) -> str:
    """Text with digits of every script as 0 to 9, without markup: what is left is plain to a reader."""
    text = re.sub(r"(\d*) *([¼½¾])", lambda m: str(int(m[1] or 0) + unicodedata.numeric(m[2])), text)
    text = re.sub(r"(\d+) +1/([2-9])(?!\d)", lambda m: str(int(m[1]) + 1 / int(m[2])), text)
    shown = "".join(str(unicodedata.decimal(c, c)) for c in unicodedata.normalize("NFKC", text))
    alone = re.sub(r"(?<=[\w)\]*`]) *[-–—:(] *[^\W\d]\D*$", "", shown.replace("−", "-"))  # "4 (good)"
    return re.sub(r"[*_`$£€¥%\\(){}\[\]\"'“”‘’\s]|boxed", "", alone)


SCALES = [parse_scale(text) for text in ("1,5", "0,4", "1,10", "1,5,0.5", "-2,2", "0,1,0.25")]
NOISE = st.sampled_from(
    [
        *string.punctuation,
        *string.digits,
        *"٤५４²½−",
        " ",
        "\n",
        " or ",
        " out of ",
        "e",
        "**",
        " (good)",
        r"\boxed{",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(NOISE, max_size=7).map("".join))


@given(st.sampled_from(SCALES), TEXTS)
@example(SCALES[0], "10/10")
@example(SCALES[1], "4/2")
def test_a_number_is_read_only_where_it_is_the_one_that_stands_there(scale: Scale, text: str) -> None:
    """Alone, or before the highest one of the scale: then no other number is anywhere in the text."""
    answer = scale.read(text)
    if answer is None:
        return
    assert answer in scale.answers
    stands = digits(text).rstrip(".。;；,，、")
    points, of, most = re.fullmatch(r"(.*?)(?:(/|(?:out)?of)([^/]*))?", stands, re.IGNORECASE).groups()
    if of and scale.answers[-1] != "1":
        assert Fraction(most.rstrip(".")) == Fraction(scale.answers[-1])
        assert Fraction(points) == Fraction(answer)
    elif of:
        assert Fraction(f"{points}/{most}") == Fraction(answer)
    else:
        assert Fraction(points.replace(",", "")) == Fraction(answer)


LABELS = [parse_scale(text) for text in ("A,B,tie", "A,B", "bad,fair,good", "no,yes")]
WORDS = st.sampled_from(
    ["A", "B", "a", "b", "tie", "bad", "good", "no", "yes", "Response", "Summary", "or", "(", ")", ":",
     ".", "**", " ", " ", " ", "C", "not", "It is clearer"]
)  # fmt: skip


@given(st.sampled_from(LABELS), st.one_of(st.text(), st.lists(WORDS, max_size=7).map("".join)))
@example(LABELS[0], "(A) or (B)")
@example(LABELS[0], "a)B")
def test_a_label_is_read_only_where_it_comes_first_and_no_other_is_named(
    scale: Scale, text: str
) -> None:
    answer = scale.read(text)
    if answer is None:
        return
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " "))
    nouns = ("answer", "assistant", "choice", "option", "response", "summary")
    said = words[1:] if words[0] in nouns else words
    assert said[0] == answer.casefold()
    shouted = re.findall(r"\w+", unicodedata.normalize("NFKC", text).replace("_", " "))
    assert not {other for other in scale.answers if other != answer} & {*shouted}


# --- values


def test_labels_and_letters_are_worth_their_place_and_numbers_themselves() -> None:
    assert [parse_scale("bad,fair,good").value(each) for each in ("bad", "fair", "good")] == [0, 1, 2]
    assert [parse_scale("1,2,0.5").value(each) for each in ("1", "1.5", "2")] == [1, 1.5, 2]


@pytest.mark.parametrize(
    ("scale", "value", "answer"),
    [
        ("1,5", 3.4, "3"),
        ("1,5", 3.5, "3"),  # the lower of two
        ("1,5", 3.51, "4"),
        ("1,5", 9.0, "5"),
        ("1,5", -9.0, "1"),
        ("1,5,0.5", 3.4, "3.5"),
        ("bad,fair,good", 1.6, "good"),
    ],
)
def test_the_nearest_answer(scale: str, value: float, answer: str) -> None:
    assert parse_scale(scale).nearest(value) == answer


# --- text, numbers and letters


@given(st.text())
def test_a_text_is_the_same_as_itself_unless_it_says_nothing(text: str) -> None:
    assert same_text(text, text) == (plain(text) != "")
    assert same_text(f" **{text}** ", text) or plain(text) in ("", plain(f"**{text}**")) or "*" in text


@given(st.fractions(), st.sampled_from(["{}", " {} ", "**{}**", "{}.", r"\boxed{{{}}}"]))
def test_a_fraction_is_read_exactly(number: Fraction, form: str) -> None:
    assert as_fraction(form.format(number)) == number


@given(st.integers(0, 10**9))
def test_a_grouped_number_is_the_number(number: int) -> None:
    for grouped in (f"{number:,}", f"{number:,}".replace(",", "\u202f")):
        assert as_fraction(grouped) == number


@pytest.mark.parametrize(
    "text", ["", ".", "e5", "1/0", "1,5", "1.2.3", "two", "9" * 5000, "1 000", "10²x"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert as_fraction(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "b"), ("(b) Paris", "b"), ("B. Paris", "b"), ("B) Paris", "b"), ("b: Paris", "b"),
     ("Bob", ""), ("B or C", ""), ("1", "1"), ("3) hen", "3"), ("3.5", ""), ("", ""), ("B.C.", "")],
)  # fmt: skip
def test_a_label_stands_alone_or_before_its_choice(text: str, letter: str) -> None:
    assert read_label(text) == letter


@pytest.mark.parametrize("text", ["[1,5]", "(1,5)", " [1, 5] ", "( 1 , 5 )", "[1,5,1]"])
def test_a_scale_in_brackets_is_the_scale(text: str) -> None:
    assert parse_scale(text) == parse_scale("1,5")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("[bad, fair, good]", ("bad", "fair", "good")),
        ("(0,1,0.5)", ("0", "0.5", "1")),
        ("[A,B]", ("A", "B")),
        ("good (mostly),bad (mostly)", ("good (mostly)", "bad (mostly)")),
        ("[a],[b]", ("[a]", "[b]")),
        ("(a),(b)", ("(a)", "(b)")),
    ],
)
def test_brackets_of_a_list_alone_are_taken_off(text: str, answers: tuple[str, ...]) -> None:
    assert parse_scale(text).answers == answers
