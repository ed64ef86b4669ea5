"""Calibrate a judge: a map of its distributions over answers, fitted on a validation split.

Votes of a fine-tuned judge tend to agree with each other more than with the truth: five of five draws
are right less than always. The probabilities that it gives answers may be as wrong. A calibration keeps
the ranking and changes the probabilities. Fit it on other items than those that the measures are taken
on: on its own items any map looks good.

    {"kind": "temperature", "of": "votes", "scale": ["1", "2"], "temperature": 1.9, "smoothing": 0.1,
     "knots": [], "draws": 16, "drawn_at": 1.0}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from femtune._util.atomic_files import write_json
from femtune._util.parsing import Unreadable, read_json
from femtune.errors import ConfigError, DataError
from femtune.evaluation.bootstrap import Floats, bootstrap, summary
from femtune.evaluation.calibration_map import Calibration, Knots, apply, log_probabilities
from femtune.evaluation.metrics import Item, calibration_errors, confidence, count_votes, distributions
from femtune.types import CalibrationKind, CalibrationOf

MIN_ITEMS = 20  # of fewer, a fit says more about the items than about the judge
FLOOR = 1e-6  # added to probabilities, so that none is 0: a log is taken of them
TEMPERATURES = (0.05, 20.0)  # within which one is sought: beyond, it is a one-hot or a uniform


def fit_calibration(
    items: Sequence[Item],
    scale: Sequence[str],
    kind: CalibrationKind,
    probabilities: Floats | None = None,
) -> Calibration:
    """Fit the map under which the truths of these items are likeliest.

    To the shares of their votes, without the items that have none; or to `probabilities` [items, scale].

    temperature     p of an answer is proportional to (share + a)^(1/T); T minimises the negative log
                    likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2, with log(share + a) for
                    the logits that votes lack). a = 1 / (draws x answers): one more vote, spread
                    evenly (Perks 1947); of probabilities, 1e-6. One number: fit for few items; the
                    ranking stays.
    isotonic        of each answer, the rising step function from its share to the share of items
                    where it is the truth, nearest in squares; then divided by the sum (Zadrozny &
                    Elkan 2002). Free of form: takes hundreds of items; may change the order of answers.

    Raises ConfigError for another kind or an impossible scale, DataError where there are fewer than
    20 items with a vote, one draw of each where votes are counted, or one class of truths.
    """
    votes = count_votes(items, scale)
    if kind not in get_args(CalibrationKind):
        raise ConfigError(f"calibration {kind!r}: choose one of {', '.join(get_args(CalibrationKind))}.")
    by_votes = probabilities is None
    used = votes.cast if by_votes else np.ones(len(items), bool)
    truth, counts = votes.truth[used], votes.counts[used]
    shares = votes.shares[used] if probabilities is None else probabilities
    if len(truth) < MIN_ITEMS:
        having = "items with a vote" if by_votes else "items with probabilities"
        raise DataError(f"{len(truth)} {having}: a calibration takes {MIN_ITEMS} or more.")
    if by_votes and counts.sum(axis=1).max() < 2:
        raise DataError("one draw of each item: a calibration takes several, there is no share of one.")
    if len(np.unique(truth)) < 2:
        raise DataError("labels of one class: nothing to calibrate against.")
    of: CalibrationOf = "votes" if by_votes else "probabilities"
    if kind == "isotonic":
        knots = tuple(_isotonic(shares[:, answer], truth == answer) for answer in range(len(scale)))
        return Calibration(kind, tuple(scale), knots=knots, of=of)
    smoothing = 1 / float(counts.sum(axis=1).mean() * len(scale)) if by_votes else FLOOR
    temperature = _best_temperature(shares, truth, smoothing)
    return Calibration(kind, tuple(scale), temperature=temperature, smoothing=smoothing, of=of)


def effect(
    items: Sequence[Item],
    scale: Sequence[str],
    calibration: Calibration,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a calibration on items that it was not fitted on.

    `ece_before`, `ece_after`, `brier_before`, `brier_after`, each with its interval, from the same
    resamples; {} of single draws. See metrics.confidence. Raises ConfigError where the calibration is
    of another scale.
    """
    return _effect(items, scale, distributions(items, scale, calibration), resamples, seed)


