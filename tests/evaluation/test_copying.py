"""Fragments are what a plain search over all runs of words finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from femtune.evaluation.copying import copied, fragments

words = st.lists(st.sampled_from("abc"), max_size=8)


@given(words, words)
def test_each_fragment_is_the_longest_run_from_there_that_stands_in_the_source(
    said: list[str], source: list[str]
) -> None:
    runs = {tuple(source[i:j]) for i in range(len(source)) for j in range(i + 1, len(source) + 1)}
    expected, at = [], 0
    while at < len(said):
        most = max(
            (n for n in range(1, len(said) - at + 1) if tuple(said[at : at + n]) in runs), default=0
        )
        expected += [most] if most else []
        at += max(most, 1)
    assert fragments(said, source) == expected


def test_coverage_and_density_follow_the_source_in_any_case_and_punctuation() -> None:
    prompt = "Rate it.\n- It SKIPS the last part.\n- It's kind."
    found = copied("it skips, the last part; and it's kind!", prompt)
    assert found == ((5 + 2) / 8, (5**2 + 2**2) / 8)
    assert copied("Nothing in common", prompt) == (0, 0)
    assert copied(prompt, prompt) == (1, 9)
    assert copied(" ... \n", prompt) is None
