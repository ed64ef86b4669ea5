"""Rows that the transformers engine writes at a time where nobody says; without torch, for plans."""

from __future__ import annotations

TOKENS = 1024  # of a row, as it is counted here


def usual_rows(token_bytes: float, gpu_bytes: float | None) -> int:
    """As many rows of 1,024 tokens as fill 4 GiB, or 0.3 of a GPU; 8 to 512, or to 1,024 on a GPU.

    `token_bytes` are those of a token's keys and values. More rows are faster until memory is short:
    bench/RESULTS.md. On a GPU a step of a small model takes as long with twice the rows.

    >>> usual_rows(114_688, None), usual_rows(114_688, 80 * 2**30), usual_rows(1, 80 * 2**30)
    (36, 219, 1024)
    """
    most = 512 if gpu_bytes is None else 1024
    return max(8, min(most, int(_room(gpu_bytes) // (TOKENS * token_bytes))))


def usual_kept_bytes(gpu_bytes: float | None) -> int:
    """Return the bytes of keys and values kept for other rows: an eighth of the room for rows.

    >>> usual_kept_bytes(None) // 2**20
    512
    """
    return int(_room(gpu_bytes) // 8)


def _room(gpu_bytes: float | None) -> float:
    """Return the bytes for the keys and values of rows being written."""
    return 4 * 2**30 if gpu_bytes is None else 0.3 * gpu_bytes
