"""The laws of rules that weigh by the posterior, on models of which all is known: see oracle.py.

What the rules themselves make of draws is summed over all draws there can be; what the loop's E-step
makes of them is held against those sums. Seeds are fixed; chances are those of another seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.estep.scoring import log_mass
from femtune.schemes import weights as module
from femtune.schemes.contrib.memory import memo
from femtune.schemes.filters import Accepted, Chain, Distinct, weigh
from femtune.schemes.named import importance, parse_scheme, pps, star, trice
from femtune.schemes.weights import Doubt, Importance, Metropolis
from femtune.schemes.weights import Posterior as by_pi
from femtune.types import Completion, Draw, DrawKey, Example, Problem, Scheme, Score

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


# --- chains


def acceptance(state: Draw, proposal: Draw) -> float:
    """The rule's own chance to take a proposal: the share of uniform numbers at which it does."""
    low, high = 0.0, 1.0  # it takes at `low`, and perhaps not above
    with pytest.MonkeyPatch.context() as patch:

        def takes(number: float) -> bool:
            patch.setattr(module, "uniform", lambda name: number)
            [example] = weigh(Metropolis(), [state, proposal])
            return example.draw == proposal

        if takes(1 - 1e-12):
            return 1.0
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def hinted_kernel(world: Tables, x: int, y: int) -> torch.Tensor:
    """P(state z -> z') by one hinted draw, wrong ones included: [Z, Z]."""
    asked, proposal = problem("p", x, y), world.joint(x, told=y)[:, y]
    num = len(proposal)
    kernel = torch.zeros(num, num, dtype=torch.float64)
    for state, new in product(range(num), repeat=2):
        old, fresh = draw(world, asked, state), draw(world, asked, new, iteration=2)
        kernel[state, new] = proposal[new] * acceptance(old, fresh)
    return kernel + torch.diag(1 - kernel.sum(1))


def plain_kernel(world: Tables, x: int, y: int) -> torch.Tensor:
    """P(state z -> z') by one plain draw: [Z, Z]."""
    asked, joint = problem("p", x, y), world.joint(x)
    taken = [
        acceptance(draw(world, asked, 0), draw(world, asked, z, prompt="plain", iteration=2))
        for z in range(len(joint))
    ]
    kernel = (joint[:, y] * torch.tensor(taken, dtype=torch.float64)).repeat(len(joint), 1)
    return kernel + torch.diag(1 - kernel.sum(1))


@given(worlds, xs, ys)
@settings(max_examples=8)
def test_the_posterior_is_the_stationary_law_of_chains(world: Tables, x: int, y: int) -> None:
    """Of trice, pps+chain, and of star+chain, which is hinted where the plain draw is wrong."""
    joint = world.joint(x)
    law, p = joint[:, y] / joint[:, y].sum(), joint[:, y].sum()
    hinted, plain = hinted_kernel(world, x, y), plain_kernel(world, x, y)
    right = law.repeat(len(law), 1)  # a plain draw that is right
    for kernel in (hinted, plain, hinted @ plain, p * right + (1 - p) * hinted):
        torch.testing.assert_close(law @ kernel, law, rtol=0, atol=1e-9)
        # and no other: all states reach each other
        assert (torch.linalg.matrix_power(kernel, 4096) - law).abs().max() < 1e-3 or kernel.min() < 0.01
    # detailed balance
    flow = law[:, None] * hinted
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-9)


def trice_laws(num: int) -> list[tuple[float, float]]:
    """(kept, distance) of each iteration. Of a problem without a state both prompts are asked.

    Its state is of the hinted law until the first right plain draw, and of the posterior from then on.
    """
    none, biased, found = 1.0, 0.0, []
    for _ in range(num):
        none, biased = (1 - P) * (1 - H) * none, (1 - P) * biased + (1 - P) * H * none
        found.append((1 - none, distance(BIASED) * biased / (1 - none)))
    return found


def chain_laws(num: int, kernel: torch.Tensor) -> list[torch.Tensor]:
    """What a chain of hinted draws keeps in each iteration, wherever it keeps something: [Z]."""
    law, found = torch.zeros(3, dtype=torch.float64), []
    for _ in range(num):
        law = law @ kernel + (1 - law.sum()) * HINTED[:, 1]
        found.append(law / law.sum())
    return found


