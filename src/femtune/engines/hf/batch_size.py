"""Rows that the transformers engine writes at a time where nobody says; without torch, for plans."""

from __future__ import annotations

_TOKENS_CPU, _TOKENS_GPU = 512, 1024  # of a row, as it is counted here


def usual_rows(token_bytes: float, gpu_bytes: float | None) -> int:
    """Return how many rows fill their room: of 512 tokens on a CPU, of 1,024 on a GPU.

    They are 8 to 512, or to 1,024 on a GPU. `token_bytes` are those of a token's keys and values. More
    rows are faster until memory is short: bench/RESULTS.md. On a GPU a step of a small model takes as
    long with twice the rows.

    >>> usual_rows(114_688, None), usual_rows(114_688, 80 * 2**30), usual_rows(1, 80 * 2**30)
    (36, 219, 1024)
    """
    most, tokens = (512, _TOKENS_CPU) if gpu_bytes is None else (1024, _TOKENS_GPU)
    return max(8, min(most, int(usual_room(gpu_bytes) // (tokens * token_bytes))))


def usual_kept_bytes(gpu_bytes: float | None) -> int:
    """Return the bytes of keys and values kept for other rows: 3.75% of a GPU.

    >>> usual_kept_bytes(None) // 2**20
    512
    """
    return int(usual_room(gpu_bytes) // (4 if gpu_bytes is None else 8))


def usual_room(gpu_bytes: float | None) -> float:
    """Return the bytes for keys and values of rows being written: 2 GiB, or 0.3 of a GPU."""
    return 2 * 2**30 if gpu_bytes is None else 0.3 * gpu_bytes
