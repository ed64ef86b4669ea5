"""Soft labels: a score between two points of a scale counts as both, in proportion.

FEM accepts a draw whose answer is y*. With a soft label, y* is drawn again in each iteration: 3 in 80%
of them, 4 in 20%. The expected number of accepted draws is then that of weights .8 and .2 on the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from femtune.data.answers import Scale
from femtune.types import Problem

SOFT = "soft_answers"  # the column: {"3": 0.8, "4": 0.2}


def shares(value: Fraction, scale: Scale) -> dict[str, float]:
    """Return the points of a scale next to a value, and the share of each; {} outside the scale.

    >>> shares(Fraction("3.2"), Scale(("1", "2", "3", "4", "5")))
    {'3': 0.8, '4': 0.2}
    """
    points = sorted((Fraction(answer), answer) for answer in scale.answers)
    for (low, below), (high, above) in pairwise(points):
        if low <= value <= high:
            part = (value - low) / (high - low)
            both = {below: float(1 - part), above: float(part)}
            return {answer: share for answer, share in both.items() if share > 0}
    return {}


def label_of(problem: Problem, iteration: int, seed: int) -> Problem:
    """Return the problem with its label of an iteration; a soft label is drawn by a hash.

    A problem without soft labels is returned as it is.
    """
    soft = problem.columns.get(SOFT)
    if not isinstance(soft, Mapping) or not soft:
        return problem
    name = f"label\x00{seed}\x00{iteration}\x00{problem.id}".encode()
    place = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64
    drawn = ""
    for answer, share in soft.items():
        drawn = str(answer)
        place -= float(share)
        if place < 0:
            break
    return replace(problem, answer=drawn)
