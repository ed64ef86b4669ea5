"""Arguments of the public functions that may be objects: data, schemes, rewards, progress."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, get_args

from femtune.data.objects import Table, rows_of
from femtune.data.tasks.load import TaskData
from femtune.errors import ConfigError
from femtune.loop import Progress
from femtune.reporting.terminal import Show, showing
from femtune.resolve import Data, Divided
from femtune.run_folder import shown_data
from femtune.types import Scheme

Model = str | os.PathLike[str]  # a folder, the id of a model on the Hub, or "seedling"
Reward = str | Callable[..., Any]  # a name, "file.py:function", or a function


def with_rows(data: Data | Table) -> Data:
    """Return data with the rows of a table as dicts. Raises DataError for what can't be read."""
    return data if isinstance(data, str | Path | TaskData | Divided) else rows_of(data)


def divided(data: Data | Table, eval_data: Data | Table | None) -> tuple[Data, dict[str, Any]]:
    """Return data, with held-out rows in memory if there are any, and the setting that names these."""
    train = with_rows(data)
    if eval_data is None or isinstance(eval_data, str | Path):
        return train, {} if eval_data is None else {"eval_data": eval_data}
    held_out = with_rows(eval_data)
    if isinstance(train, Divided) or isinstance(held_out, Divided):
        raise ConfigError("data has its own held-out part. Give data and eval_data separately.")
    return Divided(train, held_out), {"eval_data": shown_data(held_out)}


def names_given(scheme: str | Scheme | None, reward: Reward | None) -> dict[str, str]:
    """Return the names of a scheme and a reward, as settings hold them."""
    named: dict[str, str] = {}
    if scheme is not None:
        named["scheme"] = scheme.name if isinstance(scheme, Scheme) else scheme
    if reward is not None:
        name = getattr(reward, "name", getattr(reward, "__name__", repr(reward)))
        named["reward"] = reward if isinstance(reward, str) else name
    return named


def scheme_object(scheme: str | Scheme) -> Scheme | None:
    """Return a scheme that was given as an object, None for a name."""
    return scheme if isinstance(scheme, Scheme) else None


def reward_function(reward: Reward | None) -> Callable[..., Any] | None:
    """Return a reward that was given as a function, None for a name."""
    return None if isinstance(reward, str | None) else reward


def shown_by(progress: Show | Progress) -> AbstractContextManager[Progress]:
    """Return the receiver of progress. Raises ConfigError for an unknown name."""
    if not isinstance(progress, str):
        return nullcontext(progress)
    return showing(show_name(progress, ", or give an object"))


def show_name(progress: Show, more: str = "") -> Show:
    """Return the name of a way to show progress. Raises ConfigError for an unknown one."""
    if progress not in get_args(Show):
        known = ", ".join(get_args(Show))
        raise ConfigError(f"progress is {progress!r}. Choose {known}{more}.")
    return progress
