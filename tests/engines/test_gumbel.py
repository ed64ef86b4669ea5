"""The noise is what it claims: the right law, its own for each draw, exact in the upper tail."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from femtune.engines.hf.gumbel import _mix, choose, choose_with_logprobs, gumbel
from femtune.types import Sampling

FALSE_ALARM = 1e-4  # the chance that a right sampler fails one of the tests below; seeds are fixed


def draws(logits: torch.Tensor, num: int, sampling: Sampling = Sampling()) -> torch.Tensor:  # noqa: B008  (frozen)
    """Tokens [num] of one row of logits under seeds 0, 1, ..."""
    seeds = torch.arange(num)
    return choose(logits.expand(num, -1), seeds, torch.zeros_like(seeds), sampling)


def p_value(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """Of the chi-square test that tokens follow probs; rare tokens are taken together."""
    counts = tokens.bincount(minlength=len(probs)).double()
    expected = probs.double() * len(tokens)
    rare = expected < 5
    assert not counts[expected == 0].any()
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    meant = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if meant[-1] < 5:  # too few to count by themselves
        seen[-2] += seen[-1]
        meant[-2] += meant[-1]
        seen, meant = seen[:-1], meant[:-1]
    return float(stats.chisquare(seen.numpy(), meant.numpy() * float(seen.sum() / meant.sum())).pvalue)


@pytest.mark.parametrize("vocab", [3, 128, 129, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_follow_the_softmax(vocab: int, temperature: float) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    tokens = draws(logits, 20_000, Sampling(temperature=temperature))
    assert p_value(tokens, (logits / temperature).softmax(-1)) > FALSE_ALARM


def test_draws_at_successive_positions_follow_the_softmax_too() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(40_000)
    tokens = choose(logits.expand(40_000, -1), torch.full_like(positions, 5), positions, Sampling())
    assert p_value(tokens, logits.softmax(-1)) > FALSE_ALARM
    pairs = tokens[:-1] * 50 + tokens[1:]  # and neighbours are independent
    probs = logits.softmax(-1)
    assert p_value(pairs, torch.outer(probs, probs).flatten()) > FALSE_ALARM


def test_top_k_and_top_p_draw_from_what_they_leave() -> None:
    probs = torch.tensor([0.4, 0.1, 0.3, 0.2])
    two = torch.tensor([4 / 7, 0, 3 / 7, 0])
    assert p_value(draws(probs.log(), 10_000, Sampling(top_k=2)), two) > FALSE_ALARM
    # 0.4 + 0.3 < 0.75 <= 0.4 + 0.3 + 0.2
    three = torch.tensor([4 / 9, 0, 3 / 9, 2 / 9])
    assert p_value(draws(probs.log(), 10_000, Sampling(top_p=0.75)), three) > FALSE_ALARM
    assert set(draws(probs.log(), 1000, Sampling(top_p=1e-9)).tolist()) == {0}
    assert set(draws(probs.log(), 1000, Sampling(top_k=1)).tolist()) == {0}


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draws(torch.tensor([0.0, 3.0, 2.9]), 5, Sampling(temperature=0)).tolist() == [1] * 5


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel(torch.arange(1000), torch.arange(1000), torch.arange(1000)).flatten()
    bins = torch.linspace(-2, 9, 200)
    counts = torch.bincount(torch.bucketize(noise, bins), minlength=201).numpy()
    edges = [-math.inf, *bins.tolist(), math.inf]
    expected = [stats.gumbel_r.cdf(b) - stats.gumbel_r.cdf(a) for a, b in itertools.pairwise(edges)]
    scale = len(noise) / sum(expected)
    assert stats.chisquare(counts, [share * scale for share in expected]).pvalue > FALSE_ALARM


def test_upper_tail_is_exact_and_all_noise_finite() -> None:
    """The largest of n Gumbels, less log n, is Gumbel again: 1,000 maxima of 20,000 by KS test."""
    ids = torch.arange(20_000)
    seeds = torch.arange(1000)
    most = torch.cat([gumbel(s, s * 3, ids).amax(-1) for s in seeds.split(25)])
    maxima = most - math.log(20_000)
    assert stats.kstest(maxima.numpy(), "gumbel_r").pvalue > FALSE_ALARM
    assert torch.isfinite(most).all()


def test_smallest_and_largest_hash_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = torch.zeros(1, dtype=torch.long)
    for bits, value in ((0, math.log(2) * 54), (-1, -math.log(math.log(2) * 24))):
        monkeypatch.setattr("femtune.engines.hf.gumbel._mix", lambda x, bits=bits: x.fill_(bits))
        assert gumbel(zero, zero, zero).item() == pytest.approx(value, rel=1e-6)


def test_the_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 seeded with 1234567, known from its published test vectors."""
    step = 0x9E3779B97F4A7C15 - 2**64
    states = torch.tensor([1234567]) + torch.arange(1, 4) * step
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % 2**64 for value in _mix(states).tolist()] == known


