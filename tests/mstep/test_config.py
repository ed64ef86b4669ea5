"""Which examples go into which batch: every row once an epoch, within both limits, little padding."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.errors import ConfigError
from femtune.mstep.config import (
    Schedule,
    Training,
    context_length,
    halved_batches,
    make_batches,
    shared_batches,
)

LENGTHS = [random.Random(row).randint(5, 100) for row in range(700)]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("limits", [(8, 10**6), (32, 300), (1, 1)], ids=str)
def test_every_epoch_holds_each_row_once(epochs: int, limits: tuple[int, int]) -> None:
    """Limits of 300 and of 1 token a batch: a row longer than the limit is a batch by itself."""
    plan = make_batches(LENGTHS, _training(limits, num_train_epochs=epochs), seed=0)
    fed = [row for batch in plan for row in batch]
    for epoch in range(epochs):
        assert sorted(fed[epoch * 700 : (epoch + 1) * 700]) == list(range(700))


@pytest.mark.parametrize("limits", [(8, 10**6), (32, 300), (1, 10**6)], ids=str)
def test_no_batch_exceeds_its_limits(limits: tuple[int, int]) -> None:
    rows, tokens = limits
    plan = make_batches(LENGTHS, _training(limits), seed=0)
    assert max(map(len, plan)) <= rows
    assert max(len(batch) * max(LENGTHS[row] for row in batch) for batch in plan) <= tokens


def test_batches_are_full_where_no_limit_cuts_them() -> None:
    plan = make_batches([10] * 64, _training((8, 80)), seed=0)
    assert [len(batch) for batch in plan] == [8] * 8


@pytest.mark.parametrize(("epochs", "batches"), [(0.25, 5), (1.5, 30), (2.0, 40), (0.001, 1)])
def test_a_fraction_of_an_epoch_is_that_share_of_its_batches(epochs: float, batches: int) -> None:
    """160 equal rows in batches of 8 are 20 batches an epoch; there is always one."""
    plan = make_batches([10] * 160, _training((8, 10**6), num_train_epochs=epochs), seed=0)
    assert len(plan) == batches
    assert max(Counter(row for batch in plan for row in batch).values()) == math.ceil(epochs)


def test_length_groups_leave_less_than_a_tenth_to_padding() -> None:
    """At random, a batch of 16 lengths from 5 to 100 is padded to 95 of 100: nearly half is padding."""

    def padding(plan: list[list[int]]) -> float:
        padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in plan)
        return 1 - sum(LENGTHS) / padded

    unordered = [list(range(begin, min(700, begin + 16))) for begin in range(0, 700, 16)]
    assert padding(unordered) > 0.35
    assert padding(make_batches(LENGTHS, _training((16, 10**6)), seed=0)) < 0.1


def test_batches_come_in_no_order_of_length() -> None:
    """Else the last steps would all be of the longest rows: half of all neighbours ascend, not all."""
    plan = make_batches(LENGTHS, _training((8, 10**6)), seed=0)
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in plan]
    ascending = sum(a < b for a, b in pairwise(means)) / (len(means) - 1)
    assert 0.3 < ascending < 0.7  # 0.5 and 6 sigma: sqrt(88 / 12) / 87 = 0.031


def test_the_order_follows_from_seed_and_epoch() -> None:
    training = _training((8, 10**6), num_train_epochs=2)
    plan = make_batches(LENGTHS, training, seed=0)
    assert plan == make_batches(LENGTHS, training, seed=0)
    assert plan != make_batches(LENGTHS, training, seed=1)
    assert plan[:88] != plan[88:]  # ceil(700 / 8) batches an epoch


@pytest.mark.parametrize("times", [1, 2, 5])
def test_halving_leaves_every_optimizer_step_its_rows(times: int) -> None:
    """A step of 4 micro-batches is one of 8 that are half as large, and so on, down to one row each."""
    plan = make_batches(LENGTHS, _training((32, 300), num_train_epochs=2), seed=0)
    halved = list(plan)
    for _ in range(times):
        halved = halved_batches(halved)
    assert max(map(len, halved)) == -(-max(map(len, plan)) // 2**times)

    def steps(micro_batches: Sequence[Sequence[int]], size: int) -> list[list[int]]:
        parts = [micro_batches[at : at + size] for at in range(0, len(micro_batches), size)]
        return [[row for rows in part for row in rows] for part in parts]

    assert steps(halved, 4 * 2**times) == steps(plan, 4)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_fillers_even_out_a_plan_and_come_last(processes: int) -> None:
    plan = make_batches(LENGTHS, _training((8, 10**6)), seed=0)
    shared = shared_batches(plan, processes)
    assert len(shared) % processes == 0
    assert shared[: len(plan)] == plan
    assert len(shared) - len(plan) < processes
    assert not any(shared[len(plan) :])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("lora_r", 0),
        ("num_train_epochs", 0.0),
        ("num_train_epochs", math.nan),
        ("num_train_epochs", math.inf),
        ("num_train_epochs", 1e9),
        ("warmup_steps", math.inf),
        ("weight_decay", -0.1),
        ("max_grad_norm", math.nan),
        ("lora_dropout", math.inf),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
    ],
)
def test_an_impossible_setting_is_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        Training(**{setting: value})


@given(st.integers(1, 3000), st.integers(1, 4), st.integers(1, 3))
def test_small_sets_get_many_small_steps(examples: int, accumulation: int, processes: int) -> None:
    """At least 40 steps, each of at most an eighth of the examples, from 8 examples a device on."""
    training = Training(gradient_accumulation_steps=accumulation)
    made = training.schedule(examples, processes)
    a_step = made.batch_size * accumulation * processes
    assert 2 <= made.num_epochs <= 10 and 1 <= made.batch_size <= 32
    assert a_step <= max(examples / 8, accumulation * processes)
    steps = made.num_epochs * math.ceil(examples / a_step)
    assert steps >= 40 or made.num_epochs == 10
    if steps < 40:  # 10 passes do not give 40 steps
        assert examples < 4 * accumulation * processes
    plan = make_batches([10] * examples, training, 0, processes)
    assert max(map(len, plan)) <= made.batch_size
    assert len(plan) >= made.num_epochs * math.ceil(examples / made.batch_size)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch", "steps"),
    [(1, 10, 1, 10), (4, 10, 1, 40), (40, 4, 4, 40), (300, 2, 15, 40), (1000, 2, 32, 64)],
)
def test_steps_by_number_of_examples(examples: int, epochs: int, batch: int, steps: int) -> None:
    made = Training().schedule(examples)
    assert (made.num_epochs, made.batch_size, made.learning_rate) == (epochs, batch, 5e-5)
    assert len(make_batches([10] * examples, Training(), 0)) == steps


def test_what_is_set_is_taken_as_it_is() -> None:
    fixed = Training(num_train_epochs=0.5, per_device_train_batch_size=100, learning_rate=1e-3)
    for examples in (1, 40, 10_000):
        assert fixed.schedule(examples, 8) == Schedule(0.5, 100, 1e-3)


def test_a_restart_takes_longer_whether_epochs_are_set_or_not() -> None:
    assert Training(num_train_epochs=2).longer(2.5) == Training(num_train_epochs=5)
    assert Training().longer(3).schedule(40).num_epochs == 12
    assert Training().longer(3).longer(2).schedule(1000).num_epochs == 12


def test_the_learning_rate_defaults_to_the_method_s() -> None:
    assert (Training().rate, Training(use_peft=True).rate) == (5e-5, 2e-4)
    assert Training(use_peft=True, learning_rate=1e-3).rate == 1e-3


def test_the_context_is_what_the_config_says() -> None:
    assert context_length(SimpleNamespace(max_position_embeddings=4096)) == 4096
    assert context_length(SimpleNamespace(n_positions=1024)) == 1024
    assert context_length(SimpleNamespace()) == 2**31


def _training(limits: tuple[int, int], **settings: float) -> Training:
    rows, tokens = limits
    return Training(
        per_device_train_batch_size=rows,
        max_tokens_per_batch=tokens,
        **{"num_train_epochs": 1, **settings},
    )