def cross_fitted_effect(
    items: Sequence[Item],
    scale: Sequence[str],
    kind: CalibrationKind,
    probabilities: Floats | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """`effect` of maps that are fitted on these items: to each fold the map of the others is applied.

    So the items that a map is stored from say honestly what such a map is worth. Items of a group are
    in one fold. Raises as `fit_calibration`, of what is left without a fold.
    """
    names = list(dict.fromkeys(item.resampled or f"\x00{place}" for place, item in enumerate(items)))
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of = {name: int(place) % folds for name, place in zip(names, shuffled, strict=True)}
    fold = [fold_of[item.resampled or f"\x00{place}"] for place, item in enumerate(items)]
    after = np.zeros((len(items), len(scale)))
    for left_out in {*fold}:
        rest = [place for place, own in enumerate(fold) if own != left_out]
        rows = [place for place, own in enumerate(fold) if own == left_out]
        if probabilities is None:
            fitted = fit_calibration([items[row] for row in rest], scale, kind)
            after[rows] = distributions([items[row] for row in rows], scale, fitted)
        else:
            fitted = fit_calibration([items[row] for row in rest], scale, kind, probabilities[rest])
            after[rows] = apply(fitted, probabilities[rows])
    return _effect(items, scale, after, 1000, seed, probabilities)


def _effect(
    items: Sequence[Item],
    scale: Sequence[str],
    mapped: Floats,
    resamples: int,
    seed: int,
    probabilities: Floats | None = None,
) -> dict[str, Any]:
    votes = count_votes(items, scale)
    if probabilities is None:
        before, after = confidence(votes, votes.shares), confidence(votes, mapped)
    else:
        before, after = (calibration_errors(p, votes.truth) for p in (probabilities, mapped))

    def statistic(weights: Floats) -> dict[str, Floats]:
        pair = {"before": before(weights), "after": after(weights)}
        return {f"{name}_{when}": pair[when][name] for name in pair["before"] for when in pair}

    return summary(bootstrap(statistic, [item.resampled for item in items], resamples, seed), {})


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it as JSON, whole or not at all. Raises RunError where it can't be written."""
    write_json(path, asdict(calibration))


def load_calibration(path: Path) -> Calibration:
    """Read what `save_calibration` wrote. Raises DataError with the file and what is wrong with it."""
    try:
        return _from_json(read_json(path))
    except Unreadable as error:
        raise DataError(f"{path} {error}. Fit it again.") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not a calibration: {error}. Fit it again.") from error


def _from_json(stored: Any) -> Calibration:
    """Raises ValueError or TypeError with what is wrong."""
    names = [field.name for field in fields(Calibration)]
    if isinstance(stored, dict):
        # files of earlier versions are all of votes, and do not say of which draws
        stored = {"of": "votes", "draws": 0, "drawn_at": 1.0, **stored}
    if not isinstance(stored, dict) or set(stored) != set(names):
        raise ValueError(f"it must have the fields {', '.join(names)}")
    kind, scale = stored["kind"], _tuple(stored["scale"], "scale", str)
    if kind not in get_args(CalibrationKind):
        raise ValueError(f"its kind is {kind!r}")
    if (of := stored["of"]) not in get_args(CalibrationOf):
        raise ValueError(f"it is of {of!r}, expected one of {', '.join(get_args(CalibrationOf))}")
    if len(scale) < 2 or len(set(scale)) != len(scale):
        raise ValueError("its scale must have two answers or more, all different")
    temperature, smoothing = _tuple([stored["temperature"], stored["smoothing"]], "temperature", float)
    [drawn_at] = _tuple([stored["drawn_at"]], "drawn_at", float)
    [draws] = _tuple([stored["draws"]], "draws", int)
    if draws < 0 or isinstance(draws, bool) or drawn_at < 0:
        raise ValueError("its draws and drawn_at must be at least 0")
    knots = tuple(_knots(pair) for pair in _tuple(stored["knots"], "knots", list))
    if kind == "temperature" and not (temperature > 0 and smoothing > 0):
        raise ValueError("its temperature and smoothing must be over 0")
    if len(knots) != (len(scale) if kind == "isotonic" else 0):
        raise ValueError(f"it has {len(knots)} lists of knots, for {len(scale)} answers")
    more = {"draws": draws, "drawn_at": drawn_at}
    return Calibration(kind, scale, temperature, smoothing, knots=knots, of=of, **more)


def _knots(pair: Sequence[Any]) -> Knots:
    given, wanted = (_tuple(numbers, "knots", float) for numbers in pair)
    if len(given) != len(wanted) or not given:
        raise ValueError("its knots must be two lists of one length")
    if any(a >= b for a, b in pairwise(given)):
        raise ValueError("the shares of its knots must rise")
    if not all(0 <= p <= 1 for p in wanted):
        raise ValueError("the probabilities of its knots must be from 0 to 1")
    return given, wanted


def _tuple(values: Any, name: str, kind: type) -> tuple[Any, ...]:
    """A list whose elements are all of a kind; floats are finite, and integers pass for them."""
    if kind is float and isinstance(values, list):
        values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"its {name} must be {kind.__name__}s, got {values!r:.60}")
    if kind is float and not all(map(math.isfinite, values)):
        raise ValueError(f"its {name} must be finite")
    return tuple(values)


def _best_temperature(shares: Floats, truth: npt.NDArray[np.int64], smoothing: float) -> float:
    from scipy.optimize import minimize_scalar  # slow to import

    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return -float(
            log_probabilities(shares, math.exp(log_temperature), smoothing)[rows, truth].mean()
        )

    bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def _isotonic(shares: Floats, right: npt.NDArray[np.bool_]) -> Knots:
    from sklearn.isotonic import IsotonicRegression  # slow to import

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(shares, right.astype(float))
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())
