"""The claims behind FEM, on a model whose posterior and likelihood are exact sums; see oracle.py.

Draws come from the real driver, prompts and grading. Seeds are fixed, so nothing here is flaky; where a
bound is statistical, the chance that another seed would have failed is said.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from femtune.schemes.filters import weigh
from femtune.schemes.named import pps, rejection, star
from femtune.types import Draw, Scheme

from ..oracle import HINTED, PLAIN, Tables, ask, drawn, problem, toy

SIGMAS = 4  # beyond 4 standard errors lies 1 value in 16,000
tables = st.integers(0, 2**32).map(Tables.random)


def kept(draws: list[Draw], scheme: Scheme) -> list[Draw]:
    """What the scheme trains on."""
    scoring: dict[str, list[Draw]] = {}
    for draw in draws:
        scoring.setdefault(draw.key.problem_id, []).append(draw)
    return [example.draw for each in scoring.values() for example in weigh(scheme.weigh, each)]


def posterior(joint: torch.Tensor, y: int) -> torch.Tensor:
    """p(z | x, y*) from p(z, y | x)."""
    return joint[:, y] / joint[:, y].sum()


# --- the draws


@pytest.mark.parametrize("budget", [1, 3, 20])
def test_accepted_rejection_draws_follow_the_posterior(budget: int) -> None:
    world, scheme = Tables.random(seed=1), rejection(budget)
    draws = kept(ask(world.write, [problem(f"{i}", 0, 1) for i in range(4000)], scheme), scheme)
    counts = Counter(z for z, _ in map(drawn, draws))
    expected = len(draws) * posterior(world.joint(0), 1)
    assert expected.min() > 5  # or chi-square would not hold
    # false alarms: 1 in 1,000
    assert chisquare([counts[z] for z in range(4)], expected).pvalue > 1e-3


@pytest.mark.parametrize("budget", [1, 2, 5, 20])
def test_rejection_keeps_and_costs_what_its_law_says(budget: int) -> None:
    world, scheme, num = Tables.random(seed=1), rejection(budget), 4000
    draws = ask(world.write, [problem(f"{i}", 2, 0) for i in range(num)], scheme)
    p = world.joint(2)[:, 0].sum().item()
    share = 1 - (1 - p) ** budget
    deviation = math.sqrt(share * (1 - share) / num)
    assert abs(len(kept(draws, scheme)) / num - share) < SIGMAS * deviation

    # P(n attempts) = (1-p)^(n-1) p for n < M, and all the rest at M
    chances = [(1 - p) ** n * p for n in range(budget - 1)]
    chances.append(1 - sum(chances))
    mean = sum(n * chance for n, chance in enumerate(chances, 1))
    variance = sum(n**2 * chance for n, chance in enumerate(chances, 1)) - mean**2
    assert mean == pytest.approx(share / p)
    # 1e-9: a budget of 1 has no variance, only rounding
    assert abs(len(draws) / num - share / p) <= SIGMAS * math.sqrt(max(0, variance) / num) + 1e-9


# --- the gradient


def gradient(value: torch.Tensor, world: Tables) -> torch.Tensor:
    """With respect to the plain tables, as one vector."""
    parts = torch.autograd.grad(value, (world.z, world.y), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def learner(world: Tables) -> Tables:
    world.z.requires_grad_()
    world.y.requires_grad_()
    return world


@given(tables, st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_the_m_step_gradient_on_posterior_draws_is_that_of_the_likelihood(
    world: Tables, x: int, y: int
) -> None:
    """Fisher's identity: E_posterior[grad log pi(z, y* | x)] = grad log p(y* | x) at theta_{k-1}."""
    joint = learner(world).joint(x)
    weights = posterior(joint, y).detach()
    m_step = sum(weights[z] * gradient(joint[z, y].log(), world) for z in range(len(weights)))
    torch.testing.assert_close(m_step, gradient(joint[:, y].sum().log(), world))


