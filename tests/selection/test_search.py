"""The search for worked examples, on models whose accuracy under every set is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.demos import demos_digest
from femtune.selection.search import Pool, race, race_cost, race_problems, search
from femtune.types import Demo, Demos


def demo(number: int, answer: str, length: int = 1) -> Demo:
    return Demo(f"question {number:02}", answer, f"{'so ' * length}\nAnswer: {answer}")


@dataclass
class Known:
    """A model that has the first n problems of each size right, as `accuracy` of the set says.

    Problem j of a random order is right if its rank is below accuracy * num_problems. So a better set is
    right wherever a worse one is, and all of them together tell sets apart that differ by 1 / num.
    """

    accuracy: Callable[[Demos], float]
    num_problems: int
    budget: float = float("inf")
    spent: int = 0
    asked: dict[str, int] = field(default_factory=dict)  # by digest: problems so far

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def right(self, sets: Sequence[Demos], num: int) -> list[int] | None:
        new = {demos_digest(each): max(0, num - self.asked.get(demos_digest(each), 0)) for each in sets}
        if sum(new.values()) > self.left:
            return None
        self.spent += sum(new.values())
        for digest, number in new.items():
            self.asked[digest] = self.asked.get(digest, 0) + number
        ranks = random.Random(3).sample(range(self.num_problems), self.num_problems)[:num]
        return [sum(rank < self.accuracy(each) * self.num_problems for rank in ranks) for each in sets]


WORTH = [0.02, 0.11, 0.23, 0.05, 0.31, 0.17, 0.08, 0.29, 0.13, 0.19]
CANDIDATES = tuple(demo(number, "AB"[number % 2]) for number in range(len(WORTH)))


def worth(demos: Demos) -> float:
    """Accuracy as a sum over examples: what each adds does not depend on the others."""
    return sum(WORTH[CANDIDATES.index(each)] for each in demos)


def test_the_best_set_is_found_where_the_budget_allows() -> None:
    answers = Known(worth, num_problems=100, budget=8000)
    found = search(Pool(CANDIDATES), (), 2, answers, "7")
    covering = [
        pair for pair in combinations(CANDIDATES, 2) if {each.answer for each in pair} == {*"AB"}
    ]
    assert worth(found.demos) == max(map(worth, covering)) == WORTH[4] + WORTH[7]
    assert found.num_right == 60  # 100 problems, accuracy 0.31 + 0.29
    assert answers.spent <= 8000 and found.num_sets == len(answers.asked)


def test_a_small_budget_finds_better_than_a_random_set_finds() -> None:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    seeds = [str(seed) for seed in range(20)]
    found = [search(Pool(CANDIDATES), (), 2, Known(worth, 50, 225), seed).demos for seed in seeds]
    drawn = [Pool(CANDIDATES).some(2, random.Random(seed)) for seed in seeds]
    # a pair of one A and one B is worth 0.316 on average, and the best of eleven 0.5
    assert mean([*map(worth, found)]) > 0.45 > 0.4 > mean([*map(worth, drawn)])


@given(st.integers(0, 2000), st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000), st.booleans())
def test_no_budget_is_exceeded(budget: int, size: int, num: int, seed: int, is_flat: bool) -> None:
    accuracy = (lambda demos: 0.5) if is_flat else (lambda demos: worth(demos) / 2)
    answers = Known(accuracy, size, budget)
    search(Pool(CANDIDATES), (), num, answers, str(seed))
    assert answers.spent <= budget


@given(st.integers(1, 40), st.integers(1, 200))
def test_a_race_asks_as_much_as_was_said_and_ends_with_all_problems(arms: int, size: int) -> None:
    sets = [(demo(number, "A"),) for number in range(arms)]
    answers = Known(lambda demos: int(demos[0].prompt[-2:]) / 100, size)
    best, num_right = race(sets, answers)
    assert answers.spent == race_cost(arms, size)
    assert race_problems(arms, size)[-1] == size == answers.asked[demos_digest(best)]
    assert num_right == Known(answers.accuracy, size).right([best], size)[0]  # type: ignore[index]  # no budget


def test_each_answer_is_asked_for_once() -> None:
    answers = Known(worth, 40)
    sets = [(each,) for each in CANDIDATES[:4]]
    race(sets, answers)
    spent = answers.spent
    race(sets, answers)
    assert answers.spent == spent == race_cost(4, 40)


def test_the_shorter_set_wins_a_tie() -> None:
    sets = [(demo(number, "A", length),) for number, length in enumerate((5, 2, 9, 3))]
    assert race(sets, Known(lambda demos: 0.5, 16))[0] == sets[1]


@given(
    st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 99)
)
def test_each_answer_has_an_example_where_there_is_room(answers: list[str], num: int, seed: int) -> None:
    pool = Pool(tuple(demo(number, answer) for number, answer in enumerate(answers)))
    for rng in (None, random.Random(seed)):
        chosen = pool.some(num, rng)
        assert len(chosen) == min(num, len(answers))
        assert len({each.answer for each in chosen}) == min(num, len({*answers}))
        assert len({each.prompt for each in chosen}) == len(chosen)


@given(st.lists(st.sampled_from("ABC"), min_size=2, max_size=9), st.integers(1, 6), st.integers(0, 99))
def test_a_neighbour_differs_in_one_place_and_covers_as_much(
    answers: list[str], num: int, seed: int
) -> None:
    pool = Pool(tuple(demo(number, answer) for number, answer in enumerate(answers)))
    rng = random.Random(seed)
    demos = pool.some(num, rng)
    near = pool.neighbour(demos, rng)
    if near is None:  # each other candidate would take an answer's only example away
        others = {*pool.candidates} - {*demos}
        assert all(each.answer in {other.answer for other in demos} for each in others)
        return
    assert sum(a != b for a, b in zip(demos, near, strict=True)) == 1
    assert len({each.answer for each in near}) >= len({each.answer for each in demos})
    assert len({each.prompt for each in near}) == len(near)


def test_a_problem_with_several_right_draws_is_one_example() -> None:
    draws = tuple(Demo("the same", "A", f"way {number}\nAnswer: A") for number in range(5))
    pool = Pool((*draws, demo(1, "A")))
    assert len(pool.some(4)) == 2
    near = pool.neighbour(pool.some(4), random.Random(0))
    assert near is not None and len({each.prompt for each in near}) == 2


def test_sets_that_do_not_fit_into_the_context_lose_their_longest_examples() -> None:
    pool = Pool(
        tuple(demo(number, "A", number + 1) for number in range(6)),
        fits=lambda demos: sum(len(each.completion) for each in demos) < 60,
    )
    for seed in range(20):
        chosen = pool.some(4, random.Random(seed))
        assert 0 < len(chosen) < 5 and pool.fits(chosen)
        near = pool.neighbour(chosen, random.Random(seed))
        assert near is None or pool.fits(near)


def test_without_candidates_the_current_set_stays() -> None:
    answers = Known(lambda demos: 0.5, 10)
    found = search(Pool(()), (), 3, answers, "0")
    assert (found.demos, found.num_right, found.num_swaps) == ((), 5, 0)


@pytest.mark.parametrize("num_arms", [1, 2, 3, 7, 16])
def test_a_race_ends_with_two_arms_on_all_problems(num_arms: int) -> None:
    sizes = race_problems(num_arms, 48)
    assert sizes == sorted(sizes) and sizes[-1] == 48
    assert -(-num_arms // 2 ** (len(sizes) - 1)) <= 2
