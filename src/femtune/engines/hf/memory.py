"""Memory that runs out, how it is given back, and zeros that take memory only where they are written."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

# torch.OutOfMemoryError is a GPU's; the CPU's allocator and cuBLAS raise RuntimeErrors that say
_SAID = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
_MAPPED_LEAST = 1 << 20  # bytes of zeros that are mapped, at least


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
    trim()


def trim() -> None:
    """Return freed memory of this process to the system: glibc keeps gigabytes of it."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries lack the call
        ctypes.CDLL(None).malloc_trim(0)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return zeros of a tensor's dtype and device.

    On a CPU large ones are mapped apart from the C library's heap. They take memory only where they are
    written, and are returned to the system as soon as they are freed. Raises MemoryError.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < _MAPPED_LEAST:
        return like.new_zeros(tuple(shape))
    try:
        mapped = mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY)  # private: no file, not shared
    except OSError as error:
        raise MemoryError(f"can't map {num_bytes:,} bytes: {error}") from error
    return torch.frombuffer(mapped, dtype=like.dtype).view(*shape)
