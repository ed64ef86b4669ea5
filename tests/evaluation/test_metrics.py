"""Measures counted by hand, against other people's code, and of whatever votes there may be."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from femtune.errors import ConfigError, DataError
from femtune.evaluation.bootstrap import Floats, bootstrap, correlations, mean, quadratic_kappa
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.metrics import (
    NEVER,
    Item,
    choice_metrics,
    confidence,
    count_votes,
    distributions,
    most_likely,
    pair_metrics,
    pass_at_k,
    rater_ceiling,
    rating_metrics,
    scale_values,
)

SCALE = ("1", "2", "3", "4", "5")
RATED = [  # most frequent: 4, 1, -, 5; expected value: 13/3, 5/3, -, 5
    Item("4", ("4", "5", "4")),
    Item("2", ("1", "3", "1")),
    Item("3", ("", "great", "")),
    Item("5", ("5", "", "5")),
]


def random_items(
    seed: int, size: int = 40, draws: int = 4, scale: tuple[str, ...] = SCALE
) -> list[Item]:
    """Truths at random, votes near them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(scale), size=size)
    votes = (truth[:, None] + rng.normal(0, 1.3, (size, draws))).round().astype(int)
    return [
        Item(scale[t], tuple(scale[v] for v in row))
        for t, row in zip(truth, votes.clip(0, len(scale) - 1), strict=True)
    ]


def assert_plain(result: dict[str, Any]) -> None:
    """As JSON, without NaN; each interval in order; a reason for what is undefined, and only for it."""
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    undefined = result.get("undefined", {})
    for name, value in result.items():
        if name == "undefined":
            assert value
        elif name.endswith("_ci"):
            assert value[0] <= value[1]
            assert result[name.removesuffix("_ci")] is not None
        else:
            assert (value is None) == (name in undefined)
            assert value is None or type(value) is float


def values_of(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if not name.endswith("_ci")}


# --- ratings


def test_ratings_by_hand() -> None:
    result = rating_metrics(RATED, SCALE)
    assert_plain(result)
    assert values_of(result) == {
        "accuracy": 2 / 4,
        "within_one": 3 / 4,
        # positions 3 0 4 and 3 1 4: observed 3 (0 + 1 + 0), expected 3 (25 + 26) - 2 * 7 * 8
        "kappa": pytest.approx(1 - 3 / 41),
        "mae": pytest.approx((1 / 3 + 1 / 3 + 0) / 3),
        "rmse": pytest.approx(math.sqrt((1 / 9 + 1 / 9 + 0) / 3)),
        "pearson": pytest.approx(stats.pearsonr([13 / 3, 5 / 3, 5], [4, 2, 5]).statistic),
        "spearman": 1.0,
        "kendall": 1.0,
        # confidence 2/3, one of two right; and 1, right
        "ece": pytest.approx(abs(2 * 2 / 3 - 1) / 3),
        # truth 4: (1/3)^2 twice; truth 2: (2/3)^2 + 1 + (1/3)^2; truth 5: 0
        "brier": pytest.approx((2 / 9 + 14 / 9 + 0) / 3),
    }
    assert {f"{name}_ci" for name in values_of(result)} <= set(result)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("scale", [SCALE, ("0", "0.5", "1", "1.5")])
def test_ratings_agree_with_scipy_and_sklearn(draws: int, scale: tuple[str, ...]) -> None:
    items = random_items(draws, draws=draws, scale=scale)
    expected = [np.mean([float(vote) for vote in item.votes]) for item in items]
    truth = [float(item.truth) for item in items]
    frequent = [max(item.votes, key=item.votes.count) for item in items]  # max takes the first
    result = rating_metrics(items, scale, resamples=100)
    assert result["pearson"] == pytest.approx(stats.pearsonr(expected, truth).statistic)
    assert result["spearman"] == pytest.approx(stats.spearmanr(expected, truth).statistic)
    assert result["kendall"] == pytest.approx(stats.kendalltau(expected, truth).statistic)
    kappa = cohen_kappa_score(
        frequent, [i.truth for i in items], labels=list(scale), weights="quadratic"
    )
    assert result["kappa"] == pytest.approx(kappa)
    assert result["mae"] == pytest.approx(np.abs(np.subtract(expected, truth)).mean())
    assert ("ece" in result, "brier" in result) == (draws > 1, draws > 1)


