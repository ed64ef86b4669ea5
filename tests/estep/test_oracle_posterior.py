"""The laws of rules that weigh by the posterior, on models of which all is known: see oracle.py.

What the rules themselves make of draws is summed over all draws there can be; what the loop's E-step
makes of them is held against those sums. Seeds are fixed; chances are those of another seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.schemes.filters import Accepted, Chain, weigh
from femtune.schemes.named import importance, parse_scheme, pps
from femtune.schemes.weights import Importance
from femtune.types import Completion, Draw, DrawKey, Problem, Score

from ..oracle import HINTED, PLAIN, PROMPTS, Tables, drawn, problem, table_steps, toy

SIGMAS = 4  # beyond 4 standard errors lies 1 value in 16,000
P, H = 0.2, 0.8  # of the toy: right, plain and hinted
POSTERIOR = PLAIN[:, 1] / P
BIASED = HINTED[:, 1] / H  # what hinted draws follow

worlds = st.integers(0, 2**32).map(Tables.random)
xs = ys = st.integers(0, 2)


def distance(law: torch.Tensor) -> float:
    """Total variation distance to the toy's posterior."""
    return (law - POSTERIOR).abs().sum().item() / 2


def draw(
    world: Tables,
    asked: Problem,
    z: int,
    y: int | None = None,
    *,
    prompt: str = "hinted",
    iteration: int = 1,
    index: int = 0,
) -> Draw:
    """A draw as it comes out of the loop's E-step, y being y* unless it is said, and scored."""
    text = f"z{z}\nAnswer: {asked.answer if y is None else f'y{y}'}"
    plain, hinted = (
        world.logprob(PROMPTS.render(name, asked)[0]["content"], text) for name in ("plain", "hinted")
    )
    right = text.endswith(asked.answer)
    score = Score(float(right), text[-2:], "" if right else "wrong", rationale=f"z{z}")
    key = DrawKey(iteration, asked.id, int(prompt == "hinted"), index)
    completion = Completion(tuple(text.encode()), text, "stop", plain if prompt == "plain" else hinted)
    scored = {"log_pi": plain, "log_q": hinted} if right else {}
    return Draw(key, prompt, 0, completion, score, **scored)


# --- hard


@given(worlds, xs, ys, st.sampled_from([1, 2, 5, 12]), st.sampled_from(["0.3", "0.7", "1", "2"]))
@settings(max_examples=30, deadline=None)
def test_attempts_to_a_power_climb_their_objective(
    world: Tables, x: int, y: int, budget: int, power: str
) -> None:
    """E[weight grad log pi(z, y* | x)] = grad -sum_{m<=M} m^(power-1) (1-p)^m, over all attempts."""
    scheme, asked = parse_scheme(f"rejection:{budget}+hard:{power}"), problem("0", x, y)
    z_logits, y_logits = (t.clone().requires_grad_() for t in (world.z, world.y))
    joint = replace(world, z=z_logits, y=y_logits).joint(x)
    p = joint[:, y].sum()

    expected = torch.zeros(())
    for attempts, z in product(range(1, budget + 1), range(joint.shape[0])):
        failed = [
            draw(world, asked, 0, (y + 1) % 3, prompt="plain", index=i) for i in range(attempts - 1)
        ]
        right = draw(world, asked, z, prompt="plain", index=attempts - 1)
        [example] = weigh(scheme.weigh, [*failed, right])
        assert example.draw == right
        chance = (1 - p) ** (attempts - 1) * joint[z, y]
        expected = expected + (chance * example.weight).detach() * joint[z, y].log()
    objective = -sum(m ** (float(power) - 1) * (1 - p) ** m for m in range(1, budget + 1))
    for found, exact in zip(
        torch.autograd.grad(expected, (z_logits, y_logits), retain_graph=True),
        torch.autograd.grad(objective, (z_logits, y_logits)),
        strict=True,
    ):
        torch.testing.assert_close(found, exact)


# --- importance


def importance_weight(world: Tables, asked: Problem, z: int) -> float:
    """w of a hinted draw: its share over that of a plain one, whose w is 1."""
    plain = draw(world, asked, 0, prompt="plain")
    a, b = weigh(Importance(), [plain, draw(world, asked, z)])
    return b.weight / a.weight


