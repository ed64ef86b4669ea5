"""Answers to development problems under sets of worked examples: asked once, stored, within a budget.

    iteration-002/selection/00003.parquet    the draws of the fourth question of this M-step's search

One greedy draw of each problem under each set. A draw's `demos` names its set, so what an earlier
iteration has asked is known here for nothing. On resume the search asks the same again, reads what is
stored, and counts it as it was counted: so a killed run ends with the same choice and pays for nothing
twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from femtune.data.demos import demos_digest
from femtune.data.problems import asked_key
from femtune.estep.forced_answers import FORCED_TOKENS
from femtune.estep.scheduler import Lease, Sampler
from femtune.estep.together import work_off_together
from femtune.evaluation.evaluate import is_right
from femtune.runs.draws import drawn, read_shard
from femtune.runs.run import Run
from femtune.schemes.filters import paper_filter
from femtune.types import Demos, Draw, Problem, Scheme, Stage

KIND = "selection"  # the folder of an iteration's draws
BYTES_A_MESSAGE = 32  # of a chat template around each message, at most
Wanted = dict[str, tuple[Demos, list[Problem]]]  # by digest: a set, and the problems to ask under it


@dataclass(frozen=True)
class Selection:
    """The number of worked examples to choose, and the limits of what the choice may cost."""

    num_examples: int = 8
    requests: int = 600  # to the model; an answer that had to be forced takes two
    tokens: int | None = None  # of prompts and completions; None: no limit


@dataclass
class Spent:
    """Counts of what an M-step has spent on answers."""

    answers: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens


def halves(problems: Sequence[Problem], seed: int) -> tuple[list[Problem], list[Problem]]:
    """Return problems to compare sets on, and problems to confirm the winner on, in random order.

    What one cluster or pair has is on one side. The order depends on seed and problems alone.
    """

    def place(unit: str) -> bytes:
        return hashlib.blake2b(f"selection\x00{seed}\x00{unit}".encode(), digest_size=8).digest()

    units: dict[str, list[Problem]] = {}
    for problem in problems:
        units.setdefault(asked_key(problem), []).append(problem)
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for unit in sorted(units, key=place):
        side = len(sides[0]) > len(sides[1])
        sides[side].extend(units[unit])
    return sides


class DevelopmentAnswers:
    """The model's answers to development problems under sets of worked examples.

    `sampler` is for the evaluation of the base, greedy and without examples; `serve` loads the base,
    before the first question of a process.
    """

    def __init__(
        self,
        run: Run,
        iteration: int,
        problems: Sequence[Problem],
        sampler: Sampler,
        limits: Selection,
        *,
        serve: Callable[[], None] = lambda: None,
        on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
    ) -> None:
        self.run, self.iteration, self.sampler, self.limits = run, iteration, sampler, limits
        self.comparing, self.confirming = halves(problems, sampler.seed)
        self.spent, self.seconds = Spent(), 0.0
        self.reserved = 0  # answers that the search leaves to the guard
        self._serve, self._on_draws = serve, on_draws
        self._known: dict[tuple[str, str], Draw] = {}
        self._lengths: dict[tuple[str, str], int] = {}
        self._num_asked = 0
        for earlier in range(1, iteration):
            folder = run.iteration(earlier) / KIND
            if folder.is_dir():
                run.verify(folder)
                self._enter([draw for chunk in drawn(folder) for draw in chunk])

    # --- what the search asks

    @property
    def num_problems(self) -> int:
        return len(self.comparing)

    @property
    def left(self) -> float:
        """Return how many answers the budget pays for, as dear as those so far, without the guard's."""
        each = self.spent.requests / self.spent.answers if self.spent.answers else self._worst[0]
        left = (self.limits.requests - self.spent.requests) / each
        if self.limits.tokens is not None:
            dear = self.spent.tokens / self.spent.answers if self.spent.answers else self._worst[1]
            left = min(left, (self.limits.tokens - self.spent.tokens) / dear)
        return left - self.reserved * self._worst[0] / each

    def right(self, sets: Sequence[Demos], num: int) -> list[int] | None:
        """Return how many of the first problems each set has right; None if that may be too dear."""
        if not self.ask(sets, self.comparing[:num], reserved=self.reserved):
            return None
        return [sum(self.are_right(demos, self.comparing[:num])) for demos in sets]

    # --- any answers

    def ask(self, sets: Sequence[Demos], problems: Sequence[Problem], reserved: int = 0) -> bool:
        """Have each set's answers to problems; False, and nothing asked, if the budget may not do.

        `reserved` answers are left in the budget, each at its most.
        """
        wanted: Wanted = {}
        for demos in sets:
            digest = demos_digest(demos)
            if missing := [each for each in problems if (digest, each.id) not in self._known]:
                wanted[digest] = demos, missing
        if not wanted:
            return True
        if not self._affords(wanted, reserved):
            return False
        place = self.run.shard(self.iteration, KIND, self._num_asked)
        self._num_asked += 1
        self.run.verify(place)
        if not place.exists():
            self._draw(wanted, place)
        draws, timing = read_shard(place)
        self._count(draws, wanted)
        self.seconds += timing.get("total_s", 0.0)
        self._enter(draws)
        return True

    def draws(self, demos: Demos, problems: Sequence[Problem]) -> list[Draw]:
        """Return the draws of problems under a set. Raises KeyError for one that was not asked."""
        return [self._known[demos_digest(demos), problem.id] for problem in problems]

    def are_right(self, demos: Demos, problems: Sequence[Problem]) -> list[bool]:
        """Return which of the problems a set has right."""
        return [is_right(draw) for draw in self.draws(demos, problems)]

    # --- asking

    def _draw(self, wanted: Wanted, place: Path) -> None:
        self._serve()
        scheme = Scheme("evaluate", (Stage("plain", ask="all"),), weigh=paper_filter)
        leases = [
            Lease(
                number,
                missing,
                scheme,
                self.sampler.sampling,
                self.iteration,
                demos=demos,
                force=self.sampler.force,
            )
            for number, (demos, missing) in enumerate(wanted.values())
        ]
        work_off_together(leases, self.sampler, place, self._on_draws)
        self.run.record(place)

    def _enter(self, draws: Sequence[Draw]) -> None:
        for draw in draws:
            own = replace(draw, key=replace(draw.key, index=0))  # as an evaluation has it
            self._known[draw.demos, draw.key.problem_id] = own

    # --- the budget

    @property
    def _may_force(self) -> bool:
        has_way = self.sampler.text_only or bool(self.sampler.prompts.format.cue)
        return self.sampler.force != "never" and has_way

    @property
    def _worst(self) -> tuple[int, int]:
        """Return the most requests of an answer, and its most tokens by the prompts seen so far."""
        written = self.sampler.sampling.max_new_tokens + FORCED_TOKENS * self._may_force
        longest = max(self._lengths.values(), default=0)
        return 1 + self._may_force, (1 + self._may_force) * (longest + written)

    def _affords(self, wanted: Wanted, reserved: int) -> bool:
        """Return True if these answers, and the reserved ones, fit into the budget at their most."""
        for demos, missing in wanted.values():
            for problem in missing:
                self._length(demos, problem)
        num = reserved + sum(len(missing) for _, missing in wanted.values())
        requests, tokens = self._worst
        if self.spent.requests + num * requests > self.limits.requests:
            return False
        return self.limits.tokens is None or self.spent.tokens + num * tokens <= self.limits.tokens

    def _count(self, draws: Sequence[Draw], wanted: Wanted) -> None:
        """Add what draws have cost: a forced answer reads the prompt and the rationale again."""
        by_id = {problem.id: problem for _, missing in wanted.values() for problem in missing}
        for draw in draws:
            made, is_forced = draw.completion, draw.completion.num_forced > 0
            prompt = self._length(wanted[draw.demos][0], by_id[draw.key.problem_id])
            self.spent.answers += 1
            self.spent.generated_tokens += made.num_tokens
            if made.served is not None and made.served.prompt_tokens is not None:
                self.spent.requests += made.served.requests
                self.spent.prompt_tokens += made.served.prompt_tokens
            else:
                self.spent.requests += 1 + is_forced
                self.spent.prompt_tokens += prompt + (prompt + made.num_tokens) * is_forced

    def _length(self, demos: Demos, problem: Problem) -> int:
        """Return the tokens of a problem's prompt with these examples, rendered once.

        Of text, whose tokens only the server counts, half of its bytes: as a rule it is more.
        """
        key = demos_digest(demos), problem.id
        if key not in self._lengths:
            messages = self.sampler.prompts.with_demos(demos).plain(problem)
            if self.sampler.text_only:
                texts = [message["content"].encode() for message in messages]
                self._lengths[key] = sum(BYTES_A_MESSAGE + len(text) for text in texts) // 2
            else:
                self._lengths[key] = len(self.sampler.tokenizer.encode_prompt(messages))
        return self._lengths[key]
