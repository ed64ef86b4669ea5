"""How data are parted: sizes, what stays together, and that the parts stay the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Train
from femtune.data.partition import hold_out, num_dev, num_held_out, num_items, set_aside
from femtune.data.problems import GROUP, asked_key
from femtune.errors import ConfigError, DataError
from femtune.evaluation.evaluate import as_item, group_of
from femtune.resolve import Divided, held_out, read_inputs
from femtune.types import Problem
from femtune.workflows.train import _say_parts


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


@pytest.mark.parametrize(
    ("num", "said"),
    [
        (331, "192 problems to train on, 40 development, 99 held out."),
        (100, "70 training items are too few for a development part"),
    ],
)
def test_the_size_of_each_part_is_said(num: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "femtune")
    settings = Train()
    _say_parts(settings, held_out(read_inputs(problems(num), settings), problems(num)))
    assert said in caplog.text


# --- clusters that the user names


def rated(num_posts: int, each: int = 4) -> list[dict[str, object]]:
    """Rows of a judge: so many responses to each post, by raters who rate one response of every post."""
    return [
        {"prompt": f"Post {post}", "response": f"It is {post}-{n}.", "score": 1 + (post + n) % 5}
        | {"thread": post, "worker": f"w{n}"}
        for post in range(num_posts)
        for n in range(each)
    ]


def in_topics(num: int, num_topics: int) -> list[dict[str, object]]:
    return [{"prompt": f"What is {n}?", "answer": str(n), "topic": n % num_topics} for n in range(num)]


def test_a_development_part_of_whole_groups_leaves_training_its_data() -> None:
    """Of 200 items a topic, the part of 40 would be a whole topic: half of the data or all of it."""
    for num_topics in (2, 3):
        data = in_topics(200 * num_topics, num_topics)
        parts = held_out(read_inputs(data, Train(group="topic")), data)
        assert [len(part) for part in parts] == [200 * (num_topics - 1), 0, 200]
    with pytest.raises(DataError, match=r"dev_share 0\.9 takes all 400 training items"):
        held_out(read_inputs(data, Train(group="topic", dev_share=0.9)), data)
    with pytest.raises(DataError, match="200 problems of 1 different items or groups are too few"):
        held_out(read_inputs(in_topics(200, 1), Train(group="topic")), data)


@pytest.mark.parametrize("column", ["thread", "prompt"])
def test_a_group_is_in_one_part_and_resampled_as_one(column: str) -> None:
    settings = Train(task="judge", scale="1,5", group=column)
    parts = held_out(read_inputs(rated(100), settings), rated(100))
    groups = [{problem.columns[GROUP] for problem in part} for part in parts]
    assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups)) == 100
    assert [len(part) for part in parts] == [240, 40, 120]  # whole posts of 4, from 400 items
    assert {group_of(problem) for problem in parts.test} == groups[2]
    alone = held_out(read_inputs(rated(100), Train(task="judge", scale="1,5")), rated(100))
    assert len({group_of(problem) for problem in alone.test}) == 120  # items, without --group


def test_the_group_changes_neither_items_nor_pairs() -> None:
    with_group = read_inputs(rated(3), Train(task="judge", scale="1,5", group="worker")).problems
    without = read_inputs(rated(3), Train(task="judge", scale="1,5")).problems
    items = [[as_item(problem, ()).group for problem in each] for each in (with_group, without)]
    assert items[0] == items[1] and len({*items[0]}) == 12
    assert {as_item(problem, ()).resampled for problem in with_group} == {"w0", "w1", "w2", "w3"}


def test_a_group_that_items_cross_or_that_is_nowhere_is_refused() -> None:
    rows = [row | {"worker": name} for row in rated(2) for name in ("Ann", "Bo")]
    with pytest.raises(DataError, match="8 items are in several groups, such as Ann, Bo"):
        read_inputs(rows, Train(task="judge", scale="1,5", group="worker"))
    for data, settings in (
        (rated(2), Train(task="judge", group="shred")),
        (problems(3), Train(group="shred")),
    ):
        with pytest.raises(ConfigError, match="group 'shred' is no column of the data"):
            read_inputs(data, settings)


def test_items_to_predict_need_no_group_and_a_plain_table_has_them_too() -> None:
    rows = [{"prompt": f"What is {n}?", "answer": str(n), "topic": n // 2} for n in range(6)]
    found = read_inputs(rows, Train(group="topic")).problems
    assert [problem.columns[GROUP] for problem in found] == ["0", "0", "1", "1", "2", "2"]
    bare = [{"prompt": "What is 1?"}]
    assert GROUP not in read_inputs(bare, Train(group="topic"), answers=False).problems[0].columns


def test_groups_of_held_out_data_that_are_trained_on_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"prompt": f"What is {n}?", "answer": str(n), "topic": n // 2} for n in range(8)]
    settings = Train(group="topic", eval_data="held out")
    held_out(read_inputs(rows[:5], settings), Divided(rows[:5], rows[5:]))
    assert "1 of 2 groups of the held-out data are trained on too" in caplog.text  # 2 of 2 and 3
