"""Text of numbers in cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from femtune._util.text import number_text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers().map(lambda n: n % 10**30))
def test_a_number_is_the_one_that_its_text_says(number: float) -> None:
    text = number_text(number)
    assert (float(text) if isinstance(number, float) else int(text)) == number
    assert not text.endswith(".0")
