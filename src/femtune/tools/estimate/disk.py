"""Estimates of a run's disk usage before it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from femtune.errors import RunError
from femtune.loop import LoopConfig
from femtune.mstep.disk import exported_dtype, free_bytes, model_bytes, sized
from femtune.tools.estimate.schedule import capacity, most_draws
from femtune.types import Sampling

log = logging.getLogger("femtune")

# Bytes of a stored draw without its tokens, and of a token, as id and as text: measured on shards of the
# demo model (148 and 167 bytes per draw of 13 tokens), rounded up.
DRAW, TOKEN = 100, 8


@dataclass(frozen=True)
class Disk:
    """Bytes that a run will still write."""

    models: int  # at least
    draws: int  # at most, or as many as are expected

    @property
    def total(self) -> int:
        return self.models + self.draws


def draws_bytes(draws: float, tokens: float) -> int:
    """Return the bytes of so many draws of so many tokens each."""
    return round(draws * (DRAW + TOKEN * tokens))


def models_bytes(plan: LoopConfig, each: int, num_stored: int = 0) -> int:
    """Return the bytes of the models kept at once, of `each` bytes, without those already stored."""
    num = plan.iterations
    if plan.keep_last:
        num = min(num, plan.keep_last + 2)  # the best, and the newest before an older one is removed
    return max(0, num - num_stored) * each


def masters_bytes(plan: LoopConfig, dtype: str, each: int, num_stored: int = 0) -> int:
    """Return the bytes of float32 weights stored beside models of a dtype, of `each` bytes.

    There are at most two: the newest, and the previous one until the newest is stored.
    """
    left = max(0, plan.iterations - num_stored)
    goes_on = any(plan.m_step(each + 1)[0] == "previous" for each in range(1, plan.iterations + 1))
    differs = dtype != "float32" or plan.average_weights
    return min(left, 1 if num_stored else 2) * each if goes_on and differs else 0


def at_most(
    plan: LoopConfig,
    base: Path,
    num_problems: int,
    num_eval: int,
    sampling: Sampling,
    num_stored: int = 0,
    *,
    num_dev: int = 0,
) -> Disk:
    """Return an upper bound: all models, and all attempts of every problem at the maximum length.

    It includes the maximum number of remembered draws.
    """
    left = max(0, plan.iterations - num_stored)
    scheme, left_draws = plan.scheme, -(-left // plan.scheme.every)
    bounded = min(num_eval, plan.bound_problems) * plan.bound_draws
    asked = num_eval * plan.evaluation.draws + bounded if plan.evaluation.every else 0
    draws = num_problems * (left_draws * most_draws(scheme) + left * capacity(scheme))
    draws += (left + 1) * asked + left * num_dev
    dtype = exported_dtype(base, plan.training)
    models = models_bytes(plan, model_bytes(base, plan.training, dtype), num_stored)
    models += masters_bytes(plan, dtype, model_bytes(base, plan.training), num_stored)
    return Disk(models, draws_bytes(draws, sampling.max_new_tokens))


def check_disk(root: Path, needed: Disk) -> None:
    """Refuse a run whose models do not fit on the disk, and warn if its draws may fill it.

    Raises RunError.
    """
    free = free_bytes(root)
    if needed.models > free:
        raise RunError(
            f"{root}: the run's models take {sized(needed.models)}, and {sized(free)} are free there. "
            "Set --keep-last 1 to remove older models, --use-peft, or another --output-dir."
        )
    if needed.total > free:
        log.warning(
            "%s: models take %s and draws up to %s, and %s are free there. A full disk stops a run, "
            "and the same command resumes it when there is room.",
            *(root, sized(needed.models), sized(needed.draws), sized(free)),
        )
