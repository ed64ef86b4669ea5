"""Score continuations pair by pair, for engines that have no pass for several after one prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from femtune.types import Asked

Logprob = Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], list[float]]


def logprobs_by_pairs(logprob: Logprob, asked: Sequence[Asked]) -> list[list[float]]:
    """Return what `Engine.logprobs_after` does, by one call of an engine's `logprob`.

    >>> logprobs_by_pairs(lambda pairs: [-1.0 * len(new) for _, new in pairs], [((7,), [(1,), (1, 2)])])
    [[-1.0, -2.0]]
    """
    pairs = [(prefix, continuation) for prefix, several in asked for continuation in several]
    logprobs = iter(logprob(pairs) if pairs else [])
    return [[next(logprobs) for _ in several] for _, several in asked]
