"""Worlds: synthetic tasks in plain English that know the truth, and the steps that lead to it.

    rubric    a judge's task: find out what a rater weighs        rubric.py
    sums      addition with a written scratchpad                  sums.py

Made offline from a seed, so nothing is downloaded. The seedling (seedling.py) is the small base
model that speaks both; it ships in `SEEDLING`.

    >>> train, test = make_splits(WORLDS["rubric"], 400, 200, seed=0, noise=0.1)
    >>> print(train[1].prompt)
    Rate the response from 1 to 5, as Robin would.
    Question: Can you explain how stars shine?
    About the response:
    - It wastes no words.
    - It covers every part.
    - It gets a date wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from femtune.types import Problem
from femtune.worlds import rubric, sums

SEEDLING = Path(__file__).parent.parent / "assets" / "seedling"  # the base model's folder


class Make(Protocol):
    """Makes problems with different prompts; the same ones for the same arguments."""

    def __call__(
        self,
        num_problems: int,
        *,
        seed: int = 0,
        difficulty: tuple[int, int] = ...,  # least and largest; its unit is the world's
        noise: float = 0.0,  # probability that a label is wrong
    ) -> list[Problem]: ...


@dataclass(frozen=True)
class World:
    """A task whose truth is known. Each problem's column `truth` is its answer without noise."""

    name: str
    make: Make
    check: Callable[[Problem, str, str], list[bool]]  # (problem, rationale, answer) -> sound steps
    solve: Callable[[Problem], str]  # a completion that is right and sound throughout
    difficulty: tuple[int, int]  # the default


WORLDS: dict[str, World] = {
    "rubric": World("rubric", rubric.make, rubric.check, rubric.solve, difficulty=(1, 3)),
    "sums": World("sums", sums.make, sums.check, sums.solve, difficulty=(1, 4)),
}


def make_splits(
    world: World,
    num_train: int,
    num_test: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] | None = None,
    noise: float = 0.0,
) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and to test on, no prompt in both; only training labels have noise."""
    difficulty = difficulty or world.difficulty
    problems = world.make(num_train + num_test, seed=seed, difficulty=difficulty, noise=noise)
    test = [replace(p, answer=p.columns["truth"]) for p in problems[num_train:]]
    return problems[:num_train], test
