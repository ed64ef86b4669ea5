"""Numbers, units and dates in answers: one reading, or none."""

from __future__ import annotations

import time
from datetime import date
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.grammar.dates import Date, is_date_like, read_date
from femtune.data.grammar.numbers import as_fraction, as_quantity
from femtune.data.grammar.units import Unit

# fmt: off
NUMBERS = {
    "18": ("18", "18.0", "+18", "(18)", "**18**", "18.", r"\boxed{18}", "$18$", "The answer is 18",
    "36/2"),
    "1234": ("1,234", "1,234.0", "1\u2009234", r"1{,}234", r"1,\!234", r"1\,234", "1.234e3"),
    "7/2": ("3 1/2", "3½", "3 ½", r"3\frac12", r"3\frac{1}{2}", r"3 \dfrac{1}{2}", "3.5", "7 / 2",
    r"\frac72"),
    "-7/2": ("-3 1/2", "−3½", r"-3\frac12", "-3.5", r"-\frac{7}{2}", r"\frac{-7}{2}"),
    "1/2": ("½", "0.5", ".5", "1/2", r"\tfrac12"),
    "7000": (r"7\times 10^{3}", "7×10³", "7 x 10^3", r"7 \cdot 10^3", "7e3", "7 thousand"),
    "1/1000": ("10^{-3}", "10⁻³", "1e-3", r"1 \times 10^{-3}"),
    "36": ("3 dozen", "36"),
    "5000000": ("5 million", "5,000,000"),
}
NO_NUMBERS = (
    "", ".", "e5", "1/0", "3 4/3", "3 1/0", "1,5", "12,34", "0,123", "1.234,5", "1.2.3", "1 000",
    "(1,234)",
    "(1, 2)", "3-1", "3:1", "2024-03-04", "1/2/2024", "1/2/3", "5k", "5K", "5M", "5B", "5x", "5m",
    "5 x", "2 pi",
    "4²", "5!", "5?", "~5", "about 5", "5 or 6", "5 and 6", "not 5", "5 pm", "500 BC", "5 less",
    "5 below zero",
    "5 minus 3", "5th", "five six", "5 and a half", "$5 to $6", "3 inches 5 feet", "9" * 5000, "1e9999",
    "nan", "inf",
)
SAME_UNITS = (
    ("cm", "centimeter", "centimeters", "centimetres"), ("km/h", "kph", "kilometers per hour",
    "km per hour"),
    ("mph", "miles per hour", "miles an hour", "mi/h"), ("sq ft", "square feet", "ft^2", "ft²",
    "feet squared"),
    ("cubic meters", "m³", "m^3"), ("hours", "hour", "hr", "hrs", "h"), ("people", "person", "persons"),
    ("boxes", "box"), ("cookies", "cookie"), ("cherries", "cherry"), ("buses", "bus"), ("classes",
    "class"),
    ("children", "child"), ("%", "percent", "per cent", "pct", r"\%"), ("°C", "degrees Celsius", "℃"),
    ("degrees", "°", r"^\circ", r"^{\circ}"), ("dollars", "USD", "dollar", "bucks"),
    ("slices of pizza",),
    (r"\text{ cm}", "cm", r"\mathrm{cm}"), ("dollars per day", "dollars a day", "dollars each day"),
    ("lbs", "pounds", "lb"), ("kWh", "kilowatt-hours"), ("MB", "megabytes"),
)
OTHER_UNITS = (
    ("cm", "km"), ("hours", "minutes"), ("dollars", "cents"), ("%", "percentage points"), ("feet",
    "square feet"),
    ("km", "km/h"), ("km/h", "m/s"), ("mg", "Mg"), ("eggs", "hens"), ("red apples", "green apples"),
    ("°C", "°F"),
    ("of hearts", "of spades"), ("slices of pizza", "slices of bread"), ("pounds", "£"), ("mb", "MB"),
    ("dollars per day", "dollars per hour"),
)
# fmt: on


@pytest.mark.parametrize(
    ("value", "text"), [(value, text) for value, texts in NUMBERS.items() for text in texts]
)
def test_a_number_in_all_its_spellings(value: str, text: str) -> None:
    found = as_quantity(text)
    assert found is not None and found.value == Fraction(value)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_text_with_another_reading_or_none_is_no_number(text: str) -> None:
    assert as_quantity(text) is None


