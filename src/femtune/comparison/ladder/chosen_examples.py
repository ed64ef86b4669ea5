"""The rung whose model is the base with chosen examples: a run of `train --m-step examples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from femtune.config import Train
from femtune.data.partition import num_items, set_aside
from femtune.errors import ConfigError, DataError
from femtune.mstep.config import Training
from femtune.resolve import make_loop_config
from femtune.selection.limits import check_items, num_to_choose_by
from femtune.types import Problem

NAME = "chosen-examples"


def with_examples_chosen(settings: Train) -> Train:
    """Return the settings of the rung's run: one iteration, and none of those of weights.

    The development part has its default size, so that the budget is enough for it.
    """
    training = Training(use_cpu=settings.training.use_cpu, report_to=settings.training.report_to)
    return replace(
        settings,
        m_step="examples",
        iterations=1,
        dev_share=None,
        patience=0,
        eval_every=1,
        launch=None,
        training=training,
    )


def unsuited(settings: Train, problems: Sequence[Problem]) -> str:
    """Return why no examples can be chosen from these training problems; "" if they can."""
    usual = partial(num_to_choose_by, settings.selection_requests)
    try:
        limits = make_loop_config(settings).selection
        assert limits is not None  # as the settings say
        check_items(num_items(set_aside(problems, None, settings.seed, usual)[1]), limits)
    except (ConfigError, DataError) as error:
        return str(error).removeprefix("--m-step examples ").rstrip(".")
    return ""
