"""The bound on the likelihood, and what hints give away, held against exact sums; see oracle.py."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from femtune.engines.fake import FakeEngine
from femtune.errors import EngineError
from femtune.evaluation.likelihood_bound import (
    PRIOR,
    effective_share,
    is_right,
    log_mean,
    mixture_draws,
    posterior_metrics,
    score_right,
    subset,
    weights,
)
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.schemes.named import rejection
from femtune.types import Capabilities, Completion, Draw, DrawKey, Problem, Sampling, Score

from ..oracle import Tables, problem, sampler
from ..test_loop import timeless

CELLS = [(x, y) for x in range(3) for y in range(3)]  # questions and their answers


def joint_logprob(world: Tables) -> Callable[[str, str], float]:
    """log-probability of a completion after a prompt, by the tables."""

    def logprob(prompt: str, completion: str) -> float:
        told = re.search(r"answer is y(\d+)", prompt)
        z, y = map(int, re.findall(r"\d+", completion))
        return math.log(world.joint(int(prompt[1]), int(told[1]) if told else None)[z, y].item())

    return logprob


def made(
    prompt: str, log_pi: float, log_q: float, *, right: bool = True, reason: Any = "", name: str = "p"
) -> Draw:
    """A draw with these nats."""
    reason = reason or ("" if right else "wrong")
    done = Completion((1,), "z", "stop", log_pi if prompt == "plain" else log_q)
    score = Score(float(right), "y", reason)
    return Draw(
        DrawKey(1, name, int(prompt == "hinted"), 0), prompt, 0, done, score, log_pi=log_pi, log_q=log_q
    )


def outcomes(world: Tables, x: int, y: int, half: int) -> tuple[torch.Tensor, np.ndarray]:
    """Of all that `half` plain and `half` hinted draws can give: probabilities, and mean weights."""
    pi, q = world.joint(x).flatten(), world.joint(x, told=y).flatten()
    logprobs = zip(pi.log().tolist(), q.log().tolist(), strict=True)
    pairs = [
        (made("plain", *n, right=cell % 3 == y), made("hinted", 0, 0)) for cell, n in enumerate(logprobs)
    ]
    found = np.array([weights(pair)[0] for pair in pairs])  # of a completion, whoever wrote it
    chance, total = torch.ones(1, dtype=torch.float64), np.zeros(1)
    for law in half * [pi, q]:
        chance = (chance[:, None] * law).flatten()
        total = (total[:, None] + found).flatten()
    return chance, total / (2 * half)


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_weight_is_unbiased_and_its_log_a_lower_bound_that_rises(seed: int) -> None:
    """By all 12^2 and all 12^4 outcomes of 2 and of 4 draws."""
    world = Tables.random(seed)
    for x, y in CELLS:
        p = world.joint(x)[:, y].sum().item()
        rising = []
        for half in (1, 2):
            chance, means = outcomes(world, x, y, half)
            assert chance.sum().item() == pytest.approx(1)
            assert (chance.numpy() @ means) == pytest.approx(p)
            assert means.max() <= 2  # K / a
            num = 2 * half
            bounds = np.array([log_mean([mean * num] + [0.0] * (num - 1)) for mean in means])
            assert chance.numpy() @ bounds < math.log(p + PRIOR / num)
            rising.append(chance.numpy() @ np.log(means + 0.025))  # with the prior of 4 draws
        assert rising[0] < rising[1] < math.log(p + 0.025)


def measured(
    world: Tables, problems: list[Problem], folder: Path, draws: int, seed: int = 0
) -> dict[str, Any]:
    """By the real driver, grading and scoring."""
    engine = FakeEngine(world.write, logprob_of=joint_logprob(world), room=256)
    made = sampler(engine, seed=seed)
    source, target = (folder / kind / "00000.parquet" for kind in ("bound", "bound_scored"))
    place = {0: source}.__getitem__
    for _ in mixture_draws(problems, made, draws=draws, iteration=1, place=place):
        pass
    by_id = {each.id: each for each in problems}
    score_right(source, target, by_id, made)
    return posterior_metrics(by_id, folder)


def test_with_256_draws_it_is_within_a_twentieth_of_a_nat(tmp_path: Path) -> None:
    """Of three worlds of 9 problems, each problem 4 times: 27,648 draws."""
    for seed in range(3):
        world = Tables.random(seed)
        problems = [problem(f"{x}{y}{n}", x, y) for x, y in CELLS for n in range(4)]
        found = measured(world, problems, tmp_path / str(seed), 256)
        p = [world.joint(x)[:, y].sum().item() for x, y in CELLS]
        assert abs(found["bound"] - np.log(p).mean()) < 0.05
        assert abs(found["likelihood"] - np.mean(p)) < 0.02
        assert found["draws"] == 256 and found["num_problems"] == 36


def test_what_hints_give_away_is_the_exact_divergence(tmp_path: Path) -> None:
    """leak_logprob of a problem is KL(q(z | right) || posterior) + log h - log p."""
    world = Tables.random(5)
    exact, ess, right = [], [], []
    for x, y in CELLS:
        pi, q = world.joint(x)[:, y], world.joint(x, told=y)[:, y]
        p, h = pi.sum(), q.sum()
        leak = ((q / h) * ((q / h) / (pi / p)).log()).sum() + h.log() - p.log()
        exact.append(leak.item())
        right.append(h.item())
        ess.append((p**2 / (pi**2 / q).sum()).item())  # E[w]^2 / E[w^2] under q, wrong ones being 0
    problems = [problem(f"{x}{y}{n}", x, y) for x, y in CELLS for n in range(2)]
    found = measured(world, problems, tmp_path, 512)
    # 4,608 hinted draws, of 0.9 nats of deviation: 4 sigma is 0.08
    assert found["leak_logprob"] == pytest.approx(np.average(exact, weights=right), abs=0.08)
    assert found["ess_share"] == pytest.approx(np.mean(ess), abs=0.03)


def test_a_hint_that_changes_nothing_leaks_nothing(tmp_path: Path) -> None:
    world = Tables.random(1)
    same = Tables(
        world.z,
        world.y,
        world.z[:, None].expand(-1, 3, -1),
        world.y[:, None].expand(-1, 3, -1, -1),
    )
    problems = [problem(f"{x}{y}", x, y) for x, y in CELLS]
    found = measured(same, problems, tmp_path, 64)
    assert found["leak_logprob"] == pytest.approx(0, abs=1e-9)
    p = [world.joint(x)[:, y].sum().item() for x, y in CELLS]
    assert found["ess_share"] == pytest.approx(np.mean(p), abs=0.1)  # all weights of right ones are 1


def test_the_effective_share_is_of_all_hinted_draws() -> None:
    plain, wrong = made("plain", -1, -1), made("hinted", -1, -1, right=False)
    assert effective_share([plain, wrong]) == 0
    assert effective_share([made("hinted", -1, -2), made("hinted", -3, -4)]) == pytest.approx(1)
    assert effective_share([made("hinted", -1, -2), wrong]) == pytest.approx(0.5)
    # weights 1 and 3: 16 / 10 of 2
    two = [made("hinted", 0, 0), made("hinted", 0, -math.log(3))]
    assert effective_share(two) == pytest.approx(0.8)


def test_far_away_logprobs_are_no_trouble() -> None:
    far = [made("plain", -2000, -1), made("hinted", -2000, -1), made("plain", -1, -2000)]
    assert weights(far) == [0.0, 0.0, pytest.approx(1.5)]  # two of three are plain
    assert effective_share(far) == 1
    assert log_mean([0.0, 0.0, 0.0, 0.0]) == pytest.approx(math.log(0.025))


def test_a_hinted_draw_that_leaks_is_right_and_counted(tmp_path: Path) -> None:
    """Else a completion would be right under one prompt and wrong under the other."""
    leaking = made("hinted", -1, -1, reason="hint_leak")
    assert is_right(leaking) and weights([made("plain", -1, -1), leaking]) == [1, 1]
    told = "As the answer is given, so it is.\nAnswer: y1"
    engine = FakeEngine(lambda prompt, seed: told)
    asked = replace(sampler(engine), sampling=Sampling(99))
    source, target = (tmp_path / kind / "00000.parquet" for kind in ("bound", "bound_scored"))
    [chunk] = mixture_draws(
        [problem("a", 0, 1)], asked, draws=4, iteration=1, place=lambda index: source
    )
    assert [draw.score.reason for draw in chunk.draws] == ["", "", "hint_leak", "hint_leak"]
    score_right(source, target, {"a": problem("a", 0, 1)}, asked)
    found = posterior_metrics({"a": problem("a", 0, 1)}, tmp_path)
    assert (found["leak_share"], found["likelihood"], found["ess_share"]) == (1, 1, 1)
    tokens = len(told) + 1
    assert (found["generated_tokens"], found["scored_tokens"]) == (4 * tokens, 4 * tokens)


def test_where_no_draw_is_right_the_bound_is_the_priors_and_the_leak_undefined(tmp_path: Path) -> None:
    engine = FakeEngine(lambda prompt, seed: "Hm.\nAnswer: none")
    engine.logprob = lambda pairs: pytest.fail("nothing is to be scored")  # type: ignore[method-assign]  # in place of the method
    asked, one = sampler(engine), problem("a", 0, 1)
    source, target = (tmp_path / kind / "00000.parquet" for kind in ("bound", "bound_scored"))
    [_] = mixture_draws([one], asked, draws=4, iteration=1, place=lambda index: source)
    score_right(source, target, {"a": one}, asked)
    found = posterior_metrics({"a": one}, tmp_path)
    assert found["bound"] == pytest.approx(math.log(PRIOR / 4)) and found["likelihood"] == 0
    assert (
        found["leak_logprob"] is None and found["undefined"]["leak_logprob"] == "no hinted draw is right"
    )
    assert json.loads(json.dumps(found)) == found


def test_the_same_problems_are_asked_each_time_and_fewer_are_the_first_of_more() -> None:
    problems = [problem(f"{n}", 0, 0) for n in range(50)]
    some = subset(problems, 10, seed=3)
    assert some == subset(problems[::-1], 10, seed=3) == subset(problems, 20, seed=3)[:10]
    assert some != subset(problems, 10, seed=4) and len(set(map(id, some))) == 10
    assert len(subset(problems, 100, seed=3)) == 50


# --- in the loop


def steps(root: Path, engine: FakeEngine, draws: int = 4, **changes: Any) -> Steps:
    """Measuring the base on 9 problems, in chunks of 4."""
    problems = [problem(f"{x}{y}", x, y) for x, y in CELLS]
    plan = LoopConfig(
        scheme=rejection(1),
        training=Training(),
        evaluation=Evaluation(),
        iterations=0,
        bound_draws=draws,
        **changes,
    )
    root.mkdir(exist_ok=True)
    made = sampler(engine, seed=2, chunk_size=4)
    return Steps(
        run=Run(root),
        base=root / "base",
        problems=[],
        eval_problems=problems,
        config=plan,
        sampler=made,
        tokenizer=engine.tokenizer,
        progress=Quiet(),
    )


def a_world() -> FakeEngine:
    world = Tables.random(4)
    return FakeEngine(world.write, logprob_of=joint_logprob(world), room=5)


def test_the_loop_stores_what_it_draws_and_scores_and_makes_no_more(tmp_path: Path) -> None:
    run = steps(tmp_path, a_world())
    [metrics] = run.iterate()
    found = metrics["posterior"]
    assert (found["num_problems"], found["draws"]) == (9, 4)
    folder = tmp_path / "iteration-000"
    for kind in ("bound", "bound_scored"):
        assert len(list((folder / kind).glob("*.parquet"))) == 3
    entries = (tmp_path / "manifest.jsonl").read_text()
    assert entries.count("/bound/0") == entries.count("/bound_scored/0") == 3
    draws = [draw for chunk, _ in read_draws(folder / "bound") for draw in chunk]
    assert sum(draw.prompt_kind == "plain" for draw in draws) == len(draws) / 2 == 18

    (folder / "metrics.json").unlink()
    (folder / "bound_scored/00001.parquet").unlink()
    again = steps(tmp_path, engine := a_world())
    [after] = again.iterate()
    assert not engine.asked and len(engine.loaded) == 1  # one chunk is scored, none drawn
    assert timeless(after["posterior"]) == timeless(found)


def test_at_most_so_many_problems_are_asked(tmp_path: Path) -> None:
    run = steps(tmp_path, a_world(), bound_problems=5)
    assert run.iterate()[0]["posterior"]["num_problems"] == 5


def test_it_is_off_by_the_switch_and_where_a_server_can_not_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "posterior" not in steps(tmp_path / "a", a_world(), draws=0).iterate()[0]
    engine: Any = a_world()
    engine.capabilities = Capabilities(scores=False)
    engine.logprob = lambda pairs: (_ for _ in ()).throw(EngineError("it can't"))
    with caplog.at_level(logging.WARNING, "femtune"):
        [metrics] = steps(tmp_path / "b", engine).iterate()
    assert "posterior" not in metrics and "evaluation" in metrics
    assert [r.message.split(":")[0] for r in caplog.records] == ["the server can't score completions"]


def test_draws_without_a_logprob_are_scored(tmp_path: Path) -> None:
    """As of servers that give none with what they write."""
    world = Tables.random(4)

    def silent(prompt: str, seed: int) -> tuple[str, float]:
        return world.write(prompt, seed), math.nan

    told, untold = (
        FakeEngine(write, logprob_of=joint_logprob(world), room=5) for write in (world.write, silent)
    )
    one, other = (
        steps(tmp_path / name, engine).iterate()[0]["posterior"]
        for name, engine in (("a", told), ("b", untold))
    )
    assert timeless(one) == timeless(other)
