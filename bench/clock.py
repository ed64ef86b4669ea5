"""Seconds as benchmarks count them on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def clock(device: str) -> Callable[[], float]:
    """A clock for work on `device`, "cpu" or "cuda".

    On a CPU it is the processor's, so that neighbours on the machine count little. A GPU works on while
    Python waits: there it is the wall's, read when the GPU has nothing left to do.
    """
    if device == "cpu":
        return time.process_time

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited
