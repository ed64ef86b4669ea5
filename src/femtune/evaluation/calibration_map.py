"""The map of a calibration: from shares of answers to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from femtune.errors import ConfigError
from femtune.evaluation.bootstrap import Floats
from femtune.types import CalibrationKind, CalibrationOf

Knots = tuple[tuple[float, ...], tuple[float, ...]]  # rising shares, and the probability at each


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map; `temperature` and `smoothing` are of one kind, `knots` of the other."""

    kind: CalibrationKind
    scale: tuple[str, ...]
    temperature: float = 1.0  # over 1: the votes are too sure
    smoothing: float = 0.0  # added to each share, so that an answer without a vote is not impossible
    _: KW_ONLY
    knots: tuple[Knots, ...] = ()  # one for each answer of the scale; straight lines between
    of: CalibrationOf = "votes"  # which distributions it was fitted to
    draws: int = 0  # of each item that it was fitted to; 0: not known
    drawn_at: float = 1.0  # their sampling temperature


def apply(calibration: Calibration, shares: Floats) -> Floats:
    """Calibrated probabilities of shares or probabilities, both [items, scale]; rows sum to 1.

    >>> sure = Calibration("temperature", ("1", "2"), temperature=2.0, smoothing=1e-9)
    >>> apply(sure, np.array([[0.9, 0.1]])).round(3).tolist()  # 3 to 1, as sqrt(9) to sqrt(1)
    [[0.75, 0.25]]

    Where the isotonic map gives no answer any chance, all get the same.
    """
    if calibration.kind == "temperature":
        return np.exp(log_probabilities(shares, calibration.temperature, calibration.smoothing))
    raw = np.zeros(shares.shape)
    for answer, (given, wanted) in enumerate(calibration.knots):
        raw[:, answer] = np.interp(shares[:, answer], given, wanted)
    raw[raw.sum(axis=1) == 0] = 1.0
    probabilities: Floats = raw / raw.sum(axis=1, keepdims=True)
    return probabilities


def check_scale(calibration: Calibration, scale: Sequence[str]) -> None:
    """Raises ConfigError where a calibration is of another scale than the one in use."""
    if tuple(scale) != calibration.scale:
        raise ConfigError(
            f"the calibration is of the scale {list(calibration.scale)}, "
            f"the answers are on {list(scale)}: fit it again, or set --calibration none."
        )


def log_probabilities(shares: Floats, temperature: float, smoothing: float) -> Floats:
    logits = np.log(shares + smoothing) / temperature
    logits -= logits.max(axis=1, keepdims=True)  # before exp, which would overflow
    log_probabilities: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probabilities
