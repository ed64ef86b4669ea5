"""Requests to an engine in bytes as tokens, and what it wrote, for the tests of engines."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from femtune.types import Completion, DrawKey, Engine, Request, Sampling

NORMAL = Sampling(max_new_tokens=24)


def requests(num: int, longest: int = 40) -> list[Request]:
    """Prompts of 1 to `longest` tokens, each with a seed of its own."""
    rng = random.Random(num)
    rows = [tuple(rng.choices(range(256), k=rng.randint(1, longest))) for _ in range(num)]
    return [Request(DrawKey(1, str(i), 0, 0), row, 2**62 + i) for i, row in enumerate(rows)]


def pull_from(todo: list[Request]) -> Callable[[int], Sequence[Request]]:
    def pull(room: int) -> Sequence[Request]:
        given, todo[:room] = todo[:room], []
        return given

    return pull


def run(engine: Engine, asked: Sequence[Request], sampling: Sampling = NORMAL) -> dict[str, Completion]:
    """Completions by problem id; each request must end once."""
    finished = [pair for part in engine.generate(pull_from(list(asked)), sampling) for pair in part]
    assert len(finished) == len(asked)
    return {request.key.problem_id: completion for request, completion in finished}


def tokens_of(done: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {name: completion.tokens for name, completion in done.items()}
