"""A calibration mends what votes are worth on items it has not seen, and is refused where it can't."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from femtune.errors import ConfigError, DataError
from femtune.evaluation.calibration import (
    cross_fitted_effect,
    effect,
    fit_calibration,
    load_calibration,
    save_calibration,
)
from femtune.evaluation.calibration_map import Calibration, apply, check_scale
from femtune.evaluation.metrics import Item, count_votes, distributions
from femtune.types import CalibrationKind

SCALE = ("a", "b", "c")
KINDS: tuple[CalibrationKind, ...] = get_args(CalibrationKind)


def judged(seed: int, size: int = 400, draws: int = 10, sharpness: float = 4.0) -> list[Item]:
    """Truths of a known distribution q each, and votes of q^sharpness: too sure where it is over 1."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet([1.0] * 3, size)
    p = q**sharpness / (q**sharpness).sum(axis=1, keepdims=True)
    return [
        Item(SCALE[rng.choice(3, p=a)], tuple(SCALE[v] for v in rng.choice(3, draws, p=b)))
        for a, b in zip(q, p, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_mends_overconfidence_on_unseen_items(kind: CalibrationKind) -> None:
    fitted = fit_calibration(judged(0), SCALE, kind)
    result = effect(judged(1), SCALE, fitted)
    assert result["ece_after"] < result["ece_before"] / 2
    assert result["ece_after_ci"][1] < result["ece_before_ci"][0]
    assert result["brier_after_ci"][1] < result["brier_before"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_overconfident_votes_have_a_temperature_over_one() -> None:
    assert fit_calibration(judged(0), SCALE, "temperature").temperature > 1.5
    # with many draws, votes of the truth's own distribution are right as they are
    honest = fit_calibration(judged(0, size=2000, draws=100, sharpness=1), SCALE, "temperature")
    assert honest.temperature == pytest.approx(1, abs=0.1)


def test_the_temperature_is_the_likeliest() -> None:
    items = judged(0)
    fitted = fit_calibration(items, SCALE, "temperature")
    votes = count_votes(items, SCALE)

    def loss(temperature: float) -> float:
        p = apply(replace(fitted, temperature=temperature), votes.shares)
        return -float(np.log(p[np.arange(len(p)), votes.truth]).mean())

    at_best = loss(fitted.temperature)
    assert all(at_best <= loss(t) + 1e-9 for t in np.geomspace(0.05, 20, 200))


def test_a_temperature_by_hand() -> None:
    """Shares 3/4 and 1/4, smoothed by 1/8: 7 to 3; at temperature 2 sqrt(7) to sqrt(3)."""
    sure = Calibration("temperature", ("a", "b"), temperature=2.0, smoothing=1 / 8)
    expected = 7**0.5 / (7**0.5 + 3**0.5)
    assert apply(sure, np.array([[0.75, 0.25]]))[0, 0] == pytest.approx(expected)


def test_a_low_temperature_does_not_overflow() -> None:
    cold = Calibration("temperature", ("a", "b"), temperature=0.001, smoothing=10.0)
    assert apply(cold, np.array([[1.0, 0.0], [0.5, 0.5]])).tolist() == [
        [pytest.approx(1), pytest.approx(0)],
        [0.5, 0.5],
    ]


def test_twenty_items_are_enough() -> None:
    assert fit_calibration(judged(0, size=20), SCALE, "temperature").temperature > 0


def test_the_smoothing_is_one_vote_spread_over_the_scale() -> None:
    assert fit_calibration(judged(0, draws=5), SCALE, "temperature").smoothing == pytest.approx(1 / 15)


def test_isotonic_is_sklearns_normalised() -> None:
    items = judged(0)
    votes = count_votes(items, SCALE)
    raw = np.stack(
        [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            .fit(votes.shares[:, answer], votes.truth == answer)
            .predict(votes.shares[:, answer])
            for answer in range(3)
        ],
        axis=1,
    )
    fitted = apply(fit_calibration(items, SCALE, "isotonic"), votes.shares)
    assert np.allclose(fitted, raw / raw.sum(axis=1, keepdims=True))


def test_where_no_answer_has_a_chance_all_have_the_same() -> None:
    never = Calibration("isotonic", ("a", "b"), knots=(((0.0, 1.0), (0.0, 0.0)),) * 2)
    assert apply(never, np.array([[0.9, 0.1]])).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_without_a_vote_stays_uniform(kind: CalibrationKind) -> None:
    fitted = fit_calibration(judged(0), SCALE, kind)
    found = distributions([Item("a", ("", "?")), Item("a", ())], SCALE, fitted)
    assert found.tolist() == [[pytest.approx(1 / 3)] * 3] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_never_is_the_truth_is_no_trouble(kind: CalibrationKind) -> None:
    items = [replace(item, truth="a" if item.truth == "c" else item.truth) for item in judged(0)]
    result = effect(items, SCALE, fit_calibration(items, SCALE, kind), resamples=20)
    assert json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("items", "message"),
    [
        (judged(0, size=19), "19 items with a vote: a calibration takes 20 or more"),
        ([Item("a", ("", "?"))] * 30, "0 items with a vote"),
        ([], "0 items with a vote"),
        (judged(0, draws=1), "one draw of each item"),
        ([Item("a", ("a", "b"))] * 30, "labels of one class: nothing to calibrate against"),
    ],
)
def test_what_can_not_be_fitted_is_refused(
    kind: CalibrationKind, items: list[Item], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_calibration(items, SCALE, kind)


def test_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'platt': choose one of temperature, isotonic"):
        fit_calibration(judged(0), SCALE, "platt")  # type: ignore[arg-type]  # what is refused


def test_another_scale_is_refused() -> None:
    fitted = Calibration("temperature", SCALE, smoothing=0.1)
    check_scale(fitted, ["a", "b", "c"])
    for scale in ("ab", "acb", "abcd"):
        with pytest.raises(ConfigError, match=r"of the scale \['a', 'b', 'c'\].*fit it again"):
            check_scale(fitted, scale)


def test_effect_of_single_draws_is_nothing() -> None:
    assert effect(judged(0, draws=1), SCALE, Calibration("temperature", SCALE, smoothing=0.1)) == {}


# --- stored


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_loaded_as_it_was_saved(kind: CalibrationKind, tmp_path: Path) -> None:
    fitted = fit_calibration(judged(0), SCALE, kind)
    save_calibration(fitted, tmp_path / "calibration.json")
    assert load_calibration(tmp_path / "calibration.json") == fitted


STEP = [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "platt"}, "its kind is 'platt'"),
        ({"kind": ["isotonic"]}, "its kind is"),
        ({"scale": "ab"}, "its scale must be strs"),
        ({"scale": [1, 2]}, "its scale must be strs"),
        ({"scale": ["a"]}, "two answers or more"),
        ({"scale": ["a", "a"]}, "all different"),
        ({"temperature": "hot"}, "must be floats"),
        ({"temperature": True}, "must be floats"),
        ({"temperature": float("nan")}, "must be finite"),
        ({"temperature": 10**400}, "too large"),
        ({"temperature": 0}, "must be over 0"),
        ({"smoothing": 0}, "must be over 0"),
        ({"knots": None}, "must be lists"),
        ({"knots": [STEP, STEP]}, "2 lists of knots"),
        ({"kind": "isotonic", "knots": [STEP]}, "1 lists of knots, for 2 answers"),
        ({"kind": "isotonic", "knots": [[[0.0]], STEP]}, "not enough values"),
        ({"kind": "isotonic", "knots": [[[0.0], []], STEP]}, "two lists of one length"),
        ({"kind": "isotonic", "knots": [[[], []], STEP]}, "two lists of one length"),
        ({"kind": "isotonic", "knots": [[[1.0, 0.0], [0.0, 1.0]], STEP]}, "must rise"),
        ({"kind": "isotonic", "knots": [[[0.0, 1.0], [0.0, 1.5]], STEP]}, "from 0 to 1"),
        ({"kind": "isotonic", "knots": [["x", "y"], STEP]}, "must be floats"),
        ({"extra": 1}, "it must have the fields kind, scale, temperature, smoothing, knots"),
    ],
)
def test_a_malformed_file_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    good = asdict(Calibration("temperature", ("a", "b"), smoothing=0.1))
    path.write_text(json.dumps(good))
    load_calibration(path)
    path.write_text(json.dumps(good | change))
    with pytest.raises(DataError, match=message) as error:
        load_calibration(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff\xfe"])
def test_what_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"calibration\.json is not (valid JSON|a calibration)"):
        load_calibration(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json can't be read: No such file"):
        load_calibration(tmp_path / "none.json")


# --- whatever votes there may be

shares_of = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)
positive = st.floats(1e-3, 1e3)
steps = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)


