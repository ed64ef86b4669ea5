"""What an M-step that chooses examples may cost, and the settings that do not go with it."""

from __future__ import annotations

from dataclasses import fields

from femtune.config import Train
from femtune.data.demos import MOST
from femtune.errors import ConfigError
from femtune.mstep.config import Training
from femtune.selection.answers import Selection
from femtune.types import Scheme

# Development items: half of the training items, at most so many. Each costs six requests: two for the
# current examples and the winner, the others for the search, which is a race of 16 sets and some swaps.
MOST_ITEMS, REQUESTS_AN_ITEM = 100, 6
LEAST_ITEMS = 10  # five confirm the winner: fewer can't tell it from chance, see paired_difference
_OF_ANY_M_STEP = ("report_to", "use_cpu", "epochs_factor")  # fields of Training


def num_to_choose_by(requests: int, num_items: int) -> int:
    """Return the default size of the development part of so many training items.

    >>> [num_to_choose_by(600, num) for num in (60, 150, 1000)], num_to_choose_by(180, 1000)
    ([30, 75, 100], 30)
    """
    return min(num_items // 2, MOST_ITEMS, requests // REQUESTS_AN_ITEM)


def selection_of(settings: Train, scheme: Scheme) -> Selection | None:
    """Return the limits of M-steps that choose examples, None for those of weights.

    Raises ConfigError for settings that do not go together.
    """
    usual = {field.name: field.default for field in fields(Train)}
    own = ("num_examples", "selection_requests", "selection_tokens")
    if settings.m_step == "weights":
        if given := [name for name in own if getattr(settings, name) != usual[name]]:
            raise ConfigError(f"{given[0]} is of --m-step examples: set it, or leave {given[0]} out.")
        return None
    _check_ranges(settings)
    plain = Training()
    trains = [
        field.name
        for field in fields(Training)
        if field.name not in _OF_ANY_M_STEP
        and getattr(settings.training, field.name) != getattr(plain, field.name)
    ]
    of_weights = [name for name in ("launch", "average_weights") if getattr(settings, name)] + trains
    if of_weights:
        raise ConfigError(f"--m-step examples trains no weights: leave {of_weights[0]} out.")
    if scheme.m_steps.restart_every or settings.start_from == "base":
        raise ConfigError(
            f"--m-step examples starts from the examples before it, with draws under them, and scheme "
            f"{scheme.name} with start_from {settings.start_from} does not: leave restart and "
            "start_from out."
        )
    return Selection(settings.num_examples, settings.selection_requests, settings.selection_tokens)


def _check_ranges(settings: Train) -> None:
    """Refuse numbers that leave nothing to choose, or no way to. Raises ConfigError."""
    if not 1 <= settings.num_examples <= MOST:
        raise ConfigError(f"num_examples must be from 1 to {MOST}, got {settings.num_examples}.")
    least = LEAST_ITEMS * REQUESTS_AN_ITEM
    if settings.selection_requests < least:
        raise ConfigError(
            f"selection_requests must be at least {least}, got {settings.selection_requests}: "
            f"{REQUESTS_AN_ITEM} for each of {LEAST_ITEMS} development items."
        )
    if settings.selection_tokens is not None and settings.selection_tokens < 1:
        raise ConfigError(f"selection_tokens must be at least 1, got {settings.selection_tokens}.")
    if settings.dev_share == 0 or not settings.eval_every:
        raise ConfigError(
            "--m-step examples chooses by the development part: leave dev_share 0 and eval_every 0 out."
        )


def check_items(num_items: int, limits: Selection) -> None:
    """Refuse a development part that is too small, or too large for the budget. Raises ConfigError."""
    if num_items < LEAST_ITEMS:
        raise ConfigError(
            f"--m-step examples chooses by {num_items} development items, and needs {LEAST_ITEMS}: give "
            "more data to train on, or a larger --dev-share."
        )
    if num_items * REQUESTS_AN_ITEM > limits.requests:
        raise ConfigError(
            f"selection_requests {limits.requests} is too few for {num_items} development items: set at "
            f"least {num_items * REQUESTS_AN_ITEM}, or a smaller --dev-share."
        )