@given(worlds, xs, ys)
@settings(max_examples=25)
def test_importance_weights_are_unbiased_for_the_chance_of_the_answer(
    world: Tables, x: int, y: int
) -> None:
    """E_q[w 1(y = y*)] = p(y* | x), and E_q[w 1(z, y*)] = p(z, y* | x), summed over all draws."""
    asked, proposal = problem("p", x, y), world.joint(x, told=y)[:, y]
    parts = [proposal[z].item() * importance_weight(world, asked, z) for z in range(4)]
    assert parts == pytest.approx(world.joint(x)[:, y].tolist())
    assert sum(parts) == pytest.approx(world.joint(x)[:, y].sum().item())


def law_of_importance(num: int) -> torch.Tensor:
    """What is trained on, on average, of `num` hinted draws: over all counts of z0, z1, z2, wrong."""
    asked, world, law = problem("p", 0, 1), toy(), torch.zeros(3, dtype=torch.float64)
    rule = Chain(Accepted(), Importance())
    for counts in product(range(num + 1), repeat=3):
        wrong = num - sum(counts)
        if not 0 <= wrong < num:
            continue
        chance = math.factorial(num) * (1 - H) ** wrong / math.factorial(wrong)
        for count, share in zip(counts, HINTED[:, 1].tolist(), strict=True):
            chance *= share**count / math.factorial(count)
        zs = [z for z, count in enumerate(counts) for _ in range(count)]
        for example in weigh(rule, [draw(world, asked, z, index=i) for i, z in enumerate(zs)]):
            law[drawn(example.draw)[0]] += chance * example.weight
    return law / (1 - (1 - H) ** num)


@pytest.mark.parametrize(("num", "apart"), [(1, 0.505), (4, 0.226), (16, 0.063)])
def test_self_normalised_weights_tend_to_the_posterior(num: int, apart: float, tmp_path: Path) -> None:
    """Exact, and the driver's draws beside it: three shares, each a false alarm in 1 of 16,000."""
    law = law_of_importance(num)
    assert law.sum().item() == pytest.approx(1)
    assert distance(law) == pytest.approx(apart, abs=0.0005)

    problems = [problem(f"{i}", 0, 1) for i in range(600)]
    steps = table_steps(tmp_path, [toy()], problems, importance(pps(num)))
    metrics = steps.e_step(1)
    assert metrics["num_draws"] == num * len(problems)
    rows = steps.examples(1)
    shares = torch.zeros(len(problems), 3, dtype=torch.float64)
    for row in rows:
        shares[int(row["problem_id"]), int(row["completion"][0]["content"][1])] += row["weight"]
    kept = shares[shares.sum(1) > 0]
    assert len(kept) == metrics["num_kept"]
    torch.testing.assert_close(kept.sum(1), torch.ones(len(kept), dtype=torch.float64))
    assert ((kept.mean(0) - law).abs() < SIGMAS * kept.std(0) / math.sqrt(len(kept))).all()


def check_shares(rows: Sequence[dict[str, object]], law: torch.Tensor) -> None:
    zs = [int(row["completion"][0]["content"][1]) for row in rows]  # type: ignore[index]  # rows of a table
    shares = torch.bincount(torch.tensor(zs), minlength=3) / len(zs)
    assert ((shares - law).abs() < SIGMAS * (law * (1 - law) / len(zs)).sqrt()).all()


# --- chain


def test_a_chain_keeps_the_posterior_and_every_problem_that_was_ever_solved(tmp_path: Path) -> None:
    """After k iterations 1 - (1 - p)^k of the problems; each number a false alarm in 1 of 16,000."""
    scheme, num = parse_scheme("rejection:1+chain"), 600
    steps = table_steps(tmp_path, [toy()], [problem(f"{i}", 0, 1) for i in range(num)], scheme)
    for iteration in range(1, 7):
        steps.e_step(iteration)
        rows = steps.examples(iteration)
        assert len({row["problem_id"] for row in rows}) == len(rows)
        assert {row["weight"] for row in rows} == {1.0}
        kept = 1 - (1 - P) ** iteration
        assert abs(len(rows) / num - kept) <= SIGMAS * math.sqrt(kept * (1 - kept) / num)
        check_shares(rows, POSTERIOR)
