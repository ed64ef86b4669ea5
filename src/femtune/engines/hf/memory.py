"""Memory that runs out: how torch says so, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

import torch

# torch.OutOfMemoryError is a GPU's; the CPU's allocator and cuBLAS raise RuntimeErrors that say
_SAID = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def give_back(device: torch.device) -> None:
    """Free what nothing refers to, and return memory that torch or the C library only holds on to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # glibc keeps freed blocks: gigabytes after an M-step; other C libraries lack the call
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
