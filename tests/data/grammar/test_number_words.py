"""Numbers in English words, units that are parts of each other, and sentences with one number."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.answer_format import parse_format
from femtune.data.grammar.number_words import in_digits
from femtune.data.grammar.numbers import as_quantity, number_said
from femtune.data.grammar.units import factor
from femtune.rewards.builtin import math, ordinal

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Spell a number below a million."""
    if number >= 1000:
        rest = f" {in_words(number % 1000)}" if number % 1000 else ""
        return f"{in_words(number // 1000)} thousand{rest}"
    if number >= 100:
        return f"{ONES[number // 100]} hundred" + (
            f" and {in_words(number % 100)}" if number % 100 else ""
        )
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")


@given(st.integers(0, 999_999))
def test_a_number_is_the_one_that_its_words_say(number: int) -> None:
    assert in_digits(in_words(number)) == str(number)
    assert in_digits(f"minus {in_words(number)} eggs") == f"-{number} eggs"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "one of them",
            "one or two",
            "one to two",
            "two thirds",
            "one-third",
            "one another",
            "ten tenths",
        ),
        *("two three", "twenty, one", "twenty and one", "hundred hundred", "two point five", "twelfth"),
        *("three hundred thousand million", "one way", "", "a", "and", "none"),
    ],
)
def test_words_with_another_reading_are_no_number(text: str) -> None:
    assert as_quantity(text) is None


SIZES = {"km": 10**6, "m": 10**3, "cm": 10, "mm": 1}


@given(st.sampled_from([*SIZES]), st.sampled_from([*SIZES]), st.fractions(0, 10**6, max_denominator=8))
def test_a_length_is_itself_in_another_unit(one: str, other: str, number: Fraction) -> None:
    size = Fraction(SIZES[one], SIZES[other])
    assert factor(one, other) == size and factor(other, one) == 1 / size
    given, same = as_quantity(f"{number} {one}"), as_quantity(f"{number * size} {other}")
    assert given is not None and same is not None and given.same(same) and same.same(given)
    assert factor(f"{one}^2", f"{other}^2") == size**2
    assert factor(f"{one}/h", f"{other}/min") == size / 60


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("km", "mi"),
        ("m", "m^2"),
        ("kg", "L"),
        ("°C", "°F"),
        ("kB", "MB"),
        ("egg", "hen"),
        ("", "m"),
        ("h", "yr"),
    ],
)
def test_other_units_are_not_converted(one: str, other: str) -> None:
    assert factor(one, other) is None


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("1 hour and 30 minutes", "min", 90),
        ("5 feet 6 inches", "in", 66),
        ("$2 and 50 cents", "¢", 250),
        ("1 week, 2 days and 3 hours", "h", 9 * 24 + 3),
    ],
)
def test_a_sum_of_smaller_and_smaller_units(text: str, unit: str, number: int) -> None:
    found = as_quantity(text)
    assert found is not None and (found.value, found.unit.name) == (number, unit)


@pytest.mark.parametrize(
    "text", ["30 minutes 2 hours", "1 hour 90 minutes", "2 m 3 kg", "1 hour and 2", "3 eggs 2 hens"]
)
def test_other_sums_are_no_number(text: str) -> None:
    assert as_quantity(text) is None


MATH = math().grade


def earned(text: str, answer: str) -> float:
    read = parse_format("line").read(text, require_rationale=False)
    return 0.0 if read.error else MATH(read.answer, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: Tom has 14 marbles left.", "14"),
        ("Answer: There are twelve eggs.", "12"),
        ("Answer: Let c be the cats. Then 2c = 12 and so c = 6.", "6"),
        ("He gave some away.\nSo Tom has 20 - 6 = 14 marbles left.", "14"),
        ("6 × 6 = 36, so the floor needs 36 tiles.", "36"),
        ("So the total cost of the order is $29.00.", "29"),
        ("Thus the road is 5 km long.", "5000 m"),
        ("Answer: It is not 4, it is 5.", "5"),
        ("Answer: I think it is 5", "5"),
        ('Done.\n{"why": "3 + 4", "answer": 7}', "7"),
        ("We add.\nFinal verdict: 7", "7"),
        ("The answer is 7.\n\nThis is the sum of both numbers.", "7"),
        ("Answer: 24\nQuestion: And 3 x 5?\nAnswer: 15", "24"),
        ("✅ Final Answer: **73**", "73"),
        ('{"answer": 5, "why": "It', "5"),
    ],
)
def test_what_a_person_reads(text: str, answer: str) -> None:
    assert earned(text, answer) == 1


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("The answer is not 5.", "5"),
        ("Answer: 5, no wait, 6", "5 6"),
        ("Answer: 4-5", "4 5 9 -1"),
        ("Answer: between 4 and 5", "4 5"),
        ("Answer: Tom has 5 more than Ann", "5"),
        ("Answer: at least 5", "5"),
        ("Answer: 3 of the 5", "3 5"),
        ("Answer: Tom has 14, and Ann has 15", "14 15"),
        ("Answer: Tom has two of 14", "2 14"),
        ("Answer: It was in May 2024", "2024"),
        ("Answer: The train leaves at 7:15", "7 15"),
        ("Answer: I doubt it is 5", "5"),
        ("Answer: 5 squared", "5 25"),
        ("Answer: Chapter 5", "5x"),
        ("The answer is 0 and x = 1", "0 1"),
        ("So Tom has 5 - 2 = 3 left, and Ann 4 + 4 = 8.", "3 8"),
        ("Hence x is greater than 5.", "5"),
        ("So Tom does not have 5.", "5"),
        ("So they have 12 eggs", "12"),  # a sentence that is cut off
        ("The answer is 5.\n\nThen we look at it again.", "5"),
        ("The answer is 5.\n\nThe answer is 6.", "5 6"),
        ('{"a": {"score": 5}, "b": {"score": 3}}', "5 3"),
        ('{"answer": 5', "5"),
        ('{"answer": "5', "5"),
        ("Answer: fifteen (16)", "15 16"),
    ],
)
def test_what_a_person_would_not_read(text: str, answers: str) -> None:
    assert [earned(text, answer) for answer in answers.split()] == [0] * len(answers.split())


def test_a_count_is_no_rating() -> None:
    read = parse_format("line").read("So the summary has 3 faults.", require_rationale=False)
    assert read.answer == "3 faults"
    assert ordinal("1,5").grade(read.answer, "3") == 0
    assert number_said("Tom has 5 - 2 = 3 apples left.") == "3 apples"