def test_a_draw_is_the_same_in_any_batch_order_and_vocabulary_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 1000, generator=generator)
    seeds = torch.randint(2**63 - 1, (512,), generator=generator)
    positions = torch.randint(500, (512,), generator=generator)
    together = choose(logits, seeds, positions, Sampling())
    order = torch.randperm(512, generator=generator)
    assert torch.equal(
        choose(logits[order], seeds[order], positions[order], Sampling()), together[order]
    )
    alone = [choose(*(x[i : i + 1] for x in (logits, seeds, positions)), Sampling()) for i in range(512)]
    assert torch.equal(torch.cat(alone), together)
    padded = torch.nn.functional.pad(logits, (0, 300), value=-math.inf)
    assert torch.equal(choose(padded, seeds, positions, Sampling()), together)


def test_seed_and_position_both_change_the_draw() -> None:
    logits, zero = torch.zeros(1000, 500), torch.zeros(1000, dtype=torch.long)
    for seeds, positions in ((torch.arange(1000), zero), (zero, torch.arange(1000))):
        tokens = choose(logits, seeds, positions, Sampling())
        # 1,000 uniform draws of 500: 500 (1 - e^-2) = 432 distinct, deviation 8
        assert 385 < len(set(tokens.tolist())) < 480


@pytest.mark.parametrize("vocab", [5, 128, 1295])
def test_what_a_seed_means_never_changes(vocab: int) -> None:
    """The law of `choose` written out plainly: a block by its mass and noise, then a token in it."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(2000, vocab, generator=generator) * 3
    seeds = torch.randint(2**63 - 1, (2000,), generator=generator)
    positions = torch.randint(500, (2000,), generator=generator)
    blocks = logits.double().split(128, -1)
    mass = torch.stack([block.logsumexp(-1) for block in blocks], -1)
    block = (mass + gumbel(seeds, positions, -1 - torch.arange(len(blocks)))).argmax(-1)
    noisy = logits.double() + gumbel(seeds, positions, torch.arange(vocab))
    inside = torch.arange(vocab) // 128 == block[:, None]
    expected = noisy.masked_fill(~inside, -math.inf).argmax(-1)
    assert torch.equal(choose(logits, seeds, positions, Sampling()), expected)


def test_a_seed_of_an_earlier_release_means_the_same_noise() -> None:
    noise = gumbel(torch.tensor([7, 2**62 + 1]), torch.tensor([0, 300]), torch.tensor([-1, 0, 1294]))
    known = [
        [0.3879894018173218, 2.6877379417419434, 0.4384736716747284],
        [0.541036069393158, -0.4718893766403198, -0.6680706739425659],
    ]
    # not to the last bit, in which the logarithms of processors differ
    torch.testing.assert_close(noise, torch.tensor(known), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0), Sampling(temperature=0.7, top_k=5, top_p=0.9)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_the_softmax_at_temperature_one(
    sampling: Sampling, dtype: torch.dtype
) -> None:
    logits = (torch.randn(500, 300, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    seeds = torch.arange(500)
    tokens, logprobs, _ = choose_with_logprobs(logits, seeds, seeds, sampling)
    assert torch.equal(tokens, choose(logits, seeds, seeds, sampling))
    expected = logits.double().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    assert torch.allclose(logprobs.double(), expected, atol=1e-5, rtol=1e-6)
