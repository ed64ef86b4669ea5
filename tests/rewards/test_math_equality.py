r"""Equality of mathematical answers, by kind: what is the same in both orders, and what is not."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from femtune.data.answer_format import parse_format
from femtune.rewards.builtin import AnswerReward, as_reward, choice, number
from femtune.rewards.math_equality import same_value

# fmt: off
SAME = {
    "units": [
        *((f"18 {unit}", "18") for unit in (
            "dollars", "USD", "eggs", "weeks", "pages", "people", "apples", "hours", "students",
            "red marbles", "boxes",
            "minutes per lap", "square feet", "cubic cm", "in total", "degrees", "km/h",
            "% of the class", "books left",
            "pieces of candy", "years old", "GB", "cups of flour", "puppies", "more", "times",
        )),
        ("$18", "18 dollars"), (r"\$18", "18"), (r"18\text{ cm}", "18 centimeters"), ("18cm", "18 cm"),
        (r"9\pi \text{ cm}^2", r"9\pi"), ("9π square inches", r"9\pi \text{ square inches}"),
        (r"2\sqrt{2} cm", "2√2"),
        (r"\frac{3}{4} cup", "3/4"), ("$18.50 per hour", "18.5"), ("5 mph", "5 miles per hour"),
        (r"\frac{\pi}{2} \text{ meters}", r"\pi/2 meters"),
    ],
    "percent": [
        ("75%", "75"), (r"75\%", "75 percent"), ("75 per cent", "75%"), ("7.5%", "7.5 percent"),
        (r"75 \%", "75"),
        ("75 percent", "75"),
    ],
    "mixed numbers": [
        ("3 1/2", "7/2"), (r"3\frac12", "7/2"), (r"3\frac{1}{2}", "3.5"), ("3½", "3 1/2"), ("-3 1/2",
        "-3.5"),
        ("2 3/4 cups", "2.75"), (r"1 \frac{1}{3}", "4/3"),
    ],
    "small numbers": [
        ("2^{-70}", r"\frac{1}{2^{70}}"), (r"7\times 10^{-25}", "7e-25"),
        (r"\sin^2 x + \cos^2 x - 1", "0"),
        (r"\sqrt{2}\cdot 10^{-30}", r"10^{-30}\sqrt{2}"), ("10^{-8}", "0.00000001"),
    ],
    "scores": [("3-1", "3 - 1"), ("3–1", "3-1"), ("3:1", "3 : 1"), ("7-9-1", "7 - 9 - 1"), ("21-19",
    r"\text{21-19}")],
    "words": [
        ("IV", r"\text{IV}"), ("even", "Even"), (r"\text{Evelyn}", "evelyn"), ("no solution",
        "No  solution"),
        ("LAMP", r"\text{LAMP}"), ("ab", "ab"),
    ],
    "names": [
        ("y = 4, x = 3", "x=3, y=4"), ("x=3; y=4", "x=3, y=4"), ("x = 3 and y = 4", "x=3, y=4"),
        ("x = 5", "5"),
        (r"x=3 \text{ and } y=4", "y=4,x=3"), ("x = 0.5, y = 2", r"x=\frac12, y=2"), ("a_1=2, a_2=3",
        "a_2 = 3, a_1 = 2"),
        ("length = 5, width = 3", "width=3, length=5"), ("x = 3 or x = -3", "3, -3"), ("x = 3, -3",
        r"\{-3, 3\}"),
        ("y=2x+1", "y = 1+2x"), ("f(x) = 2x", "2x"), (r"\theta = \pi/2", r"\frac{\pi}{2}"), ("x=y",
        "x = y"),
        ("x = 5 cm", "5"),
    ],
    "lists": [
        ("(3, 4)", "(3,4)"), ("(3.0, 8/2)", "(3, 4)"), ("2, 1", "1, 2"), ("1 and 2", r"\{1, 2\}"),
        ("1, 2", "{2,1}"),
        ("(1,2),(3,4)", "(3, 4), (1, 2)"), (r"\left(1, \frac{1}{2}\right)", "(1, 0.5)"), ("[0, 1)",
        "[0,1)"),
        ("1,000, 2", "2, 1000"), (r"\{\sqrt{8}, 1\}", r"\{1, 2\sqrt{2}\}"), ("3, -3", r"\pm 3"),
        (r"(-\infty, 2)\cup(3,\infty)", "(-∞,2)∪(3,∞)"),
    ],
    "dates": [
        ("March 14, 2024", "2024-03-14"), ("14 March 2024", "14/03/2024"), ("July 4", "the 4th of July"),
        ("Thursday, March 14, 2024", "3/14/2024"), ("03/04/2024", "03/04/2024"), ("5/5/2024",
        "May 5, 2024"),
    ],
    "boxes": [
        (r"\boxed{\frac{\sqrt{5}}{4}}", r"\frac{\sqrt{5}}{4}"), (r"$\boxed{y^{2^{n}}}$", "y^{2^{n}}"),
        (r"\boxed{\boxed{5}}", "5"), (r"$$\boxed{\{1, 2\}}$$", "1, 2"), (r"\boxed{\text{(B)}}", "(B)"),
        (r"\fbox{$\frac{a}{\frac{b}{c}}$}", r"\frac{ac}{b}"),
    ],
    "expressions": [
        ("2π", r"2\pi"), ("2pi", r"2\pi"), ("sqrt(2)", r"\sqrt{2}"), ("6ab", "6ba"), (r"\infty",
        "∞"), ("x³", "x^3"),
        ("(x-1)(x+1)", "x^2-1"), ("The answer is 2x", "2x"), (r"-\infty", "-∞"), ("x ≤ 3", r"x \le 3"),
        ("2 + 3 = 5", "5"), (r"\sqrt{8} = 2\sqrt{2}", r"2\sqrt{2}"), ("5 = 2 + 3", "2+3"),
    ],
}
OTHER = {
    "units": [
        ("7 km", "7 cm"), ("7 hours", "7 minutes"), ("1 hour", "6 minutes"), ("18 eggs",
        "18 hens"), ("18 dozen", "18"),
        ("$5", "5 cents"), ("5 pounds", "£5"), ("5m", "5"), ("5x", "5"), ("5k", "5"), ("5k",
        "5000"), ("5 pm", "5 am"),
        ("5 pm", "5"), ("18 of hearts", "18 of spades"), (r"9\pi cm", r"9\pi m"), (r"\frac12 cm",
        r"\frac12 km"),
        (r"5^\circ C", r"5^\circ F"), ("18 or 19 eggs", "18"), ("about 18 eggs", "18"), ("18 less",
        "18"), ("5 feet 3 inches", "5"),
        ("5 million", "5"), ("18 eggs", "19"), ("-18 eggs", "18"), ("18 dollars loss", "18"),
    ],
    "percent": [
        ("75%", "0.75"), ("75%", "3/4"), ("75 percent", r"\frac{3}{4}"), (r"75 \%",
        r"\frac{\sqrt{9}}{4}"), ("75%", "7.5%"),
        ("5%", "5 percentage points"),
    ],
    "mixed numbers": [
        ("3 1/2", "3"), ("3 1/2", "1/2"), ("3 1/2", "31/2"), ("3 1/2", "3/2"), ("3 4/3", "13/3"),
        ("3 1", "31"), ("3-1/2", "7/2"),
    ],
    "small numbers": [
        ("2^{-70}", "2^{-80}"), (r"7\times 10^{-25}", "0"), (r"7\times 10^{-25}",
        r"8\times 10^{-25}"), ("2^{-100}", "0"),
        (r"\sqrt{2}\cdot 10^{-30}", "0"), (r"\pi\cdot 10^{-28}", r"\pi\cdot 10^{-29}"), (r"-\infty",
        r"\infty"),
    ],
    "scores": [
        ("3-1", "2-0"), ("7-9", "8-10"), ("3-1", "2"), ("3–1", "2"), ("3:1", "6:2"), ("3:1", "3"),
        ("3:1", "3-1"), ("21-19", "2"),
        ("1-2-3", "-4"), ("555-1234", "-679"), ("2:30", "2.5"),
        ("$5-10", "-5"), ("$5-$10", "-5"), ("5%-10%", "-5"), (r"\$5-\$10", "-5"), ("5-10 dollars", "-5"),
    ],
    "words": [
        ("IV", "VI"), ("XI", "IX"), ("LAMP", "PALM"), ("SAT", "TAS"), ("ab", "ba"), ("ab", "AB"),
        ("P", "p"), ("net", "ten"),
        ("yes", "no"), ("True", "False"), ("not even", "even"), ("Monday", "Tuesday"), ("IV", "4"),
        ("ace", "cea"),
    ],
    "names": [
        ("x=4, y=3", "x=3, y=4"), ("y = 5", "x = 5"), ("x=3, y=4", "(4, 3)"), ("a=3, b=4", "(3, 4)"),
        ("x=3", "x=3, y=4"),
        ("x=3, y=4", "7"),
        ("x = 3", "x = 3 or x = -3"), ("a=1, b=2", "c=1, d=2"), ("y = 2x", "y = 3x"),
        ("x=3, y=4, z=5", "x=3, y=5, z=4"),
        ("x_1=2, x_2=3", "x_1=3, x_2=2"),
    ],
    "lists": [
        ("(2,1)", "(1,2)"), ("(1,2)", "[1,2]"), ("(1,2)", r"\{1,2\}"), ("1, 2, 3", "1, 2"), ("1, 2",
        "3"), ("1 or 2", "1"),
        ("1 or 2", "1, 2"), ("3,5", "3.5"), ("3,5", "35"), ("1,234", "1.234"), ("(1,2),(3,4)",
        "(1,2),(4,3)"), ("[0,1)", "(0,1]"),
        ("1, 1, 2", "1, 2, 2"),
    ],
    "expressions": [
        ("0 / x = 1", "1"), ("2 + 3 = 6", "6"), ("x + y = 5", "5"), ("5% + x", "5"), ("5\n6", "5"),
        ("5:(6)", "5"),
        ("5%\n6", "5"), ("5 = x + 1", "5"), ("x^2 = 4",
        "4"), ("5 = 6", "5"),
    ],
    "dates": [
        ("2024-03-14", "2007"), ("03/04/2024", "04/03/2024"), ("03/04/2024", "March 4, 2024"),
        ("March 4", "March 4, 2024"),
        ("March 4, 2024", "March 5, 2024"), ("1/2/2024", "1/4048"), ("2024-13-01", "2024-01-13"),
        ("March 2024", "March 20"),
        ("Friday, March 14, 2024", "March 14, 2024"),
    ],
}
# fmt: on


@pytest.mark.parametrize(
    ("answer", "gold"), [pair for pairs in SAME.values() for pair in pairs], ids=lambda text: text
)
def test_one_answer_in_two_spellings(answer: str, gold: str) -> None:
    assert same_value(answer, gold) and same_value(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"), [pair for pairs in OTHER.values() for pair in pairs], ids=lambda text: text
)
def test_two_answers(answer: str, gold: str) -> None:
    assert not same_value(answer, gold) and not same_value(gold, answer)


ALL = [text for kinds in (SAME, OTHER) for pairs in kinds.values() for pair in pairs for text in pair]


@pytest.mark.parametrize("text", dict.fromkeys(ALL))
def test_an_answer_is_itself_in_any_markup_and_as_a_completion_ends(text: str) -> None:
    for form in ("{}", "**{}**", r"\boxed{{{}}}", '"{}"', "{}.", "Answer: {}"):
        assert same_value(form.format(text), text), form
    read = parse_format("line").read(f"So it is.\nAnswer: {text}")
    assert (read.error == "" and same_value(read.answer, text)) or " or " in text or "\n" in text


@settings(deadline=None)
@given(st.sampled_from(ALL), st.sampled_from(ALL))
def test_equality_has_no_order_and_takes_no_time(one: str, other: str) -> None:
    begun = time.process_time()
    assert same_value(one, other) == same_value(other, one)
    assert time.process_time() - begun < 1


PIECES = st.sampled_from(
    [*"0123456789xyABn \\,;=-/:.%$^(){}[]²½", r"\frac", r"\sqrt", r"\text{", r"\pi", " cm", " eggs",
    " or ",
     " and ", "x = ", "March ", "2024", " per "]
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(PIECES, max_size=16).map("".join), st.lists(PIECES, max_size=16).map("".join))
@example("x=1,y=2," * 14, "y=2,x=1," * 14)
@example(
    r"\{" + ",".join(f"\\sqrt{{{n}}}" for n in range(12)) + r"\}",
    ",".join("x" * n for n in range(1, 12)),
)
@example("(" * 60 + "1,2" + ")" * 60, "(1,2)")
@example("1 " * 200, "9" * 400)
def test_any_two_texts_are_compared_at_once(one: str, other: str) -> None:
    begun = time.process_time()
    assert same_value(one, other) in (True, False)
    assert time.process_time() - begun < 1


NUMBERS = st.integers(-99, 99) | st.decimals(-99, 99, places=2, allow_nan=False)
FORMS = (
    "{}",
    "**{}**",
    "{} eggs",
    "$ {}",
    "{}%",
    r"\boxed{{{}}}",
    "The answer is {}",
    "x = {}",
    "({})",
    "{} cm",
)
BETWEEN = (
    " or ",
    " and ",
    ", ",
    "; ",
    ". No, ",
    " | ",
    ". Wait, ",
    " (not ",
    " instead of ",
    " maybe ",
    "\n",
    "-",
    ":",
)


@settings(deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from(FORMS), st.sampled_from(FORMS), st.sampled_from(BETWEEN))
def test_no_text_with_two_different_answers_is_right(
    one: int | Decimal, other: int | Decimal, form: str, second: str, between: str
) -> None:
    text = form.format(one) + between + second.format(other)
    if one == other or (between == "-" and "({})" in (form, second)):  # 1-(0) is arithmetic
        return
    for gold in (str(one), str(other)):
        assert same_value(text, gold) is False or gold == text
        assert number().grade(text, gold) == 0 and choice().grade(text, gold) == 0
        read = parse_format("line").read(f"So it is.\nAnswer: {text}")
        assert read.error or not same_value(read.answer, gold)


@pytest.mark.parametrize("answer", ["75%", "75 percent", r"75\%", "75 pct", "75 per cent"])
def test_percent_is_one_unit_in_all_rewards(answer: str) -> None:
    for spec in ("number", "math", "ordinal(0, 100)", 'ordinal("0,100")'):
        reward = as_reward(spec)
        assert isinstance(reward, AnswerReward)
        assert reward.grade(answer, "75") == reward.grade(answer, "75%") == 1, spec
        assert "ordinal" in spec or reward.grade(answer, "0.75") == 0