@given(tables, st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_the_filtered_gradient_is_that_of_the_chance_to_be_right(world: Tables, x: int, y: int) -> None:
    """E[r grad log pi(z, y | x)] = p(y* | x) grad log p(y* | x), over all (z, y), right or wrong."""
    joint = learner(world).joint(x)
    cells = [(z, a) for z in range(joint.shape[0]) for a in range(joint.shape[1])]
    filtered = sum(
        joint[cell].item() * (cell[1] == y) * gradient(joint[cell].log(), world) for cell in cells
    )
    p = joint[:, y].sum()
    torch.testing.assert_close(filtered, p.item() * gradient(p.log(), world))


@pytest.mark.parametrize("budget", [1, 4])
def test_the_gradient_of_the_drivers_draws_is_the_exact_one(budget: int) -> None:
    world, scheme, num = learner(Tables.random(seed=2)), rejection(budget), 4000
    joint = world.joint(1)
    p, law = joint[:, 2].sum(), posterior(joint, 2).detach()
    share = 1 - (1 - p.item()) ** budget
    exact = share * gradient(p.log(), world)  # p grad log p for a budget of 1

    steps = torch.stack([gradient(joint[z, 2].log(), world) for z in range(4)])  # [Z, parameters]
    draws = kept(ask(world.write, [problem(f"{i}", 1, 2) for i in range(num)], scheme), scheme)
    counts = Counter(drawn(draw) for draw in draws)
    found = sum(count * steps[z] for (z, _), count in counts.items()) / num

    deviation = ((share * (law @ steps**2) - exact**2).clamp(min=0) / num).sqrt()
    touched = deviation > 0
    assert touched.sum() == 4 + 4 * 3  # the logits of this x
    # false alarms: 16 of them, each 1 in 16,000
    assert ((found - exact).abs()[touched] < SIGMAS * deviation[touched]).all()
    assert (found[~touched] == 0).all()


# --- what EM and FEM climb: problems (x, y*) with all answers, each so many times


def expected_em(world: Tables, mass: torch.Tensor) -> Tables:
    """The M-step's exact argmax, where `mass` [X, Y] of each problem is kept, from the posterior."""
    joints = torch.stack([world.joint(x) for x in range(len(mass))])  # [X, Z, Y]
    weights = mass[:, None, :] * joints / joints.sum(1, keepdim=True)
    return Tables(weights.sum(2).log(), weights.log().clamp(min=-700), world.hinted_z, world.hinted_y)


def chances(world: Tables) -> torch.Tensor:
    """p(y | x): [X, Y]."""
    return torch.stack([world.joint(x).sum(0) for x in range(world.z.shape[0])])


numbers = st.lists(st.integers(1, 20), min_size=9, max_size=9)
counts = numbers.map(lambda values: torch.tensor(values, dtype=torch.float64).reshape(3, 3))


@given(tables, counts)
@settings(max_examples=50, deadline=None)
def test_exact_em_never_lowers_the_likelihood(world: Tables, num: torch.Tensor) -> None:
    loglik = [(num * chances(world).log()).sum().item()]
    for _ in range(5):
        world = expected_em(world, num)
        loglik.append((num * chances(world).log()).sum().item())
    assert all(after >= before - 1e-9 for before, after in pairwise(loglik))
    # its fixed point is the share of each answer: here the model can say anything
    torch.testing.assert_close(chances(world), num / num.sum(1, keepdim=True))


@given(tables, counts, st.sampled_from([1, 2, 4, 16]))
@settings(max_examples=50, deadline=None)
def test_rejection_climbs_the_first_terms_of_the_log_likelihood(
    world: Tables, num: torch.Tensor, budget: int
) -> None:
    """FEM with rejection(M) never lowers sum_i L_M(p_i), L_M(p) = -sum_{m<=M} (1-p)^m / m.

    L_M is the series of log p cut after M terms: accuracy (p - 1) for M = 1, EM's log p in the limit.
    Why: of problem i, 1 - (1 - p_i)^M = dL_M / d log p is kept, and L_M is convex in log p; so what
    EM gains in the sum weighted with the shares kept, L_M gains at least.
    """

    def objective(p: torch.Tensor) -> float:
        return -sum((num * (1 - p) ** m / m).sum().item() for m in range(1, budget + 1))

    before = chances(world)
    after = chances(expected_em(world, num * (1 - (1 - before) ** budget)))
    assert objective(after) >= objective(before) - 1e-9


def test_an_update_with_the_drivers_draws_raises_the_expected_likelihood() -> None:
    """One step along the M-step's gradient raises sum_i p_i: E[step] is its gradient."""
    world, scheme = learner(Tables.random(seed=3)), rejection(1)
    mass = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 2, 1]], dtype=torch.float64) / 9  # [X, Y]
    pairs = [(x, y) for x in range(3) for y in range(3) for _ in range(round(9000 * mass[x, y].item()))]
    problems = [problem(f"{i}", x, y) for i, (x, y) in enumerate(pairs)]
    draws = kept(ask(world.write, problems, scheme), scheme)

    joints = torch.stack([world.joint(x) for x in range(3)])  # [X, Z, Y]
    steps = {
        tuple(c): gradient(joints[tuple(c)].log(), world) for c in torch.ones(3, 4, 3).nonzero().tolist()
    }
    found = Counter((pairs[int(draw.key.problem_id)][0], *drawn(draw)) for draw in draws)
    update = sum(count * steps[cell] for cell, count in found.items()) / len(problems)

    slope = gradient((mass * joints.sum(1)).sum(), world)
    square = sum(mass[x, y] * joints[x, z, y] * (slope @ g) ** 2 for (x, z, y), g in steps.items())
    assert slope @ slope > SIGMAS * (square / len(problems)).sqrt()  # false alarms: 1 in 32,000

    z, y = update.split([world.z.numel(), world.y.numel()])
    moved = Tables(
        world.z + z.view_as(world.z), world.y + y.view_as(world.y), world.hinted_z, world.hinted_y
    )
    assert (mass * chances(moved)).sum() > (mass * chances(world)).sum()