@pytest.mark.parametrize("scheme", [trice(0), trice(0.5)], ids=lambda scheme: scheme.name)
def test_trice_forgets_where_it_began(scheme: Scheme, tmp_path: Path) -> None:
    """At iterations 1, 2, 4, 8, 12; of each four numbers, each 1 in 16,000."""
    laws = trice_laws(12)
    distances = [round(laws[k - 1][1], 3) for k in (1, 2, 4, 8, 12)]
    assert distances == [0.385, 0.318, 0.207, 0.085, 0.035]  # the first is STaR's
    num = 400
    steps = table_steps(tmp_path, [toy()], [problem(f"{i}", 0, 1) for i in range(num)], scheme)
    for iteration in range(1, 9 if scheme.name == "trice(0.5)" else 13):
        steps.e_step(iteration)
        kept, far = laws[iteration - 1]
        rows = [row for row in steps.examples(iteration) if row["weight"] > 0]
        assert len({row["problem_id"] for row in rows}) == len(rows)
        assert {row["weight"] for row in rows} == {1.0}
        share = len(rows) / num
        assert abs(share - kept) <= SIGMAS * math.sqrt(kept * (1 - kept) / num) + 1e-9
        law = POSTERIOR + far / distance(BIASED) * (BIASED - POSTERIOR)
        check_shares(rows, law)


def test_a_chain_of_hinted_draws_tends_to_the_posterior(tmp_path: Path) -> None:
    laws = chain_laws(30, hinted_kernel(toy(), 0, 1))
    distances = [distance(law) for law in laws]
    assert distances[0] == pytest.approx(0.505) and distances[-1] < 0.001
    assert all(after < before for before, after in pairwise(distances))

    scheme = parse_scheme("pps+chain")
    steps = table_steps(tmp_path, [toy()], [problem(f"{i}", 0, 1) for i in range(600)], scheme)
    for iteration in range(1, 7):
        steps.e_step(iteration)
        check_shares(steps.examples(iteration), laws[iteration - 1])


def check_shares(rows: Sequence[dict[str, object]], law: torch.Tensor) -> None:
    zs = [int(row["completion"][0]["content"][1]) for row in rows]  # type: ignore[index]  # rows of a table
    shares = torch.bincount(torch.tensor(zs), minlength=3) / len(zs)
    assert ((shares - law).abs() < SIGMAS * (law * (1 - law) / len(zs)).sqrt()).all()


# --- the control variate


def slopes(world: Tables, x: int) -> torch.Tensor:
    """grad log pi(z, y | x), by the logits of pi(z | x) and pi(y | x, z): [Z, Y, parameters]."""
    z_law, y_law = world.z[x].softmax(0), world.y[x].softmax(-1)
    num_z, num_y = y_law.shape
    found = torch.zeros(num_z, num_y, num_z + num_z * num_y, dtype=torch.float64)
    for z, y in product(range(num_z), range(num_y)):
        found[z, y, :num_z] = torch.eye(num_z, dtype=torch.float64)[z] - z_law
        at = num_z + z * num_y
        found[z, y, at : at + num_y] = torch.eye(num_y, dtype=torch.float64)[y] - y_law[z]
    return found


def mean_and_variance(world: Tables, x: int, y: int, beta: float) -> tuple[torch.Tensor, float]:
    """Of the gradient of one problem by trice: its state of the posterior, its draw of pi."""
    asked, joint, steps, rule = problem("p", x, y), world.joint(x), slopes(world, x), trice(beta).weigh
    law = joint[:, y] / joint[:, y].sum()
    mean, square = torch.zeros(steps.shape[2], dtype=torch.float64), 0.0
    for state, z, a in product(range(4), range(4), range(3)):
        new = draw(world, asked, z, a, prompt="plain", iteration=2)
        examples = weigh(rule, [draw(world, asked, state), new])
        gradient = torch.stack([e.weight * steps[drawn(e.draw)] for e in examples]).sum(0)
        chance = law[state] * joint[z, a]
        mean += chance * gradient
        square += (chance * gradient @ gradient).item()
    return mean, square - (mean @ mean).item()


@given(worlds, xs, ys, st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=10)
def test_control_variates_change_no_gradient_on_average(
    world: Tables, x: int, y: int, beta: float
) -> None:
    """E[-beta grad log pi] = 0 over right and wrong draws: the mean stays grad log p(y* | x)."""
    joint, steps = world.joint(x), slopes(world, x)
    law = joint[:, y] / joint[:, y].sum()
    mean, _ = mean_and_variance(world, x, y, beta)
    torch.testing.assert_close(mean, torch.einsum("z,zp->p", law, steps[:, y]), rtol=0, atol=1e-12)


