"""Worlds: synthetic tasks in plain English whose true answers and correct reasoning steps are known.

rubric      a judge's task: learn how a rater weighs points   rubric.py
    raters      the same, with three raters for each response
    tldr        which of two summaries a human prefers            tldr.py
    tldr-axis   the same human's ratings of single summaries
    sums        addition with a written scratchpad                sums.py
    quiz        multiple choice                                   quiz.py

They are generated offline from a seed; nothing is downloaded. A world makes rows in the published
schema of its task's data sets, and the task's own code turns them into problems. The seedling, the
small demo model that was trained on all of them, ships in `SEEDLING`: scripts/train_demo_model.py.

>>> train, test = make_splits(WORLDS["rubric"], 400, 200, seed=0, noise=0.1)
>>> print(train[1].prompt)
Rate the response from 1 to 5, as Robin would.
<BLANKLINE>
Prompt:
Can you explain how stars shine?
<BLANKLINE>
Response:
- It wastes no words.
- It covers every part.
- It gets a date wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from femtune.data.prompts import Prompts
from femtune.data.tasks.load import Options, problems_of, trained_on
from femtune.data.worlds import quiz, rubric, sums, tldr
from femtune.types import Problem

SEEDLING = Path(__file__).parents[2] / "assets" / "seedling"  # the folder of the demo model


class Rows(Protocol):
    """A generator of distinct rows, equal for equal arguments; noise changes only labels."""

    def __call__(
        self,
        num_problems: int,
        *,
        seed: int = 0,
        difficulty: tuple[int, int] = ...,  # smallest and largest; the unit depends on the world
        noise: float = 0.0,  # probability that a label is wrong
    ) -> list[dict[str, Any]]: ...


_DEFAULT = Options()


@dataclass(frozen=True, kw_only=True)
class World:
    """A task whose true answers are known; each row's column `truth` is its label without noise."""

    name: str
    task: str  # the task whose data sets have rows like these
    rows: Rows
    check: Callable[[Problem, str, str], list[bool]]  # (problem, rationale, answer) -> valid steps
    solve: Callable[[Problem], str]  # a completion whose steps and answer are all correct
    difficulty: tuple[int, int]  # the default range
    options: Options = _DEFAULT  # how the task reads the rows
    per_item: int = 1  # consecutive rows of one item

    def make(
        self,
        num_problems: int,
        *,
        seed: int = 0,
        difficulty: tuple[int, int] | None = None,
        noise: float = 0.0,
    ) -> list[Problem]:
        """Return problems to train on, made by the task from this world's rows."""
        rows = self.rows(num_problems, seed=seed, difficulty=difficulty or self.difficulty, noise=noise)
        return trained_on(problems_of(rows, self.task, self.options, self.name).problems)

    def prompts(self) -> Prompts:
        """Return the plain and hinted prompts in the task's wording."""
        return problems_of(self.rows(1), self.task, self.options, self.name).prompts


_NAMED = Options(raters="named")

WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World(
            name="rubric",
            task="judge",
            rows=rubric.rows,
            check=rubric.check,
            solve=rubric.solve,
            difficulty=(1, 3),
            options=Options(raters="named", scale="1,5"),
        ),
        World(
            name="raters",
            task="judge",
            rows=partial(rubric.rows, raters=rubric.RATERS),
            check=rubric.check,
            solve=rubric.solve,
            difficulty=(1, 3),
            options=Options(raters="named", scale="1,5"),
            per_item=len(rubric.RATERS),
        ),
        World(
            name="tldr",
            task="summarize",
            rows=tldr.comparisons,
            check=tldr.check,
            solve=tldr.solve,
            difficulty=(1, 2),
            options=_NAMED,
        ),
        World(
            name="tldr-axis",
            task="summarize",
            rows=tldr.axis,
            check=tldr.check,
            solve=tldr.solve,
            difficulty=(1, 3),
            options=_NAMED,
        ),
        World(
            name="sums",
            task="math",
            rows=sums.rows,
            check=sums.check,
            solve=sums.solve,
            difficulty=(1, 4),
        ),
        World(
            name="quiz",
            task="choice",
            rows=quiz.rows,
            check=quiz.check,
            solve=quiz.solve,
            difficulty=(4, 4),
        ),
    )
}


def make_rows(
    world: World,
    num_train: int,
    num_test: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] | None = None,
    noise: float = 0.0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training and test rows without a shared item; only training labels have noise."""
    begin = -(-num_train // world.per_item) * world.per_item  # test rows start with a new item
    made = [
        world.rows(begin + num_test, seed=seed, difficulty=difficulty or world.difficulty, noise=each)
        for each in (noise, 0.0)
    ]
    return made[0][:num_train], made[1][begin:]


def make_splits(
    world: World,
    num_train: int,
    num_test: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] | None = None,
    noise: float = 0.0,
) -> tuple[list[Problem], list[Problem]]:
    """Return training and test problems; test pairs appear in both orders."""
    rows = make_rows(world, num_train, num_test, seed=seed, difficulty=difficulty, noise=noise)
    train, test = (problems_of(each, world.task, world.options, world.name).problems for each in rows)
    return trained_on(train), test