# --- the toy of the design: the law of each scheme

P, H, NUM = 0.2, 0.8, 8_000
POSTERIOR = PLAIN[:, 1] / P
BIASED = HINTED[:, 1] / H  # what hinted draws follow


def distance(law: torch.Tensor) -> float:
    """Total variation distance to the posterior."""
    return (law - POSTERIOR).abs().sum().item() / 2


def test_the_toy_is_the_one_of_the_design() -> None:
    torch.testing.assert_close(toy().joint(0), PLAIN)
    torch.testing.assert_close(toy().joint(0, told=1), HINTED)
    assert (PLAIN[:, 1].sum().item(), HINTED[:, 1].sum().item()) == pytest.approx((P, H))
    assert distance(BIASED) == pytest.approx(0.505)  # 0.524 / 0.8 - 0.03 / 0.2


@pytest.mark.parametrize(
    ("scheme", "coverage", "law"),
    [
        (rejection(1), P, POSTERIOR),
        (rejection(4), 1 - (1 - P) ** 4, POSTERIOR),
        (rejection(16), 1 - (1 - P) ** 16, POSTERIOR),
        (star(), P + (1 - P) * H, (P * POSTERIOR + (1 - P) * H * BIASED) / (P + (1 - P) * H)),
        (pps(), H, BIASED),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_scheme_follows_its_law(scheme: Scheme, coverage: float, law: torch.Tensor) -> None:
    draws = kept(ask(toy().write, [problem(f"{i}", 0, 1) for i in range(NUM)], scheme), scheme)
    assert abs(len(draws) / NUM - coverage) < SIGMAS * math.sqrt(coverage * (1 - coverage) / NUM)

    assert {y for _, y in map(drawn, draws)} == {1}
    counts = Counter(z for z, _ in map(drawn, draws))
    shares = torch.tensor([counts[z] for z in range(3)]) / len(draws)
    deviations = (law * (1 - law) / len(draws)).sqrt()
    # false alarms: three shares and one coverage, each 1 in 16,000
    assert ((shares - law).abs() < SIGMAS * deviations).all()
    # the distance moves by at most half of what the shares move
    assert abs(distance(shares) - distance(law)) < SIGMAS * deviations.sum().item() / 2
