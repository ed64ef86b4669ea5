"""Baselines that learn to reason by reinforcement learning: the same problems, prompts and reward.

    grpo    TRL's GRPOTrainer  (Shao et al. 2024, arXiv 2402.03300; TRL's loss is DAPO's, 2503.14476)
    rloo    TRL's RLOOTrainer  (Ahmadian et al. 2024, arXiv 2402.14740)
    latro   RLOO whose reward of a rationale is log pi(y* | x, z)  (Chen et al. 2024, arXiv 2411.04282)

An iteration is a pass: a group of completions for every problem, in as many optimizer steps as needed,
then the same evaluation as for schemes. Each pass starts with a fresh optimizer, like each M-step of
FEM, so a stopped run resumes after its last finished pass from weights alone.
Its history has the form of a scheme's: see `reinforce`. policy_gradient.py runs TRL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from femtune._util import interrupts
from femtune.config import RL, Train
from femtune.data.partition import Parts
from femtune.errors import ConfigError
from femtune.loop import Steps
from femtune.metric_types import History, IterationMetrics
from femtune.mstep.disk import check_room
from femtune.reporting.terminal import Quiet
from femtune.resolve import make_loop_config, sampling
from femtune.runs.checkpoints import is_out_of_patience, keep_models
from femtune.runs.run import Run
from femtune.sampler import SamplerBuilder
from femtune.schemes.filters import Chain
from femtune.types import Scheme

RL_BASELINES = ("grpo", "rloo", "latro")


def check_reinforced(name: str, settings: Train) -> None:
    """Raise ConfigError if TRL is not installed, or for settings that these baselines do not support."""
    if find_spec("trl") is None:
        raise ConfigError(f'baseline {name} needs TRL: pip install "femtune[trl]"')
    if settings.training.fsdp or settings.launch is not None:
        raise ConfigError(f"baseline {name} trains in one process: leave launch and fsdp out.")
    if settings.temperature == 0:
        raise ConfigError(f"baseline {name} needs draws that differ: temperature must be above 0.")


def reinforce(
    run: Run,
    builder: SamplerBuilder,
    settings: Train,
    rl: RL,
    parts: Parts,
) -> History:
    """Run the baseline named by `settings.scheme`; return the metrics of every pass, 0 being the base.

    Their keys are those of a scheme: "e_step" has counts and seconds of generation, and the mean
    `reward`; "m_step" has the seconds of the rest. Stored passes are not run again. The best and the
    last model are kept.
    """
    what = make_loop_config(
        replace(settings, soft_accept=None), Scheme(settings.scheme, (), weigh=Chain())
    )
    with builder.sampler(sampling(settings, what.scheme), check_on=parts.train) as sampler:
        steps = Steps(
            run=run,
            base=builder.base,
            problems=parts.train,
            eval_problems=parts.test,
            dev_problems=parts.dev,
            config=what,
            sampler=sampler,
            tokenizer=builder.tokenizer,
            progress=Quiet(),
        )
        return _passes(settings.scheme, steps, rl)


def _passes(name: str, steps: Steps, rl: RL) -> History:
    history: History = []
    while not _is_over(steps, rl, history):
        iteration = len(history)
        stored = steps.run.iteration(iteration) / "metrics.json"
        is_new = not stored.exists()
        if is_new:
            metrics: IterationMetrics = {"iteration": iteration}
            if iteration:
                metrics |= _pass(name, steps, rl, iteration, left(rl, history))
            is_last = _is_over(steps, rl, [*history, metrics])
            if iteration and steps.dev_problems and (steps.is_scheduled(iteration) or is_last):
                metrics["development"] = steps.develop(iteration)
            if steps.is_measured(iteration) or is_last:
                metrics["evaluation"] = steps.evaluate(iteration)
            steps.run.write_json(stored, metrics)
            steps.run.log("iteration", **metrics)
        steps.run.verify(stored)
        history.append(json.loads(stored.read_text()))
        if iteration and is_new:
            keep_models(steps.run, history, keep_last=1)
        interrupts.check()
    return history


def left(rl: RL, history: Sequence[IterationMetrics]) -> int | None:
    """Return the remaining token budget; None without a budget."""
    if rl.rl_tokens is None:
        return None
    spent: int = sum(each["e_step"]["generated_tokens"] for each in history if "e_step" in each)
    return rl.rl_tokens - spent


def _is_over(steps: Steps, rl: RL, history: Sequence[IterationMetrics]) -> bool:
    if history and is_out_of_patience(history, steps.config.patience):
        return True
    remaining = left(rl, history)
    return len(history) > steps.config.iterations if remaining is None else remaining <= 0


def _pass(name: str, steps: Steps, rl: RL, iteration: int, tokens: int | None) -> IterationMetrics:
    """Run one pass, or read its stored results; return its e_step and m_step."""
    steps.run.log("M-step", iteration=iteration)
    model, start = steps.weights(iteration), steps.weights(iteration - 1)
    steps.run.verify(model)
    if not model.exists():
        from femtune.comparison.policy_gradient import Environment, policy_gradient  # slow to import

        sampler, training = steps.sampler, steps.config.training
        steps.run.verify(*[start] if iteration > 1 else [])
        check_room(model, start, training)
        sampler.engine.release()  # training needs its GPU memory
        steps.serving = None
        world = Environment(
            problems=steps.problems,
            prompts=sampler.prompts,
            tokenizer=steps.tokenizer,
            grade=sampler.grade,
            sampling=sampler.sampling,
            seed=sampler.seed,
        )
        with interrupts.finishing("this pass, which would otherwise start over"):
            policy_gradient(
                *(name, world, start, model, training, rl),
                iteration=iteration,
                is_over=lambda model, generated: tokens is not None and generated >= tokens,
            )
            steps.run.record(model)
    made: IterationMetrics = json.loads((model / "pass.json").read_text())
    return made
