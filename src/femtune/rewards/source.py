"""The code and the columns that a user's reward depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from femtune.rewards.custom import UserReward
from femtune.types import Problem


def reward_code(spec: str, reward: Callable[..., Any] | None) -> bytes | None:
    """Return the code of a user's reward: the whole file if it is given by name, else its source.

    None for femtune's own rewards, and for code that can't be found.
    """
    if (path := _named_file(spec)) is not None:
        return path.read_bytes()
    function = reward.function if isinstance(reward, UserReward) else None
    if not inspect.isfunction(function):
        return None
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return None


def _named_file(spec: str) -> Path | None:
    """Return the file of a reward given as path/file.py:function or package.module:function."""
    where, colon, _ = spec.rpartition(":")
    if not colon:
        return None
    if (path := Path(where)).is_file():
        return path
    try:
        found = find_spec(where)
    except (ImportError, ValueError):
        return None
    origin = Path(found.origin) if found is not None and found.origin else None
    return origin if origin is not None and origin.is_file() else None


def reward_columns(reward: UserReward, problems: Sequence[Problem]) -> list[Any]:
    """Return, for each problem, the columns that a reward may read; [] if there are no columns."""
    takes = reward.takes if reward.form != "own" else None
    rows = [
        sorted(
            (name, value) for name, value in problem.columns.items() if takes is None or name in takes
        )
        for problem in problems
    ]
    return rows if any(rows) else []