def test_control_variates_take_away_the_noise_of_problems_that_are_solved() -> None:
    shares, best = [], []
    for sharpness in (2.0, 4.0, 6.0, 8.0):
        base = Tables.random(seed=1)
        base.y[0, :, 1] = base.y[0].max() + sharpness  # y1, whatever the rationale
        p = base.joint(0)[:, 1].sum().item()
        _, before = mean_and_variance(base, 0, 1, 0.0)
        shares.append(mean_and_variance(base, 0, 1, p)[1] / before)
        # a parabola in beta, by three of its points
        _, middle = mean_and_variance(base, 0, 1, 0.5)
        _, end = mean_and_variance(base, 0, 1, 1.0)
        curve = 2 * (before - 2 * middle + end)
        slope = 4 * middle - 3 * before - end
        best.append(-slope / (2 * curve) / p)
    assert all(after < before < 1 for before, after in pairwise(shares))
    assert shares[-1] < 0.01
    assert all(abs(after - 1) < abs(before - 1) for before, after in pairwise(best))
    assert best[-1] == pytest.approx(1, abs=0.01)


# --- memory


def bound(world: Tables, num: torch.Tensor, sets: dict[tuple[int, int], set[int]]) -> float:
    """sum over problems (x, y*), each so many times, of log sum_S pi(z, y* | x)."""
    return sum(
        num[x, y].item() * math.log(world.joint(x)[sorted(zs), y].sum().item())
        for (x, y), zs in sets.items()
    )


def fitted(world: Tables, mass: torch.Tensor) -> Tables:
    """The M-step's exact argmax of sum mass[x, z, y] log pi(z, y | x)."""
    return Tables(
        mass.sum(2).log().clamp(min=-700), mass.log().clamp(min=-700), world.hinted_z, world.hinted_y
    )


counts = st.lists(st.integers(1, 20), min_size=9, max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.float64).reshape(3, 3)
)
subsets = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=9, max_size=9)


@given(worlds, counts, subsets, st.integers(0, 8), st.integers(0, 3))
@settings(max_examples=30)
def test_an_m_step_on_what_is_remembered_never_lowers_its_bound(
    world: Tables, num: torch.Tensor, some: list[set[int]], where: int, more: int
) -> None:
    """EM on the cut model. And a draw that joins never lowers it either, up to log p(y* | x)."""
    sets = dict(zip(product(range(3), range(3)), some, strict=True))
    found = [bound(world, num, sets)]
    for step in range(6):
        mass = torch.zeros(3, 4, 3, dtype=torch.float64)
        for (x, y), zs in sets.items():
            asked = problem("p", x, y)
            draws = [draw(world, asked, z, index=i) for i, z in enumerate([*zs, *zs])]  # twice: distinct
            for example in weigh(Chain(Accepted(), Distinct(), by_pi()), draws):
                mass[x, drawn(example.draw)[0], y] += num[x, y] * example.weight
        world = fitted(world, mass)
        found.append(bound(world, num, sets))
        if step == 3:
            sets[divmod(where, 3)].add(more)
            found.append(bound(world, num, sets))
        top = sum(num[x, y].item() * math.log(world.joint(x)[:, y].sum().item()) for x, y in sets)
        assert found[-1] <= top + 1e-9
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(found))


def masses(draws: Sequence[Draw]) -> dict[str, float]:
    """The bound of each problem with a right draw."""
    scoring: dict[str, list[Draw]] = {}
    for each in draws:
        scoring.setdefault(each.key.problem_id, []).append(each)
    return {name: mass for name, them in scoring.items() if (mass := log_mass(them)) is not None}


