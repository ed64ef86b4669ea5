"""The search for a good set of worked examples, with few answers of the model.

The problem: each set is an arm, a pull of it is the answer to one problem with these examples in the
prompt, and the best arm is wanted with a fixed number of pulls. Three steps:

race    Random sets start together. All answer the same few problems, the better half goes on to twice as
        many, until one is left: successive halving, Karnin, Koren & Somekh 2013, "Almost optimal
        exploration in multi-armed bandits"; Jamieson & Talwalkar 2016, arXiv 1502.07943. The problems of
        a round contain those of the last, so that no answer is asked again.
swaps   Neighbours of the winner, with one example exchanged, race against it, while the budget lasts.
guard   The winner replaces the current examples only if it is more right than they are on problems that
        chose nothing, by more than chance: see `step`.

Random sets of the model's own right answers, chosen by accuracy on held-in problems, are DSPy's
BootstrapFewShotWithRandomSearch (Khattab et al. 2023, arXiv 2310.03714), where each set answers all of
the problems. Departures: the race, the swaps, the guard, and that each answer has an example.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from femtune.data.demos import demos_digest
from femtune.data.prompts import prompt_text
from femtune.types import Demo, Demos

MOST_ARMS = 16  # sets in a race
NEIGHBOURS = 3  # of the winner, in a race with it
PATIENCE = 3  # rounds of swaps without a better set
TRIALS = 5  # candidates that are tried in a place where they may be too long


class Answers(Protocol):
    """The answers of the model with a set of examples in its prompt."""

    @property
    def num_problems(self) -> int:
        """Number of problems that sets are compared on."""
        ...

    @property
    def left(self) -> float:
        """Number of answers that the budget still pays for, for the search."""
        ...

    def right(self, sets: Sequence[Demos], num: int) -> list[int] | None:
        """Return how many of the first `num` problems each set has right; None: not affordable."""
        ...


@dataclass(frozen=True)
class Pool:
    """Candidates for examples: kept draws, and the current examples."""

    candidates: tuple[Demo, ...]
    fits: Callable[[Demos], bool] = lambda demos: True  # into the model's context, with any problem

    def some(self, num: int, rng: random.Random | None = None) -> Demos:
        """Return a set of at most `num` examples, at most one of a problem, answers in turn.

        So each answer has an example where there is a candidate and room. Random, or the shortest ones.
        """
        order = sorted(self.candidates, key=_length)
        if rng is not None:
            rng.shuffle(order)
        by_answer: dict[str, list[Demo]] = defaultdict(list)
        for demo in order:
            by_answer[demo.answer].append(demo)
        queues = [*by_answer.values()]
        if rng is not None:
            rng.shuffle(queues)  # which answers come first where there is no room for all
        chosen: dict[str, Demo] = {}
        for turn in range(max(map(len, queues), default=0)):
            for queue in queues:
                if turn < len(queue) and len(chosen) < num:
                    chosen.setdefault(prompt_text(queue[turn].prompt), queue[turn])
        found = [*chosen.values()]
        if rng is not None:
            rng.shuffle(found)
        while found and not self.fits(tuple(found)):
            found.remove(max(found, key=_length))
        return tuple(found)

    def neighbour(self, demos: Demos, rng: random.Random) -> Demos | None:
        """Return a set with one example exchanged, with as many answers; None if no other fits."""
        shown = {prompt_text(demo.prompt) for demo in demos}
        places = [*range(len(demos))]
        rng.shuffle(places)
        for place in places:
            left = {demo.answer for demo in (*demos[:place], *demos[place + 1 :])}
            is_last = demos[place].answer not in left
            others = [
                demo
                for demo in self.candidates
                if demo != demos[place]
                and (demo.answer not in left if is_last else True)
                and (prompt_text(demo.prompt) not in shown or demo.prompt == demos[place].prompt)
            ]
            rng.shuffle(others)
            for other in others[:TRIALS]:
                made = (*demos[:place], other, *demos[place + 1 :])
                if self.fits(made):
                    return made
        return None


@dataclass(frozen=True)
class Found:
    """The winner of a search, and what was compared."""

    demos: Demos
    num_right: int  # of all problems that sets are compared on
    num_sets: int  # that answered at least one problem
    num_swaps: int  # that were taken


def race_problems(num_arms: int, num_problems: int) -> list[int]:
    """Return how many problems the arms of each round answer: twice as many each round, all at last.

    >>> race_problems(8, 40)
    [10, 20, 40]
    """
    rounds = max(1, math.ceil(math.log2(num_arms)))
    return [math.ceil(num_problems / 2**left) for left in reversed(range(rounds))]


def race_cost(num_arms: int, num_problems: int) -> int:
    """Return how many answers a race asks for.

    >>> race_cost(8, 40)  # 8 arms 10, 4 arms 10 more, 2 arms 20 more
    160
    """
    cost, known, arms = 0, 0, num_arms
    for num in race_problems(num_arms, num_problems):
        cost += arms * (num - known)
        known, arms = num, -(-arms // 2)
    return cost


def swap_cost(num_problems: int) -> int:
    """Return how many answers a round of swaps asks for: the winner's are known."""
    return race_cost(NEIGHBOURS + 1, num_problems) - num_problems


