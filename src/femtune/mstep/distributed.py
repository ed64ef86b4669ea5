"""The processes of a job started by `torchrun` or `accelerate launch`; a single process is a job too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed
from accelerate import PartialState

from femtune import errors
from femtune.errors import FemtuneError

T = TypeVar("T")


def count() -> int:
    """Return the number of processes of this job, over all machines."""
    return torch.distributed.get_world_size() if _joined() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number, from 0."""
    return torch.distributed.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def by_first(do: Callable[[], T]) -> T:
    """Run a function in the first process; return its JSON result in all, which wait for it.

    If it fails there, all processes raise, so none waits forever.
    """
    if not _joined():
        return do()
    told: Any = None  # {"result": ...}, or an error's kind and message
    if rank() == 0:
        try:
            told = {"result": do()}
        except Exception as error:
            known = isinstance(error, FemtuneError)
            told = [type(error).__name__, str(error)] if known else ["FemtuneError", repr(error)]
            _sent(told, 0)
            raise
    told = _sent(told, 0)
    if isinstance(told, list):
        kind, message = told
        raise getattr(errors, kind, FemtuneError)(message)
    result: T = told["result"]
    return result


def gathered(value: T) -> list[T]:
    """Return the JSON values of all processes by rank, in each process."""
    if not _joined():
        return [value]
    return [_sent(value, sender) for sender in range(count())]


def _sent(value: Any, sender: int) -> Any:
    """Return the sender's value in all processes, sent as JSON bytes, because torch would pickle it."""
    device = PartialState().device  # of this process, by which nccl sends
    text = json.dumps(value).encode()
    length = torch.tensor([len(text)], device=device)
    torch.distributed.broadcast(length, sender)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank() == sender:
        data = torch.tensor([*text], dtype=torch.uint8, device=device)
    torch.distributed.broadcast(data, sender)
    return json.loads(bytes(data.tolist()))


def leave() -> None:
    """Leave the job, after all processes are done."""
    if _joined():
        torch.distributed.destroy_process_group()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