@pytest.mark.parametrize("names", SAME_UNITS, ids=lambda names: names[0])
def test_names_of_one_unit(names: tuple[str, ...]) -> None:
    found = [as_quantity(f"18 {name}") for name in names]
    assert found[0] is not None and [*map(str, found)] == [str(found[0])] * len(names)
    bare = as_quantity("18")
    assert bare is not None and all(bare.same(one) and one.same(bare) for one in found if one)


@pytest.mark.parametrize(("one", "other"), OTHER_UNITS)
def test_different_units_are_not_the_same(one: str, other: str) -> None:
    first, second = as_quantity(f"18 {one}"), as_quantity(f"18 {other}")
    assert first is None or second is None or not (first.same(second) or second.same(first))


def test_currencies_stand_before_a_number_or_after_it() -> None:
    for text in ("$18", "$ 18", r"\$18", "US$18", "18 dollars", "USD 18", "$18 dollars", "18$"):
        found = as_quantity(text)
        assert found is not None and (found.value, found.unit) == (18, Unit("$")), text
    assert as_quantity("$18 euros") is None
    assert as_quantity("$18 per hour") == as_quantity("18 dollars an hour") != as_quantity("$18")
    assert as_fraction("-$5") == as_fraction("$-5") == -5


@given(st.fractions(max_denominator=99), st.sampled_from(["", " cm", " eggs", "%", " dollars per hour"]))
def test_any_fraction_is_read_with_any_unit(number: Fraction, unit: str) -> None:
    found = as_quantity(f"{number}{unit}")
    assert found is not None and found.value == number and bool(found.unit.name) == bool(unit)
    whole, part = divmod(abs(number), 1)
    if whole and part:
        sign = "-" if number < 0 else ""
        for mixed in (
            f"{sign}{whole} {part}",
            rf"{sign}{whole}\frac{{{part.numerator}}}{{{part.denominator}}}",
        ):
            assert as_fraction(mixed) == number


@given(st.text(max_size=60) | st.text("0123456789.,/-+^{}\\ %$ex×½²° kmft", max_size=30))
def test_any_text_is_read_at_once(text: str) -> None:
    begun = time.process_time()
    found = as_quantity(text)
    assert found is None or found.same(found)
    read_date(text)
    assert time.process_time() - begun < 1


# --- dates


@pytest.mark.parametrize(
    "text",
    [
        *("2024-03-14", "2024/03/14", "14/03/2024", "3/14/2024", "14.3.2024", "March 14, 2024"),
        *(
            "14 March 2024",
            "Mar. 14, 2024",
            "14th of March, 2024",
            "the 14th of March 2024",
            "2024 March 14",
        ),
        *(
            "Thursday, March 14, 2024",
            "**March 14 2024**.",
            "The answer is March 14, 2024",
            "MARCH 14 2024",
        ),
    ],
)
def test_spellings_of_a_date(text: str) -> None:
    assert read_date(text) == Date(2024, 3, 14)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "03/04/2024",
            "3/14/24",
            "13/13/2024",
            "30 February 2024",
            "February 29, 2023",
            "March 32",
            "March",
        ),
        *(
            "2024",
            "2024-13-01",
            "Friday, March 14, 2024",
            "March 14 or 15",
            "14",
            "",
            "March 14, 2024 BC",
        ),
        "2024-03/14",
    ],
)
def test_no_single_date(text: str) -> None:
    assert read_date(text) is None


@given(st.dates(date(1000, 1, 1)))
def test_a_date_is_itself_and_no_number(day: date) -> None:
    written = f"{day.day}/{day.month}/{day.year}"
    assert (
        read_date(day.isoformat()) == read_date(f"{day:%d %B} {day.year}") == Date(*day.timetuple()[:3])
    )
    assert is_date_like(written) and as_quantity(written) is None
    assert (read_date(written) is None) == (day.day <= 12 and day.day != day.month)


def test_parts_that_are_left_out_differ() -> None:
    assert len({read_date("March 2024"), read_date("March 14"), read_date("March 14, 2024"), None}) == 4
    assert read_date("3/3/2024") == read_date("March 3, 2024")  # both readings are one