def test_fem_that_remembers_climbs_its_bound(tmp_path: Path) -> None:
    """Real E-steps, exact M-steps on what they store: of problems covered, iteration by iteration."""
    thetas = [Tables.random(seed=8)]
    problems = [problem(f"{i}", i % 3, i // 3 % 3) for i in range(45)]
    scheme = memo(star())
    whole = scheme.remember
    assert whole is not None
    scheme = type(scheme)(
        "all", scheme.stages, weigh=whole, remember=whole
    )  # unlikely ones are trained on too
    steps, before = table_steps(tmp_path, thetas, problems, scheme, chunk_size=20), {}
    for iteration in range(1, 7):
        metrics = steps.e_step(iteration)
        theta, after = thetas[-1], masses(steps.scoring(iteration))
        assert metrics["covered_share"] == len(after) / len(problems) > 0.4
        assert metrics["log_mass"] == pytest.approx(math.fsum(after.values()) / len(after))
        for each in problems:
            x, y = int(each.prompt[1]), int(each.answer[1])
            assert after.get(each.id, -math.inf) <= theta.joint(x)[:, y].sum().log().item() + 1e-9
        assert before.keys() <= after.keys()
        climbed = sum(after[name] for name in before)
        assert climbed >= sum(before.values()) - 1e-9
        before = after

        mass = torch.zeros(3, 4, 3, dtype=torch.float64)
        rows = steps.examples(iteration)
        assert {row["problem_id"] for row in rows} == after.keys()
        for row in rows:
            z, y = (int(row["completion"][0]["content"][at]) for at in (1, -1))
            mass[int(row["prompt"][0]["content"][1]), z, y] += row["weight"]
        thetas.append(fitted(theta, mass))
    assert len(before) > 40


def test_what_is_remembered_is_what_the_posterior_likes_best_of_all_that_was_drawn(
    tmp_path: Path,
) -> None:
    """Of at most 2 of 4 rationales; while theta stands still a problem's bound never falls."""
    world = Tables.random(seed=8)
    problems = [problem(f"{i}", i % 3, i // 3 % 3) for i in range(30)]
    steps = table_steps(tmp_path, [world], problems, memo(pps(2), 2), chunk_size=7)
    seen: dict[str, set[int]] = {each.id: set() for each in problems}
    before: dict[str, float] = {}
    for iteration in range(1, 6):
        steps.e_step(iteration)
        for each in steps.scoring(iteration):
            if each.accepted:
                seen[each.key.problem_id].add(drawn(each)[0])
        after = masses(steps.recalled(iteration))
        assert all(after[name] >= mass - 1e-12 for name, mass in before.items())
        both = masses(steps.scoring(iteration))
        assert all(both[name] >= mass for name, mass in after.items())
        before = after
        rows: dict[str, dict[int, float]] = {}
        for row in steps.examples(iteration):
            z = int(row["completion"][0]["content"][1])
            rows.setdefault(row["problem_id"], {})[z] = row["weight"]
        for each in problems:
            joint = world.joint(int(each.prompt[1]))[:, int(each.answer[1])]
            best = sorted(seen[each.id], key=lambda z: -joint[z])[:2]
            total = sum(joint[z].item() for z in best)
            kept = {z: joint[z].item() for z in best if joint[z].item() >= 0.05 * total}
            law = {z: mass / sum(kept.values()) for z, mass in kept.items()}
            assert rows.get(each.id, {}) == pytest.approx(law)


# --- doubt


@given(worlds, xs, ys, st.floats(0.01, 0.9))
@settings(max_examples=25)
def test_doubt_is_the_posterior_of_labels_with_noise(
    world: Tables, x: int, label: int, noise: float
) -> None:
    """y of pi, and of it a label: y itself, or with chance `noise` one of the two others.

    With all rationales known it is P(y = label | x, label) exactly, with some of them less.
    """
    joint = world.joint(x)
    seen = torch.full((3, 3), noise / 2, dtype=torch.float64).fill_diagonal_(1 - noise)  # [Y, label]
    both = joint.sum(0)[:, None] * seen
    exact = (both[label, label] / both[:, label].sum()).item()
    draws = [draw(world, problem("p", x, label), z, index=z) for z in range(4)]
    trust = [
        Doubt(noise, 3)(draws[:num], [Example(draws[0])])[0].weight for num in range(1, len(draws) + 1)
    ]
    assert trust == sorted(trust)
    assert trust[-1] == pytest.approx(exact)


def test_doubt_takes_weight_from_the_answers_that_are_wrong(tmp_path: Path) -> None:
    """A problem's examples weigh what its answer is worth, and the rest of a scheme stays as it was."""
    world = Tables.random(seed=8)
    problems = [problem(f"{i}", i % 3, i // 3 % 3) for i in range(18)]
    weights: list[dict[str, float]] = []
    for spec in ("pps:4+memo", "pps:4+memo+doubt:0.2"):
        (folder := tmp_path / spec[-3:]).mkdir()
        steps = table_steps(folder, [world], problems, parse_scheme(spec, num_answers=3))
        steps.e_step(1)
        total: dict[str, float] = {}
        for row in steps.examples(1):
            total[row["problem_id"]] = total.get(row["problem_id"], 0.0) + row["weight"]
        weights.append(total)
        known = {name: math.exp(mass) for name, mass in masses(steps.scoring(1)).items()}
    expected = {name: 0.8 * m / (0.8 * m + 0.2 * (1 - m) / 2) for name, m in known.items()}
    assert weights[0] == pytest.approx(dict.fromkeys(known, 1.0))
    assert weights[1] == pytest.approx(expected)