def search(pool: Pool, current: Demos, num_examples: int, answers: Answers, seed: str) -> Found:
    """Return the best set that is found within the budget; it may be the current one.

    `seed` determines the random sets. The current set takes part in the race.
    """
    rng = random.Random(seed)
    size = answers.num_problems
    arms = _distinct([current, *_starts(pool, num_examples, _num_arms(answers.left, size), rng)])
    seen = set(map(demos_digest, arms))
    best, num_right = race(arms, answers)
    swaps = idle = 0
    while idle < PATIENCE and answers.left >= swap_cost(size):
        near = (pool.neighbour(best, rng) for _ in range(NEIGHBOURS))
        fresh = [each for each in _distinct([each for each in near if each]) if each != best]
        if not fresh:
            break
        seen |= set(map(demos_digest, fresh))
        better, num = race([best, *fresh], answers)
        idle = idle + 1 if better == best else 0
        swaps += better != best
        best, num_right = better, num
    return Found(best, num_right, len(seen), swaps)


def race(arms: Sequence[Demos], answers: Answers) -> tuple[Demos, int]:
    """Return the last set in a race, and how many problems it has right, as far as it was asked.

    At a tie the shorter set goes on. The race ends early where the budget does.
    """
    left, best = [*arms], (arms[0], 0)
    for num in race_problems(len(arms), answers.num_problems):
        counts = answers.right(left, num)
        if counts is None:
            break
        ranked = sorted(zip(counts, left, strict=True), key=lambda each: (-each[0], _size(each[1])))
        best = ranked[0][1], ranked[0][0]
        left = [demos for _, demos in ranked[: -(-len(left) // 2)]]
    return best


def _num_arms(left: float, num_problems: int) -> int:
    """Return the arms of the first race, for two thirds of the budget; for all if no swaps follow."""
    costs = {arms: race_cost(arms, num_problems) for arms in range(2, MOST_ARMS + 1)}
    arms = max((arms for arms, cost in costs.items() if cost <= 2 * left / 3), default=2)
    if left - costs[arms] >= swap_cost(num_problems):
        return arms
    return max((arms for arms, cost in costs.items() if cost <= left), default=2)


def _starts(pool: Pool, num_examples: int, num_arms: int, rng: random.Random) -> list[Demos]:
    """Return the sets that start beside the current one: the shortest examples, and random ones."""
    if not pool.candidates:
        return []
    return [pool.some(num_examples), *(pool.some(num_examples, rng) for _ in range(num_arms - 2))]


def _distinct(sets: Sequence[Demos]) -> list[Demos]:
    return [*{demos_digest(demos): demos for demos in sets}.values()]


def _length(demo: Demo) -> tuple[int, str]:
    return len(prompt_text(demo.prompt)) + len(demo.completion), demo.completion


def _size(demos: Demos) -> tuple[int, str]:
    return sum(_length(demo)[0] for demo in demos), demos_digest(demos)