def test_weights_mean_that_an_item_is_there_so_many_times() -> None:
    """So resamples by weights are resamples: each row's measures are those of the repeated items."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 60))
    weights = rng.multinomial(60, [1 / 60] * 60, size=20).astype(float)
    rows = correlations(weights, x.astype(float), y.astype(float))
    kappas = quadratic_kappa(weights, x, y)
    for row, times in enumerate(weights.astype(int)):
        a, b = np.repeat(x, times), np.repeat(y, times)
        assert rows["pearson"][row] == pytest.approx(stats.pearsonr(a, b).statistic)
        assert rows["spearman"][row] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert rows["kendall"][row] == pytest.approx(stats.kendalltau(a, b).statistic)
        assert kappas[row] == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))


def test_kendall_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    items = random_items(0)
    whole = rating_metrics(items, SCALE, resamples=50)
    monkeypatch.setattr("femtune.evaluation.bootstrap.PAIRS_AT_ONCE", 3)
    assert rating_metrics(items, SCALE, resamples=50) == whole


def test_two_positions_away_is_not_within_one_nor_is_no_vote() -> None:
    items = [Item("5", ("3",)), Item("2", ("1",)), Item("1", ("",))]
    result = rating_metrics(items, SCALE)
    assert (result["accuracy"], result["within_one"]) == (0, pytest.approx(1 / 3))


def test_perfect_ratings_have_no_error_at_all() -> None:
    """Thirds of a range are no floats."""
    items = [Item(rating, (rating, rating)) for rating in "1234"]
    result = rating_metrics(items, "1234")
    assert (result["mae"], result["rmse"], result["kappa"], result["mae_ci"]) == (0, 0, 1, [0, 0])


def test_of_equally_frequent_votes_the_first_counts() -> None:
    assert rating_metrics([Item("5", ("5", "1"))], SCALE)["accuracy"] == 1
    assert rating_metrics([Item("5", ("", "1", "5"))], SCALE)["accuracy"] == 0


def test_equal_means_of_different_votes_are_ties() -> None:
    """The means of 0.1 0.3 and of 0.2 0.2 differ in floats: 0.2 and 0.19999999999999998."""
    scale = ("0.1", "0.2", "0.3", "0.7")
    votes = [("0.1", "0.3"), ("0.2", "0.2"), ("0.7", "0.7")]
    items = [Item(truth, vote) for truth, vote in zip(("0.1", "0.2", "0.7"), votes, strict=True)]
    # one of three pairs is tied in the predictions: 2 / sqrt(3 * 2)
    assert rating_metrics(items, scale)["kendall"] == pytest.approx(2 / math.sqrt(6))


def test_labels_are_worth_their_position() -> None:
    items = [Item("bad", ("ok",)), Item("good", ("good",)), Item("ok", ("good",))]
    result = rating_metrics(items, ("bad", "ok", "good"))
    assert (result["mae"], result["within_one"]) == (pytest.approx(2 / 3), 1)
    worth = rating_metrics(items, ("bad", "ok", "good"), values=(0, 10, 100))
    assert worth["mae"] == pytest.approx((10 + 0 + 90) / 3)
    assert worth["kappa"] == result["kappa"]  # of positions


@pytest.mark.parametrize(
    ("scale", "values", "worth"),
    [
        (("0", "0.5", "1"), None, [0, 0.5, 1]),
        (("1", "two"), None, [0, 1]),
        (("1", "inf"), None, [0, 1]),  # no number to count with
        (("a", "b"), (-1, 1), [-1, 1]),
    ],
)
def test_scale_values(
    scale: tuple[str, ...], values: tuple[float, ...] | None, worth: list[float]
) -> None:
    assert scale_values(scale, values).tolist() == worth


@pytest.mark.parametrize("values", [(1,), (1, 1), (1, math.nan), (1, math.inf), (-1.7e308, 1.7e308), ()])
def test_unusable_values_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="one finite number for each answer"):
        scale_values(("a", "b"), values)


@pytest.mark.parametrize("scale", [("1",), ("1", "1"), ()])
def test_an_impossible_scale_is_refused(scale: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="two answers or more, all different"):
        choice_metrics([Item("1", ("1",))], scale)


def test_a_truth_off_the_scale_is_refused() -> None:
    with pytest.raises(DataError, match=r"item 1: its truth '4\.0' is not on the scale"):
        rating_metrics([Item("4", ("4",)), Item("4.0", ("4",))], SCALE)


RANKED = {"kappa", "pearson", "spearman", "kendall"}


@pytest.mark.parametrize(
    ("answers", "reason", "undefined"),
    [
        ("1:1 1:2 1:3", "all ratings are the same", RANKED - {"kappa"}),
        ("1:2 2:2 3:2", "all predictions are the same", RANKED - {"kappa"}),
        ("1:1 1:1 1:1", "all ratings are the same", RANKED),
        ("1:1 2:2", "fewer than 3 items with a vote", RANKED),
        ("1:1 2:2 3:?", "fewer than 3 items with a vote", RANKED),
        ("1:?", "no vote on the scale", {*RANKED, "mae", "rmse"}),
        ("", "no vote on the scale", {*RANKED, "mae", "rmse", "accuracy", "within_one"}),
    ],
)
def test_what_is_undefined_is_none_with_a_reason(answers: str, reason: str, undefined: set[str]) -> None:
    items = [Item(pair[0], (pair[2],)) for pair in answers.split()]
    result = rating_metrics(items, SCALE)
    assert_plain(result)
    assert result["undefined"] == dict.fromkeys(undefined, reason)


def test_kappa_of_one_constant_rater_is_zero_as_in_sklearn() -> None:
    assert rating_metrics([Item(t, ("2",)) for t in "123"], SCALE)["kappa"] == 0
    assert cohen_kappa_score(["1", "2", "3"], ["2", "2", "2"], weights="quadratic") == 0


def test_a_rare_correlation_has_no_interval() -> None:
    """Ratings 1 1 2, predictions 1 2 2: it takes the first and the last, 12 of 27 resamples."""
    items = [Item("1", ("1",)), Item("1", ("2",)), Item("2", ("2",))]
    result = rating_metrics(items, SCALE)
    assert result["spearman"] == pytest.approx(1 / 2)
    assert "spearman_ci" not in result
    assert "mae_ci" in result


def test_the_likeliest_may_be_without_a_vote_and_ties_go_to_the_first() -> None:
    """Probabilities that a calibration made: unvoted b is largest; b and c are, but for rounding."""
    weights = np.array([[0.3, 0.4, 0.3], [0.2, 0.4, 0.4 - 1e-16]])
    first = np.array([[0, NEVER, 1], [0, 2, 1]])
    assert most_likely(weights, first).tolist() == [1, 2]


# --- confidence


@pytest.mark.parametrize("rounding", [0, 2e-16, 1e-12])
def test_confidence_on_the_edge_of_a_bin_is_in_the_lower(rounding: float) -> None:
    """0.7 and 0.65 share the bin (0.6, 0.7], however the 0.7 was computed; one is right."""
    votes = count_votes([Item("a", ("a", "b")), Item("b", ("a", "b"))], "ab")
    probabilities = np.array([[0.7 + rounding, 0.3 - rounding], [0.65, 0.35]])
    ece = confidence(votes, probabilities)(np.ones((1, 2)))["ece"][0]
    assert ece == pytest.approx(abs(0.7 + 0.65 - 1) / 2)


def test_brier_is_from_0_to_2() -> None:
    assert choice_metrics([Item("a", ("a", "a"))] * 3, "abc")["brier"] == 0
    assert choice_metrics([Item("a", ("b", "b"))] * 3, "abc")["brier"] == 2


def test_ece_of_wrong_certainty_is_one() -> None:
    assert choice_metrics([Item("a", ("b", "b"))] * 3, "ab")["ece"] == 1


def test_confidence_needs_several_draws() -> None:
    assert choice_metrics([Item("a", ("b",))] * 3, "ab") == {}
    assert "ece" not in pair_metrics([Item("A", ("B",))] * 3, "AB", swapped=[False] * 3)


def test_distributions_are_shares_of_the_votes_on_the_scale() -> None:
    items = [Item("a", ("a", "b", "b", "x", "")), Item("a", ("x",)), Item("b", ())]
    assert distributions(items, "abc").round(9).tolist() == pytest.approx(
        np.round([[1 / 3, 2 / 3, 0], [1 / 3] * 3, [1 / 3] * 3], 9)
    )


def test_a_calibration_changes_confidence_and_means_but_not_the_vote() -> None:
    items = random_items(3)
    flat = Calibration("temperature", SCALE, temperature=20.0, smoothing=0.05)
    before, after = rating_metrics(items, SCALE), rating_metrics(items, SCALE, calibration=flat)
    for name in ("accuracy", "within_one", "kappa"):
        assert after[name] == before[name]
    for name in ("mae", "ece", "brier"):
        assert after[name] != before[name]
    with pytest.raises(ConfigError, match="fit it again"):
        rating_metrics(items, SCALE, calibration=Calibration("temperature", ("1", "2")))


# --- pairs


def pair(name: str, forward: str, backward: str) -> list[Item]:
    """A pair in both orders; the first response is the better one."""
    return [Item("A", (forward,), name), Item("B", (backward,), name)]


def test_pairs_by_hand() -> None:
    items = [
        *pair("p", "A", "B"),  # the same response, right twice
        *pair("q", "A", "A"),  # the first place, right once
        *pair("r", "tie", "tie"),  # consistent
        *pair("s", "A", "?"),  # not answered in both orders
        *pair("u", "B", "A"),  # consistent, wrong twice
        Item("B", ("B",), "t"),  # asked in one
    ]
    result = pair_metrics(items, ("A", "B", "tie"), swapped=[False, True] * 5 + [False])
    assert_plain(result)
    assert values_of(result) == {
        "agreement": pytest.approx((2 + 1 + 0 + 1 + 0 + 1) / 11),
        "position_consistency": pytest.approx(3 / 4),
        "first_share": pytest.approx(5 / 8),  # A A A A A, B B B
    }


def test_the_order_of_a_pairs_items_is_no_matter() -> None:
    items = pair("p", "A", "B") + pair("q", "A", "A")
    result = pair_metrics(items[::-1], "AB", swapped=[True, False] * 2)
    assert result["position_consistency"] == 1 / 2


def test_pairs_without_answers_say_so() -> None:
    result = pair_metrics(pair("p", "tie", ""), ("A", "B", "tie"), swapped=[False, True])
    assert_plain(result)
    assert result["undefined"] == {
        "position_consistency": "no pair was answered in both orders",
        "first_share": "no answer is A or B",
    }
    assert result["agreement"] == 0


def test_pairs_need_an_order_each_and_once() -> None:
    with pytest.raises(DataError, match="2 items, but 1 orders"):
        pair_metrics(pair("p", "A", "B"), "AB", swapped=[False])
    with pytest.raises(DataError, match="'p' is there twice in the same order"):
        pair_metrics(pair("p", "A", "B"), "AB", swapped=[True, True])


# --- raters


def test_the_ceiling_by_hand() -> None:
    ratings = {"a": ["1", "1", "2"], "b": ["5", "5"], "c": ["3", "5", "?"], "d": ["4"], "e": []}
    result = rater_ceiling(ratings, SCALE)
    assert_plain(result)
    given = [1, 1, 2, 5, 5, 3, 5]
    others = [1.5, 1.5, 1, 5, 5, 5, 3]
    assert values_of(result) == {
        "ceiling_accuracy": pytest.approx((1 / 2 + 1 / 2 + 0 + 1 + 1 + 0 + 0) / 7),
        "ceiling_mae": pytest.approx((0.5 + 0.5 + 1 + 0 + 0 + 2 + 2) / 7),
        "ceiling_spearman": pytest.approx(stats.spearmanr(given, others).statistic),
    }


def test_a_model_that_is_one_of_the_raters_reaches_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    quality = rng.normal(3, 1, 2000)
    raters = (
        (quality[:, None] + rng.normal(0, 0.7, (2000, 2))).round().clip(1, 5).astype(int).astype(str)
    )
    ceiling = rater_ceiling({str(n): row for n, row in enumerate(raters.tolist())}, SCALE, resamples=0)
    model = rating_metrics([Item(a, (b,)) for a, b in raters.tolist()], SCALE, resamples=0)
    assert model["accuracy"] == pytest.approx(ceiling["ceiling_accuracy"])
    assert model["mae"] == pytest.approx(ceiling["ceiling_mae"])
    assert model["spearman"] == pytest.approx(ceiling["ceiling_spearman"], abs=0.01)


def test_no_ceiling_of_single_ratings() -> None:
    assert rater_ceiling({"a": ["1"], "b": ["2", "?"]}, SCALE) == {}


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ({"a": ["1", "2"], "b": ["1", "2"]}, "fewer than 3 items with two ratings"),
        ({name: ["1", "1"] for name in "abc"}, "all ratings are the same"),
    ],
)
def test_a_ceiling_without_ranks_says_so(ratings: dict[str, list[str]], reason: str) -> None:
    result = rater_ceiling(ratings, SCALE)
    assert_plain(result)
    assert result["undefined"] == {"ceiling_spearman": reason}


# --- pass@k


@pytest.mark.parametrize(("num_draws", "num_right"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_draw(num_draws: int, num_right: int) -> None:
    draws = [True] * num_right + [False] * (num_draws - num_right)
    for k in range(1, num_draws + 1):
        hits = [any(subset) for subset in combinations(draws, k)]
        assert pass_at_k(num_draws, num_right, k) == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("counts", [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_are_no_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="k is from 1 to the number of draws"):
        pass_at_k(*counts)


# --- intervals


def share(values: npt.NDArray[Any]) -> Any:
    def statistic(weights: Floats) -> dict[str, Floats]:
        return {"share": mean(weights, values)}

    return statistic


def test_items_of_a_group_are_drawn_together() -> None:
    seen: list[Floats] = []

    def statistic(weights: Floats) -> dict[str, Floats]:
        seen.append(weights)
        return {}

    bootstrap(statistic, ["a", "b", "", "a", "", "b"], resamples=200)
    weights = np.concatenate(seen)
    assert (weights[:, 0] == weights[:, 3]).all()
    assert (weights[:, 1] == weights[:, 5]).all()
    assert (weights[:, 2] != weights[:, 4]).any()  # "" is a group of one
    draws = weights[:, [0, 1, 2, 4]].sum(axis=1)
    assert (draws == 4).all()  # as many groups as there are


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    """1,000 of p = 0.3: 1.96 sqrt(p (1 - p) / n) = 0.028 either way."""
    values = np.repeat([1.0, 0.0], [300, 700])
    ci = bootstrap(share(values), [""] * 1000, resamples=4000)["share"].ci
    assert ci == pytest.approx((0.3 - 0.0284, 0.3 + 0.0284), abs=0.003)


def test_copies_in_a_group_add_no_certainty() -> None:
    values = np.random.default_rng(0).integers(2, size=100)
    one = bootstrap(share(values), [""] * 100)["share"]
    four = bootstrap(share(np.repeat(values, 4)), np.repeat(np.arange(100).astype(str), 4).tolist())[
        "share"
    ]
    assert four.ci == one.ci  # the same seed draws the same groups


def test_the_seed_decides() -> None:
    items = random_items(0)
    assert rating_metrics(items, SCALE, seed=1) == rating_metrics(items, SCALE, seed=1)
    assert (
        rating_metrics(items, SCALE, seed=1)["mae_ci"] != rating_metrics(items, SCALE, seed=2)["mae_ci"]
    )


def test_no_interval_of_one_group_or_no_resamples() -> None:
    assert bootstrap(share(np.array([1.0, 0.0])), ["a", "a"])["share"].ci is None
    assert bootstrap(share(np.array([1.0, 0.0])), ["", ""], resamples=0)["share"].ci is None


def test_intervals_cover_what_they_should() -> None:
    """Of 200 worlds of 80 items about 190 intervals hold the truth; 4 sigma of a binomial are 12.

    The percentile bootstrap is known to fall a little short in samples of this size.
    """
    covered = {"mae": 0, "spearman": 0}
    truth = rating_metrics(random_items(10_000, size=20_000), SCALE, resamples=0)
    for seed in range(200):
        result = rating_metrics(random_items(seed, size=80), SCALE, resamples=300)
        for name in covered:
            low, high = result[f"{name}_ci"]
            covered[name] += low <= truth[name] <= high
    assert all(174 <= count <= 200 for count in covered.values()), covered


# --- whatever votes there may be

garbage = st.sampled_from([*SCALE, "", "6", "4.0", "nan", "good", "-1"])
items_of = st.lists(
    st.builds(
        Item,
        st.sampled_from(SCALE),
        st.lists(garbage, max_size=4).map(tuple),
        st.sampled_from(["", "", "a", "b"]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    items_of,
    st.one_of(
        st.none(),
        st.lists(st.floats(-1e300, 1e300), min_size=5, max_size=5).filter(lambda v: max(v) > min(v)),
    ),
)
def test_ratings_of_any_votes_are_numbers(items: list[Item], values: list[float] | None) -> None:
    result = rating_metrics(items, SCALE, values=values, resamples=20)
    assert_plain(result)
    for name in {"accuracy", "within_one", "ece", *RANKED} & set(result):
        assert result[name] is None or abs(result[name]) <= 1 + 1e-9


@settings(max_examples=80, deadline=None)
@given(items_of)
def test_choices_pairs_and_raters_of_any_votes_are_numbers(items: list[Item]) -> None:
    assert_plain(choice_metrics(items, SCALE, resamples=20))
    alone = [Item(item.truth, item.votes, str(n // 2)) for n, item in enumerate(items)]
    assert_plain(
        pair_metrics(alone, SCALE, swapped=[n % 2 == 1 for n in range(len(items))], resamples=20)
    )
    assert_plain(
        rater_ceiling({str(n): item.votes for n, item in enumerate(items)}, SCALE, resamples=20)
    )


@given(items_of)
def test_distributions_sum_to_one(items: list[Item]) -> None:
    shares = distributions(items, SCALE)
    assert shares.shape == (len(items), 5)
    assert np.allclose(shares.sum(axis=1), 1)


def test_confidence_is_a_statistic_of_weights() -> None:
    """A weight of 0 leaves an item out."""
    votes = count_votes(RATED, SCALE)
    found = confidence(votes, votes.shares)(np.array([[1.0, 0.0, 0.0, 1.0]]))
    assert found["brier"][0] == pytest.approx((2 / 9 + 0) / 2)
    assert found["ece"][0] == pytest.approx((1 / 3 + 0) / 2)
