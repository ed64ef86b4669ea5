"""Stochastic rounding to 16 bits: unbiased, reproducible, always one of two neighbors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from femtune.engines.hf.model import rounding_seed
from femtune.engines.rounding import round_in_place, rounded, rounded_state
from femtune.engines.vllm.setup import rounded_copy
from femtune.engines.weight_check import WeightCheck, write_check

BOTH = [torch.bfloat16, torch.float16]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def neighbors(value: float, dtype: torch.dtype) -> list[float]:
    """The largest number of `dtype` up to a value and the smallest from it on, both finite."""
    most = torch.finfo(dtype).max
    if abs(value) >= most:
        return [math.copysign(most, value)]
    near = torch.tensor(value, dtype=torch.float32).to(dtype)
    around = [near.view(torch.int16) + step for step in (-1, 0, 1)]
    found = {float(bits.view(dtype)) for bits in around} | {0.0}
    tiny = float(torch.tensor(1, dtype=torch.int16).view(dtype))
    found = {each for each in found | {tiny, -tiny} if math.isfinite(each)}
    return [max(x for x in found if x <= value), min(x for x in found if x >= value)]


@given(st.lists(FINITE, min_size=1, max_size=9), st.sampled_from(BOTH), st.integers(0, 99))
def test_each_value_becomes_one_of_its_two_neighbors(
    values: list[float], dtype: torch.dtype, seed: int
) -> None:
    made = rounded(torch.tensor(values, dtype=torch.float32), dtype, str(seed))
    for value, found in zip(values, made.double().tolist(), strict=True):
        assert found in neighbors(value, dtype), (value, found)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_the_mean_over_seeds_tends_to_the_value(dtype: torch.dtype) -> None:
    """Over 4,096 seeds the mean is within 5 deviations, of at most half a gap each, over 64."""
    torch.manual_seed(0)
    values = torch.cat([torch.randn(20), torch.randn(20) * 1e-3, torch.randn(20) * 3e-6])
    total = torch.zeros(60, dtype=torch.float64)
    for seed in range(4096):
        total += rounded(values, dtype, str(seed)).double()
    gaps = torch.tensor([b - a for a, b in (neighbors(v, dtype) for v in values.tolist())])
    assert ((total / 4096 - values.double()).abs() <= 5 * gaps / 2 / 64 + 1e-12).all()


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_seed_gives_the_same_numbers_and_another_seed_others(dtype: torch.dtype) -> None:
    values = torch.randn(3, 1000)
    one, again, other = (rounded(values, dtype, seed) for seed in ("1 a", "1 a", "2 a"))
    assert torch.equal(one, again) and one.shape == values.shape and one.dtype == dtype
    assert (one != other).float().mean() > 0.2


def test_the_bits_of_a_seed_are_those_of_every_version() -> None:
    """Exported weights are made again bit for bit, also years later."""
    made = rounded(torch.full((8,), 1 + 2.0**-8), torch.bfloat16, "seed")  # half a gap above 1
    assert [value > 1 for value in made.tolist()] == UP


UP = [True, True, False, True, False, False, True, False]


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_what_the_format_has_is_kept_and_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, math.inf, -math.inf]).repeat(50)
    made = rounded(exact, dtype, "x")
    assert torch.equal(made.float(), exact) and torch.equal(made.signbit(), exact.signbit())
    odd = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(odd.repeat(50), dtype, "x").isnan().all()
    largest = torch.finfo(torch.float32).max
    most = torch.finfo(dtype).max
    assert rounded(torch.tensor([largest, -largest]), dtype, "x").tolist() == [most, -most]


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        rounded(torch.ones(1), torch.float32, "x")


def test_many_values_are_rounded_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1001)
    whole = rounded(values, torch.bfloat16, "x")
    monkeypatch.setattr("femtune.engines.rounding._SLICE", 64)
    assert torch.equal(rounded(values, torch.bfloat16, "x"), whole)


def test_a_small_update_is_lost_by_rounding_to_nearest_and_kept_on_average() -> None:
    """Steps of an eighth of a gap: to nearest nothing moves; stochastically an eighth of the weights."""
    base = torch.full((100_000,), 1.0)
    learnt = base + 2.0**-10
    assert torch.equal(learnt.bfloat16().float(), base)
    moved = (rounded(learnt, torch.bfloat16, "x").float() - base).mean().item()
    assert moved == pytest.approx(2.0**-10, rel=0.03)


def test_tied_weights_stay_one_tensor_and_whole_numbers_as_they_are() -> None:
    weight = torch.randn(40)
    state = {"embed": weight, "head": weight, "count": torch.tensor([3])}
    made = rounded_state(state, torch.bfloat16, "x")
    assert made["embed"].data_ptr() == made["head"].data_ptr() and made["embed"].dtype == torch.bfloat16
    assert made["count"] is state["count"]


def test_in_place_gives_the_numbers_that_are_exported() -> None:
    layer = torch.nn.Linear(30, 20)
    exported = rounded_state(layer.state_dict(), torch.bfloat16, "3")
    round_in_place(layer, torch.bfloat16, "3")
    assert layer.weight.dtype == torch.float32
    for name, weight in layer.state_dict().items():
        assert torch.equal(weight, exported[name].float())


def test_trained_float32_weights_are_copied_rounded_for_vllm_and_others_read_in_place(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "w"
    weights.mkdir()
    state = {"a": torch.randn(1000)}
    save_file(state, weights / "model.safetensors")
    (weights / "config.json").write_text('{"dtype": "float32"}')
    assert rounded_copy(weights, "bfloat16", tmp_path / "1") == weights  # a base: no check
    write_check(weights, WeightCheck([[1]], [[2]], [-1.0], [-2.0]))
    assert rounded_copy(weights, "float32", tmp_path / "1") == weights
    copy = rounded_copy(weights, "bfloat16", tmp_path / "1")
    made = load_file(copy / "model.safetensors")["a"]
    seed = f"{rounding_seed(weights)} a"
    assert torch.equal(made, rounded(state["a"], torch.bfloat16, seed))
    assert {path.name for path in copy.iterdir()} == {path.name for path in weights.iterdir()}
