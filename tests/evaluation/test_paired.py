"""Paired comparison: rates of false alarm by simulation, small cases by hand, and its laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from femtune.errors import ConfigError, DataError
from femtune.evaluation.bootstrap import Floats
from femtune.evaluation.paired import _normal_of_t, _t_of_normal, holm, paired_difference

SPLITS = 1000
# 3 standard deviations above 5% of so many splits: 0.071
MOST_ALARMS = 0.05 + 3 * math.sqrt(0.05 * 0.95 / SPLITS)


def alarms(sizes: Sequence[int], *, told: bool) -> float:
    """Return how often two copies of one model differ at 5%, over splits of a pool of posts.

    Half of the pool's posts have items of these `sizes`. Items of a post are answered alike by a copy,
    more or less; `told`: the comparison knows the posts.
    """
    rng = np.random.default_rng(0)
    post = np.repeat(np.arange(2 * len(sizes)), [*sizes, *sizes])
    pool = rng.beta(0.3, 0.3, size=len(post))  # how likely each item is answered right
    num = 0
    for split in range(SPLITS):
        chosen = np.isin(post, rng.permutation(2 * len(sizes))[: len(sizes)])
        mood = rng.random((2, 2 * len(sizes)))[:, post]
        own = rng.random((2, len(post)))
        right = (np.where(rng.random((2, len(post))) < 0.7, mood, own) < pool)[:, chosen]
        groups = [f"post {p}" for p in post[chosen]] if told else None
        num += paired_difference(*right, groups, seed=split, resamples=400).p_value < 0.05
    return num / SPLITS


@pytest.mark.parametrize(
    "sizes",
    [[1] * 200, [1] * 60, [1] * 24, [10] * 12, [1, 2, 4, 8, 16, 32] * 2, [100] + [5] * 11],
    ids=["200", "60", "24", "posts of 10", "unequal", "one large"],
)
def test_copies_of_one_model_differ_in_at_most_5_of_100(sizes: list[int]) -> None:
    assert alarms(sizes, told=True) <= 0.05  # as docs/report.md says


def test_items_of_a_post_taken_for_independent_raise_the_false_alarms() -> None:
    assert alarms([20] * 12, told=False) > 2 * MOST_ALARMS  # so the test above can fail


@pytest.mark.parametrize("df", [1, 2, 3, 5, 10, 30])
def test_students_t_is_near_scipys_and_errs_to_the_large_side(df: int) -> None:
    for p in (0.2, 0.05, 0.01, 0.001):
        t = stats.t.isf(p / 2, df)
        found = _normal_of_t(t, df)
        assert found <= stats.norm.isf(p / 2) + 0.002
        assert df < 5 or found >= stats.norm.isf(p / 2) - 0.03
        assert _t_of_normal(found, df) == pytest.approx(t)


def test_models_that_differ_are_told_apart() -> None:
    """Of 200 items 30 are won and 10 lost: 0.1, whose error is sqrt(40 - 20^2/200) / 200 = 0.031."""
    a = [1] * 30 + [0] * 10 + [1] * 160
    b = [0] * 30 + [1] * 10 + [1] * 160
    found = paired_difference(a, b)
    assert found.difference == 0.1 and (found.num_items, found.num_groups) == (200, 200)
    assert found.low == pytest.approx(0.1 - 1.96 * 0.031, abs=0.01)
    assert found.high == pytest.approx(0.1 + 1.96 * 0.031, abs=0.01)
    assert found.p_value == pytest.approx(0.002, abs=0.002)  # McNemar's exact: 2 P(Bin(40, .5) <= 10)


def test_few_differing_items_tell_nothing() -> None:
    """All of five wins have probability 2/2^5 among copies, which is more than 5%."""
    found = paired_difference([1] * 5 + [0] * 95, [0] * 100)
    assert found.p_value >= 2 / 2**5 and found.low == 0.0
    assert paired_difference([1] * 9 + [0] * 91, [0] * 100).p_value < 0.05


def test_one_cluster_tells_nothing() -> None:
    found = paired_difference([1] * 50, [0] * 50, ["one rater"] * 50)
    assert (found.p_value, found.low, found.high, found.num_groups) == (1.0, 0.0, 1.0, 1)


def test_seeds_are_averaged_by_item_and_their_spread_stands_beside() -> None:
    a = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
    found = paired_difference(a, [0, 1, 0, 0])  # a base of one seed beside three
    assert found.difference == pytest.approx(0.25)  # means 0.5, 0.25, 0.75, less 0.25
    assert found.seed_spread == pytest.approx(0.25)
    assert found.num_items == 4
    assert paired_difference(a[0], [0, 1, 0, 0]).seed_spread is None


scores = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9)),
    min_size=1,
    max_size=40,
)


@given(scores, st.sampled_from([0.8, 0.95]))
def test_the_interval_leaves_out_0_exactly_where_p_is_small(
    items: list[tuple[float, float, int]], level: float
) -> None:
    a, b, posts = map(list, zip(*items, strict=True))
    groups = [str(post) for post in posts]
    found = paired_difference(a, b, groups, level=level, resamples=300)
    assert (found.low > 0 or found.high < 0) == (found.p_value < 1 - level)
    assert found.low <= found.difference <= found.high
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.num_groups == len({*posts})
    assert found == paired_difference(a, b, groups, level=level, resamples=300)
    back = paired_difference(b, a, groups, level=level, resamples=300)
    assert (back.difference, back.p_value) == (-found.difference, found.p_value)
    assert (back.low, back.high) == (-found.high, -found.low)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_step_down_of_its_definition(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for place, p in enumerate(p_values):
        steps = [(sum(other >= q for other in p_values) * q) for q in p_values if q <= p]
        assert adjusted[place] == pytest.approx(min(1.0, max(steps)))


def test_holm_bounds_the_false_alarms_among_ten() -> None:
    p_values: Floats = np.random.default_rng(0).random((SPLITS, 10))
    assert np.mean([min(holm([*row])) < 0.05 for row in p_values]) <= MOST_ALARMS
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.3  # 1 - 0.95^10 = 0.40 without it


@pytest.mark.parametrize(
    ("a", "b", "groups", "said"),
    [
        ([1, None], [1, 0], None, "1 of 2 scores of a are missing"),
        ([1, 0], [1, math.nan], None, "1 of 2 scores of b are missing"),
        ([1, 0], [1, 0, 0], None, "a has 2 items, b has 3"),
        ([1, 0], [1, 0], ["x"], "groups of 1"),
        ([], [], None, "a has shape"),
        ([[1, 0]] * 2, [[1, 0]] * 3, None, "a has 2 seeds and b has 3"),
    ],
    ids=["none", "nan", "items", "groups", "empty", "seeds"],
)
def test_scores_that_cannot_be_compared_are_refused(
    a: npt.ArrayLike, b: npt.ArrayLike, groups: list[str] | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        paired_difference(a, b, groups)


def test_impossible_levels_and_p_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="level"):
        paired_difference([1], [0], level=95)
    with pytest.raises(DataError, match="p-value"):
        holm([0.5, math.nan])
