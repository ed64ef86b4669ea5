"""The processes of a job that `torchrun` or `accelerate launch` started; one process is a job of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed

from femtune.errors import FemtuneError

T = TypeVar("T")


def count() -> int:
    """Processes of this job, over all machines."""
    return torch.distributed.get_world_size() if _joined() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def by_first(do: Callable[[], T]) -> T:
    """What the first process gets by doing it, in all of them; the others wait.

    Where it fails there, all raise: none waits for one that has given up.
    """
    if not _joined():
        return do()
    told: list[Any] = [None, None]  # result, error
    if rank() == 0:
        try:
            told = [do(), None]
        except Exception as error:
            told = [None, error if isinstance(error, FemtuneError) else FemtuneError(repr(error))]
            torch.distributed.broadcast_object_list(told)
            raise
    torch.distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank, in each of them."""
    if not _joined():
        return [value]
    values: list[T | None] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all are filled now


def leave() -> None:
    """End this process's part in the job, when all have done theirs."""
    if _joined():
        torch.distributed.destroy_process_group()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
