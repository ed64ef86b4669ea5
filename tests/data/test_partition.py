"""How data are parted: sizes, what stays together, and that the parts stay the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Train
from femtune.data.partition import hold_out, num_dev, num_held_out, num_items, set_aside
from femtune.data.problems import asked_key
from femtune.errors import ConfigError, DataError
from femtune.resolve import held_out, read_inputs
from femtune.types import Problem


def problems(num: int, each: int = 1) -> list[Problem]:
    """So many items, each asked several times."""
    return [Problem(f"{i}-{j}", f"What is {i}?", str(i)) for i in range(num) for j in range(each)]


def ids(group: Sequence[Problem]) -> list[str]:
    return [problem.id for problem in group]


@given(st.integers(1, 20_000))
def test_sizes_are_those_that_are_stated(num: int) -> None:
    held = num_held_out(num)
    assert held >= min(200, round(0.3 * num)) and held >= round(0.1 * num)
    assert held <= max(round(0.3 * num), 1)
    dev = num_dev(num)
    assert dev == 0 if num < 200 else 40 <= dev <= 200
    assert dev <= 0.2 * num


@given(st.integers(2, 60), st.integers(1, 3), st.integers(0, 3), st.sampled_from([None, 0.0, 0.5]))
def test_every_problem_is_in_one_part_and_items_are_whole(
    num: int, each: int, seed: int, dev_share: float | None
) -> None:
    all_of_them = problems(num, each)
    rest, test = hold_out(all_of_them, None, seed)
    train, dev = set_aside(rest, dev_share if len(rest) > 2 * each else None, seed)
    assert sorted(ids([*train, *dev, *test])) == sorted(ids(all_of_them))
    assert num_items(test) == num_held_out(num)
    sides = [{asked_key(problem) for problem in part} for part in (train, dev, test)]
    assert sum(map(len, sides)) == len(set().union(*sides)) == num
    assert (train, dev) == set_aside(rest, dev_share if len(rest) > 2 * each else None, seed)


def test_the_seed_decides_and_more_data_move_little() -> None:
    few, many = problems(1000), problems(1010)
    dev = {seed: {*ids(set_aside(few, None, seed)[1])} for seed in (0, 1)}
    assert len(dev[0]) == 100 and len(dev[0] & dev[1]) < 30  # 10 expected
    assert len(dev[0] & {*ids(set_aside(many, None, 0)[1])}) >= 90


def test_the_development_part_is_not_the_next_of_the_held_out_ones() -> None:
    """Else it would be those that --eval-share takes next, and parts would depend on each other."""
    rest, _ = hold_out(problems(1000), None, 0)
    grown = {*ids(hold_out(problems(1000), 0.3, 0)[1])}
    dev = ids(set_aside(rest, None, 0)[1])
    assert len(dev) == 80 and len({*dev} & grown) < 30  # 80 / 8 = 10 expected


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(DataError, match="too few to hold some out"):
        hold_out(problems(1), None, 0)
    with pytest.raises(ConfigError, match="dev_share must be in"):
        set_aside(problems(9), 1.0, 0)
    with pytest.raises(DataError, match=r"dev_share 0\.01 of 9 training items is 0"):
        set_aside(problems(9), 0.01, 0)
    for settings, said in (
        (Train(patience=2), "patience 2 needs a development part"),
        (Train(patience=2, eval_every=0), "dev_share and patience need evaluations"),
        (Train(dev_share=0.2, eval_every=0), "dev_share and patience need evaluations"),
    ):
        with pytest.raises(ConfigError, match=said):
            held_out(read_inputs(problems(20), settings), problems(20))


def test_a_run_parts_its_data_and_small_data_stay_whole() -> None:
    sizes = {}
    for num in (100, 400):
        settings = Train(eval_share=0.25)
        parts = held_out(read_inputs(problems(num), settings), problems(num))
        sizes[num] = len(parts.dev)
        assert [len(group) > 0 for group in parts.groups] == [True] * len(parts.groups)
        assert len(parts.groups) == (3 if parts.dev else 2)
    assert sizes == {100: 0, 400: 40}