@given(
    st.lists(shares_of, max_size=5),
    positive,
    st.floats(1e-300, 10),
    st.lists(steps, min_size=3, max_size=3),
)
def test_probabilities_are_probabilities(
    counts: list[list[int]], temperature: float, smoothing: float, rises: list[list[float]]
) -> None:
    shares = np.array(counts, float).reshape(-1, 3)
    shares /= shares.sum(axis=1, keepdims=True)
    knots = tuple(((0.0, 1.0), (low, high)) for low, high in rises)
    for calibration in (
        Calibration("temperature", SCALE, temperature, smoothing),
        Calibration("isotonic", SCALE, knots=knots),
    ):
        p = apply(calibration, shares)
        assert p.shape == shares.shape
        assert (p >= 0).all()
        assert np.allclose(p.sum(axis=1), 1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SCALE), st.lists(st.sampled_from([*SCALE, ""]), max_size=4)),
        min_size=20,
        max_size=30,
    ),
    st.sampled_from(KINDS),
)
def test_any_votes_fit_or_are_refused(rows: list[tuple[str, list[str]]], kind: CalibrationKind) -> None:
    items = [Item(truth, tuple(votes)) for truth, votes in rows]
    try:
        fitted = fit_calibration(items, SCALE, kind)
    except DataError:
        return
    assert json.dumps(effect(items, SCALE, fitted, resamples=20), allow_nan=False)


# --- of probabilities


def test_a_map_of_probabilities_undoes_a_known_temperature() -> None:
    """Truths by p, probabilities given as p^3: the best map takes the cube root of them."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet((1, 1, 1), size=4000)
    truths = [SCALE[rng.choice(3, p=row)] for row in p]
    items = [Item(truth, ()) for truth in truths]
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    fitted = fit_calibration(items, SCALE, "temperature", sharp)
    # 4,000 items: the standard error of the temperature is about 0.1
    assert (fitted.of, fitted.temperature) == ("probabilities", pytest.approx(3, abs=0.4))
    found = cross_fitted_effect(items, SCALE, "temperature", sharp)
    assert found["brier_after"] < found["brier_before"]
    assert found["ece_after"] < 0.03 < found["ece_before"]


def test_a_file_of_an_earlier_version_is_of_votes(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    made = Calibration("temperature", SCALE, 2.0, 0.1, of="probabilities")
    save_calibration(made, path)
    assert load_calibration(path) == made
    stored = json.loads(path.read_text())
    del stored["of"]
    path.write_text(json.dumps(stored))
    assert load_calibration(path).of == "votes"
    path.write_text(json.dumps(stored | {"of": "guesses"}))
    with pytest.raises(DataError, match="it is of 'guesses'"):
        load_calibration(path)
