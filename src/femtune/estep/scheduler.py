"""Which request comes next: a scheme's stages, worked off for a chunk of problems.

There is no barrier between attempts: as soon as a problem's last attempt is graded, its next one waits
at the head of the queue, and the engine takes it with the room that it has.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Protocol

from femtune.data.demos import demos_digest
from femtune.data.prompts import Prompts
from femtune.data.truncation import Cut
from femtune.engines.weight_check import ROUNDING, WeightCheck
from femtune.estep.forced_answers import Endings, Finished, Force
from femtune.estep.text_endings import TextEndings
from femtune.types import (
    Completion,
    Demos,
    Draw,
    DrawKey,
    Engine,
    EngineBase,
    Problem,
    Request,
    Resume,
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


class EnginePool(EngineBase, Protocol):
    """Several engines in processes of their own that work off whole chunks: see `ray_pool`."""

    def work_off(self, leases: Iterable[Lease]) -> Iterator[Chunk]:
        """Draw for each lease, in any order; store the draws where the lease says, and give them."""
        ...


@dataclass(frozen=True)
class Sampler:
    """Engine, prompts, grading and sampling: all that draws depend on, but problems and scheme."""

    engine: Engine | EnginePool
    tokenizer: Tokenizer
    prompts: Prompts
    grade: Grade
    sampling: Sampling
    _: KW_ONLY
    seed: int = 0  # of the run; each draw's own seed follows from it and its key
    chunk_size: int = 1024  # problems
    # nats a token by which log-probabilities of engine and M-step may differ: see weight_check.py
    rounding: float = ROUNDING["float32"]
    base_check: WeightCheck | None = None  # what the base gives some completions
    overlap: bool = False  # draw on while the last chunk is graded and stored: see pipeline.py
    resume: Resume = "draws"
    cut: Cut | None = None  # where completions end beside their end token
    context: int | None = None  # tokens that the model takes, where it is known
    # of the draws, not of x: worked examples in their prompts, and whether answers are forced
    demos: Demos = ()
    force: Force = "never"

    @property
    def text_only(self) -> bool:
        """Return True if the engine takes messages and returns text: no prompt is encoded."""
        return self.engine.capabilities.text_only

    def endings(self, force: Force) -> Endings | TextEndings:
        """Return how completions end where answers are forced so."""
        if self.text_only:
            return TextEndings(self.prompts.format, force)
        return Endings(self.tokenizer, self.cut, force, self.context)


@dataclass(frozen=True)
class Lease:
    """A chunk of problems to be worked off, here or by another process."""

    index: int  # of the chunk
    problems: Sequence[Problem]
    scheme: Scheme
    sampling: Sampling
    iteration: int
    _: KW_ONLY
    place: Path | None = None  # where its draws are stored by whom works it off
    demos: Demos = ()
    force: Force = "never"


@dataclass(frozen=True)
class Chunk:
    """Draws of one chunk of problems, and what they took."""

    index: int
    draws: list[Draw]  # in order of problem, then key
    engine_s: float  # wall time in the engine; the rest of `total_s` is the driver's own work
    total_s: float


def upcoming(stages: Sequence[Stage], attempts: Sequence[Draw]) -> list[tuple[int, int]]:
    """Return the next (stage, index) to ask of a problem, given its graded `attempts`; [] when done.

    A stage for the unsolved asks one at a time and stops at the first accepted draw, of this stage or an
    earlier one; a stage for all asks its draws together.

    >>> upcoming([Stage("plain"), Stage("hinted")], [])
    [(0, 0)]
    """
    solved = any(draw.accepted for draw in attempts)
    current = attempts[-1].key.stage if attempts else 0
    for number, stage in enumerate(stages[current:], current):
        asked = {draw.key.index for draw in attempts if draw.key.stage == number}
        # some of them only where a run goes on that was stopped between them
        if stage.ask == "all" and (left := [(number, i) for i in range(stage.draws) if i not in asked]):
            return left
        if stage.ask == "unsolved" and not solved and len(asked) < stage.draws:
            return [(number, len(asked))]
    return []


class OpenChunk:
    """State of a chunk in work: the requests that come next, and the draws that have come back."""

    def __init__(self, lease: Lease, sampler: Sampler) -> None:
        self.lease = lease
        self.attempts: dict[str, list[Draw]] = {problem.id: [] for problem in lease.problems}
        self._problems = {problem.id: problem for problem in lease.problems}
        self._scheme, self._sampler = lease.scheme, sampler
        self._fresh = deque(lease.problems)
        self._queue: deque[Request] = deque()
        self._open: defaultdict[str, int] = defaultdict(int)  # requests of a problem not yet graded
        self._requests: dict[tuple[str, str], Request] = {}  # retries share their prompt
        self._prompts = sampler.prompts.with_demos(lease.demos) if lease.demos else sampler.prompts
        self._demos = demos_digest(lease.demos)
        self._endings = sampler.endings(lease.force)

    def take_up(self, draws: Sequence[Draw]) -> list[Draw]:
        """Enter draws from before this chunk was opened, first of all; gives those that are its own."""
        taken = [draw for draw in draws if draw.key.problem_id in self.attempts]
        for draw in taken:
            self.attempts[draw.key.problem_id].append(draw)
        for name in dict.fromkeys(draw.key.problem_id for draw in taken):
            self.attempts[name].sort(key=lambda draw: draw.key)
            self._ask(self._problems[name])
        self._fresh = deque(problem for problem in self._fresh if not self.attempts[problem.id])
        return taken

    def pull(self, room: int) -> list[Request]:
        """At most `room` requests to hand to the engine now."""
        # retries first: a long chain of attempts that starts late is what leaves the batch empty
        while len(self._queue) < room and self._fresh:
            self._ask(self._fresh.popleft())
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def settle(self, finished: Sequence[Finished]) -> list[Finished]:
        """Return the completions that are whole; those whose answer is forced are asked for it."""
        ready, more = self._endings.settle(finished, self.lease.sampling)
        self._queue.extendleft(reversed(more))
        return ready

    def grade(self, finished: Sequence[Finished]) -> list[Draw]:
        """Score completions. Changes nothing, so that it may run beside `pull`."""
        names = [self._scheme.stages[request.key.stage].prompt_kind for request, _ in finished]
        at = self._scheme.accept_at
        scores = self._sampler.grade(
            [self._problems[request.key.problem_id] for request, _ in finished],
            [completion for _, completion in finished],
            hinted=[name == "hinted" for name in names],
            accept_at=[at(request) if callable(at) else at for request, _ in finished],
        )
        return [
            Draw(
                request.key,
                name,
                request.seed,
                completion,
                score,
                demos=self._demos,
                temperature=self.lease.sampling.temperature,
            )
            for (request, completion), name, score in zip(finished, names, scores, strict=True)
        ]

    def enter(self, draws: Sequence[Draw]) -> None:
        """Take graded draws in, and queue what is to be asked after them."""
        for draw in draws:
            name = draw.key.problem_id
            self.attempts[name].append(draw)
            self._open[name] -= 1
            if self._open[name] == 0:
                self.attempts[name].sort(key=lambda draw: draw.key)
                self._ask(self._problems[name])

    @property
    def is_done(self) -> bool:
        """True if every problem has all its draws."""
        return not self._fresh and not any(self._open.values())

    @property
    def draws(self) -> list[Draw]:
        """All draws so far, in order of problem, then key."""
        return [draw for attempts in self.attempts.values() for draw in attempts]

    def asked(self, request: Request) -> bool:
        """Return True if a request belongs to this chunk."""
        return request.key.problem_id in self._problems

    def unanswered(self) -> list[str]:
        """Ids of problems that wait for a draw still, or were never asked."""
        return [name for name in self.attempts if self._open[name] or not self.attempts[name]]

    def _ask(self, problem: Problem) -> None:
        scheme = self._scheme
        for number, index in upcoming(scheme.stages, self.attempts[problem.id]):
            key = DrawKey(self.lease.iteration, problem.id, number, index)
            first = self._first_request(scheme.stages[number].prompt_kind, problem, key)
            self._queue.append(replace(first, key=key, seed=draw_seed(self._sampler.seed, key)))
            self._open[problem.id] += 1

    def _first_request(self, name: str, problem: Problem, key: DrawKey) -> Request:
        """Return a request with the prompt of that name, in tokens or messages, made once."""
        request = self._requests.get((name, problem.id))
        if request is None:
            messages = self._prompts.render(name, problem)
            if self._sampler.text_only:
                request = Request(key, (), 0, messages=tuple(messages))
            else:
                request = Request(key, self._sampler.tokenizer.encode_prompt(messages), 0)
            self._requests[name, problem.id] = request
        return request
