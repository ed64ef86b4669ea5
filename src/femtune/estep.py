"""The E-step's one driver, the same for every scheme.

Problems are worked off in chunks; a chunk's draws are stored before the next begins. In a chunk
there is no barrier: as soon as a problem's last attempt is graded, its next one waits at the head of the
queue, and the engine takes it with the room that it has. A chunk is also the unit of a resume: the same
chunk gives the same requests in the same order, hence the same batches, bit for bit.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from femtune.errors import EngineError
from femtune.prompts import Prompts
from femtune.types import (
    Completion,
    Draw,
    DrawKey,
    Engine,
    Problem,
    Request,
    Sampling,
    Scheme,
    Score,
    Stage,
    Tokenizer,
    draw_seed,
)


class Grade(Protocol):
    """Scores completions: `rewards.score` with its prompts and reward filled in."""

    def __call__(
        self,
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        *,
        hinted: Sequence[bool],
        accept_at: Sequence[float],
    ) -> Sequence[Score]: ...


@dataclass(frozen=True)
class Setup:
    """What draws come from and how they are graded, apart from problems and scheme."""

    engine: Engine
    tokenizer: Tokenizer
    prompts: Prompts
    grade: Grade
    sampling: Sampling
    seed: int = 0  # of the run; each draw's own seed follows from it and its key
    chunk_size: int = 1024  # problems


@dataclass(frozen=True)
class Chunk:
    """What came of one chunk of problems."""

    index: int
    draws: list[Draw]  # in order of problem, then key
    engine_s: float  # wall time in the engine; the rest of `total_s` is the driver's own work
    total_s: float


def upcoming(stages: Sequence[Stage], tries: Sequence[Draw]) -> list[tuple[int, int]]:
    """What to ask of a problem next, as (stage, index), once all of `tries` are graded; [] when done.

    A stage for the unsolved asks one at a time and stops at the first accepted draw, of this stage or an
    earlier one; a stage for all asks its draws together.

    >>> upcoming([Stage("plain"), Stage("hinted")], [])
    [(0, 0)]
    """
    solved = any(draw.accepted for draw in tries)
    current = tries[-1].key.stage if tries else 0
    for number, stage in enumerate(stages[current:], current):
        asked = sum(draw.key.stage == number for draw in tries)
        if stage.ask == "all" and asked == 0:
            return [(number, index) for index in range(stage.draws)]
        if stage.ask == "unsolved" and not solved and asked < stage.draws:
            return [(number, asked)]
    return []


def e_step(
    problems: Sequence[Problem],
    scheme: Scheme,
    setup: Setup,
    *,
    iteration: int,
    skip: Callable[[int], bool] = lambda index: False,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Iterator[Chunk]:
    """Draw from q(. | x, y*) chunk by chunk; the caller stores each before asking for the next.

    `skip(index)` is True for chunks that are stored already; `on_draws` sees draws as they are graded,
    for progress. Holds one chunk's draws at a time. Raises what the engine or the grading raises.
    """
    for index, begin in enumerate(range(0, len(problems), setup.chunk_size)):
        if not skip(index):
            asker = _Asker(problems[begin : begin + setup.chunk_size], scheme, setup, iteration)
            yield _work_off(index, asker, setup, on_draws)


def _work_off(
    index: int, asker: _Asker, setup: Setup, on_draws: Callable[[Sequence[Draw]], None]
) -> Chunk:
    started = time.perf_counter()
    own_s = 0.0

    def pull(room: int) -> list[Request]:
        nonlocal own_s
        begun = time.perf_counter()
        requests = asker.pull(room)
        own_s += time.perf_counter() - begun
        return requests

    for finished in setup.engine.generate(pull, setup.sampling):
        begun = time.perf_counter()
        on_draws(asker.graded(finished))
        own_s += time.perf_counter() - begun

    if lost := asker.unanswered():
        raise EngineError(f"the engine ended without an answer for {len(lost)} problems: {lost[:3]}.")
    draws = [draw for tries in asker.tries.values() for draw in tries]
    total_s = time.perf_counter() - started
    return Chunk(index, draws, total_s - own_s, total_s)


class _Asker:
    """Which request comes next, and what has come back: the state of one chunk."""

    def __init__(
        self, problems: Sequence[Problem], scheme: Scheme, setup: Setup, iteration: int
    ) -> None:
        self.tries: dict[str, list[Draw]] = {problem.id: [] for problem in problems}
        self._problems = {problem.id: problem for problem in problems}
        self._scheme, self._setup, self._iteration = scheme, setup, iteration
        self._fresh = iter(problems)
        self._queue: deque[Request] = deque()
        self._open: defaultdict[str, int] = defaultdict(int)  # requests of a problem not yet graded
        self._tokens: dict[tuple[str, str], tuple[int, ...]] = {}  # retries share their prompt

    def pull(self, room: int) -> list[Request]:
        # retries first: a long chain of attempts that starts late is what leaves the batch empty
        while len(self._queue) < room and (problem := next(self._fresh, None)):
            self._ask(problem)
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def graded(self, finished: Sequence[tuple[Request, Completion]]) -> list[Draw]:
        problems = [self._problems[request.key.problem_id] for request, _ in finished]
        names = [self._scheme.stages[request.key.stage].prompt for request, _ in finished]
        completions = [completion for _, completion in finished]
        at = self._scheme.accept_at
        scores = self._setup.grade(
            problems,
            completions,
            hinted=[name == "hinted" for name in names],
            accept_at=[at(request) if callable(at) else at for request, _ in finished],
        )
        draws = [
            Draw(request.key, name, request.seed, completion, score)
            for (request, completion), name, score in zip(finished, names, scores, strict=True)
        ]
        for draw, problem in zip(draws, problems, strict=True):
            self.tries[problem.id].append(draw)
            self._open[problem.id] -= 1
            if self._open[problem.id] == 0:
                self.tries[problem.id].sort(key=lambda draw: draw.key)
                self._ask(problem)
        return draws

    def unanswered(self) -> list[str]:
        """Ids of problems that wait for a draw still, or were never asked."""
        return [name for name in self.tries if self._open[name] or not self.tries[name]]

    def _ask(self, problem: Problem) -> None:
        for number, index in upcoming(self._scheme.stages, self.tries[problem.id]):
            key = DrawKey(self._iteration, problem.id, number, index)
            tokens = self._prompt_tokens(self._scheme.stages[number].prompt, problem)
            self._queue.append(Request(key, tokens, draw_seed(self._setup.seed, key)))
            self._open[problem.id] += 1

    def _prompt_tokens(self, name: str, problem: Problem) -> tuple[int, ...]:
        tokens = self._tokens.get((name, problem.id))
        if tokens is None:
            messages = self._setup.prompts.render(name, problem)
            tokens = self._tokens[name, problem.id] = self._setup.tokenizer.encode_prompt(messages)
        return tokens
