"""A world small enough to know all of it: x, z and y are categories, the model is four tables.

    prompt "x0"      hinted prompt "x0\\n\\nThe correct answer is y1."      completion "z3\\nAnswer: y1"

Its joint law, posterior and likelihood are sums of a few terms, so the laws of schemes are exact
numbers here. `ask` puts it behind the real driver, prompts, parsing and grading; `e_steps` behind the
loop's E-step, which scores draws, remembers them, and stores examples.

`Endings` is a second one, whose completions may end without an answer, be truncated, or go on after
their answer: an autoregressive model over bytes, of which the law of every prefix is known.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from femtune.data.answer_format import parse_format
from femtune.data.prompts import Prompts, prompt_text
from femtune.data.truncation import Cut
from femtune.engines.fake import END, ByteTokenizer, FakeEngine, Write
from femtune.estep.driver import e_step
from femtune.estep.forced_answers import Force
from femtune.estep.scheduler import Lease, OpenChunk, Sampler
from femtune.estep.scoring import ScoredDraws
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.rewards.builtin import exact, score
from femtune.runs.run import Run
from femtune.types import Completion, Demo, Demos, Draw, FinishReason, Problem, Request, Sampling, Scheme

PROMPTS = Prompts(instruction="", hint="The correct answer is {answer}.")


@dataclass(frozen=True, eq=False)
class Tables:
    """Logits of pi(z | x), pi(y | x, z), and of both once more where y* is told."""

    z: torch.Tensor  # [X, Z]
    y: torch.Tensor  # [X, Z, Y]
    hinted_z: torch.Tensor  # [X, Y*, Z]
    hinted_y: torch.Tensor  # [X, Y*, Z, Y]

    @classmethod
    def random(cls, seed: int, num_x: int = 3, num_z: int = 4, num_y: int = 3) -> Tables:
        """Normal logits: 3·4 + 3·4·3 + 3·3·4 + 3·3·4·3 = 192 of them."""
        shapes = (num_x, num_z), (num_x, num_z, num_y)
        hinted = (num_x, num_y, num_z), (num_x, num_y, num_z, num_y)
        rng = torch.Generator().manual_seed(seed)
        return cls(*(torch.randn(s, generator=rng, dtype=torch.float64) for s in (*shapes, *hinted)))

    def joint(self, x: int, told: int | None = None) -> torch.Tensor:
        """p(z, y | x), or p(z, y | x, y*) under the hint: [Z, Y]."""
        z = self.z[x] if told is None else self.hinted_z[x, told]
        y = self.y[x] if told is None else self.hinted_y[x, told]
        return (z.log_softmax(-1)[:, None] + y.log_softmax(-1)).exp()

    def write(self, prompt: str, seed: int) -> str:
        """A completion, by the inverse of the joint's distribution function at seed / 2^63."""
        number = bisect(self._below(prompt), seed / 2**63)
        z, y = divmod(number, self.y.shape[2])
        return f"z{z}\nAnswer: y{y}"

    def logprob(self, prompt: str, completion: str) -> float:
        """Log-probability of a completion: log pi, or log q after a hinted prompt."""
        found = re.fullmatch(r"z(\d+)\nAnswer: y(\d+)", completion)
        return self._logprobs(prompt)[int(found[1])][int(found[2])] if found else -math.inf

    @cache  # noqa: B019  (tables are few, and live as long as the tests)
    def _below(self, prompt: str) -> list[float]:
        return self._asked(prompt).flatten().cumsum(0)[:-1].tolist()

    @cache  # noqa: B019
    def _logprobs(self, prompt: str) -> list[list[float]]:
        return self._asked(prompt).log().tolist()

    def _asked(self, prompt: str) -> torch.Tensor:
        told = re.search(r"answer is y(\d+)", prompt)
        return self.joint(int(prompt[1]), int(told[1]) if told else None).detach()


# The toy of the design: completions z0..z2, right (y1) or wrong (y0); right with 0.2 plain, 0.8 hinted.
PLAIN = torch.tensor([[0.3, 0.10], [0.3, 0.07], [0.2, 0.03]], dtype=torch.float64)
HINTED = torch.tensor([[0.10, 0.100], [0.06, 0.176], [0.04, 0.524]], dtype=torch.float64)


def toy() -> Tables:
    """One x, on which PLAIN and HINTED are [Z, Y] of y0 and y1, of which y1 is right."""
    z, y = PLAIN.sum(1).log(), PLAIN.log()
    hinted_z, hinted_y = HINTED.sum(1).log(), HINTED.log()
    return Tables(z[None], y[None], hinted_z.expand(1, 2, 3), hinted_y.expand(1, 2, 3, 2))


def problem(name: str, x: int, y: int) -> Problem:
    """(x, y*) under a name of its own."""
    return Problem(name, f"x{x}", f"y{y}")


def drawn(draw: Draw) -> tuple[int, int]:
    """(z, y) of a draw that could be read."""
    return int(draw.score.rationale[1:]), int(draw.score.answer[1:])


def sampler(engine: FakeEngine, *, seed: int = 0, chunk_size: int = 1024) -> Sampler:
    """Graded by exact match; completions are of at most 15 bytes and an end."""
    grade = partial(score, prompts=PROMPTS, reward=exact())
    return Sampler(
        engine, engine.tokenizer, PROMPTS, grade, Sampling(16), seed=seed, chunk_size=chunk_size
    )


def ask(write: Write, problems: Sequence[Problem], scheme: Scheme, *, seed: int = 0) -> list[Draw]:
    """All draws of an E-step by the real driver."""
    engine = FakeEngine(write, room=256)
    chunks = e_step(problems, scheme, sampler(engine, seed=seed), iteration=1)
    return [draw for chunk in chunks for draw in chunk.draws]


class TableEngine(FakeEngine):
    """Serves the tables of that number: weights are named by it."""

    def __init__(self, thetas: Sequence[Tables]) -> None:
        super().__init__(
            lambda prompt, seed: self.theta.write(prompt, seed),
            logprob_of=lambda prompt, text: self.theta.logprob(prompt, text),
            room=256,
        )
        self.thetas = thetas

    def load(self, weights: Path) -> None:
        super().load(weights)
        self.theta = self.thetas[int(weights.name)]


class TableSteps(Steps):
    """The loop over tables: theta_k is the k-th of them, from then on the last one."""

    def weights(self, iteration: int) -> Path:
        return Path("tables") / str(min(iteration, len(self.sampler.engine.thetas) - 1))

    def scoring(self, iteration: int) -> list[Draw]:
        """What the rules of an iteration were given."""
        return [draw for chunk in self._stored(iteration) for draw in chunk]

    def remembered(self, iteration: int) -> list[Draw]:
        """What was remembered of the iterations before."""
        scoring = self._stored(iteration)
        return [draw for index in scoring.indices for draw in scoring.remembered(index)]

    def _stored(self, iteration: int) -> ScoredDraws:
        return ScoredDraws(self.run, iteration, self.problems, self.config.scheme, self.sampler)

    def examples(self, iteration: int) -> list[dict[str, Any]]:
        """The rows that an iteration trains on."""
        return pq.read_table(self.run.iteration(iteration) / "examples.parquet").to_pylist()


def table_steps(
    root: Path,
    thetas: Sequence[Tables],
    problems: Sequence[Problem],
    scheme: Scheme,
    *,
    chunk_size: int = 1024,
    seed: int = 0,
) -> TableSteps:
    """A run in a folder, of which `e_step(k)` is the real E-step k."""
    engine = TableEngine(thetas)
    plan = LoopConfig(scheme=scheme, training=Training(), evaluation=Evaluation())
    made = sampler(engine, seed=seed, chunk_size=chunk_size)
    tokenizer: Any = engine.tokenizer
    return TableSteps(
        run=Run(root),
        base=Path("tables/0"),
        problems=problems,
        eval_problems=[],
        config=plan,
        sampler=made,
        tokenizer=tokenizer,
        progress=Quiet(),
    )


# --- completions that end in all ways

DEMOS = (Demo("x8", "y0", "z0\nAnswer: y0"),)
TAILS = ("\nx5?", "\nIndeed.")  # of what is written after an answer
# the last two: too long to give an answer within `MOST_TOKENS`, and with a cue that gives none
RATIONALES = ("z0", "z1", "z2 is a rather long one", "z0\nAnswer: ...")
MOST_TOKENS = 26
Law = Mapping[tuple[int, ...], float]  # of whole completions, the end token included


@dataclass(frozen=True, eq=False)
class Endings:
    """Chances under one prompt: of each rationale z, of how it ends, of y, and of what follows it."""

    z: torch.Tensor  # [Z]
    ends: torch.Tensor  # [Z, 4]: without an answer, with it, after more, truncated before it
    y: torch.Tensor  # [Z, Y]
    tail: torch.Tensor  # [Z, Y, 2]

    @classmethod
    def random(cls, rng: torch.Generator, num_z: int = 4, num_y: int = 2) -> Endings:
        shapes = (num_z,), (num_z, 4), (num_z, num_y), (num_z, num_y, 2)
        return cls(*(torch.randn(s, generator=rng, dtype=torch.float64).softmax(-1) for s in shapes))

    @property
    def law(self) -> dict[tuple[int, ...], float]:
        """The chance of each whole completion."""
        found: dict[str, float] = {}
        for z, said in enumerate(RATIONALES[: len(self.z)]):
            none, answer, more, long = (self.z[z] * self.ends[z]).tolist()
            found[said] = none
            found[f"{said}, and so on, and so on, and so on"] = long
            for y, share in enumerate(self.y[z].tolist()):
                text = f"{said}\nAnswer: y{y}"
                found[text] = answer * share
                for tail, part in zip(TAILS, self.tail[z, y].tolist(), strict=True):
                    found[text + tail] = more * share * part
        return {(*text.encode(), END): chance for text, chance in found.items()}

    def right(self, y: int) -> dict[tuple[int, ...], float]:
        """pi(z, y) of each completion as it is cut."""
        found = {}
        for z, said in enumerate(RATIONALES[: len(self.z)]):
            text = f"{said}\nAnswer: y{y}".encode()
            _, answer, more, _ = (self.z[z] * self.ends[z] * self.y[z, y]).tolist()
            found[(*text, END)], found[(*text, 10)] = answer, more
        return found


class EndingsEngine(FakeEngine):
    """Draws from laws by prompt, at any temperature, also from the middle of a completion.

    `early`: it stops where an answer is closed, and knows how likely it drew what it gives.
    """

    def __init__(self, laws: Mapping[str, Law], *, early: bool = True, room: int = 256) -> None:
        super().__init__(lambda prompt, seed: "", room=room)
        self.prompts = sorted((tuple(prompt.encode()) for prompt in laws), key=len, reverse=True)
        self.laws = {tuple(prompt.encode()): law for prompt, law in laws.items()}
        self.early = early
        self.thetas = [None]  # for TableSteps
        # of each start of a completion after a prompt, the mass of every token that may follow it
        self._next: dict[tuple[int, ...], dict[int, float]] = {}
        for prompt, law in self.laws.items():
            for whole, chance in law.items():
                for at in range(len(whole) if chance else 0):
                    masses = self._next.setdefault((*prompt, *whole[:at]), {})
                    masses[whole[at]] = masses.get(whole[at], 0.0) + chance
        self._known: dict[Any, Any] = {}

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        return [math.fsum(self._logprobs_of(prompt, tokens, 1.0)) for prompt, tokens in pairs]

    def following(self, tokens: tuple[int, ...], temperature: float) -> Law:
        """The law of what is written after a prompt, or a prompt and the start of a completion."""
        if (tokens, temperature) not in self._known:
            prompt = next(p for p in self.prompts if tokens[: len(p)] == p)
            begun = tokens[len(prompt) :]
            rests = [
                whole[len(begun) :]
                for whole, chance in self.laws[prompt].items()
                if whole[: len(begun)] == begun and chance
            ]
            self._known[tokens, temperature] = {
                rest: math.exp(math.fsum(self._logprobs_of(tokens, rest, temperature))) for rest in rests
            }
        found: Law = self._known[tokens, temperature]
        return found

    def written(self, request: Request, whole: tuple[int, ...], sampling: Sampling) -> Completion:
        """What is given where the model writes this."""
        asked = request.tokens, whole, request.most_tokens(sampling), sampling.temperature
        if asked not in self._known:
            self._known[asked] = self._written(request, whole, sampling)
        found: Completion = self._known[asked]
        return found

    def _written(self, request: Request, whole: tuple[int, ...], sampling: Sampling) -> Completion:
        tokens = whole[: request.most_tokens(sampling)]
        reason: FinishReason = "stop" if tokens == whole else "length"
        if self.early and sampling.cut is not None:
            place = sampling.cut([*request.cue, *(token for token in tokens if token != END)])
            if place is not None:
                tokens, reason = tokens[: place - len(request.cue)], "answered"
        logprobs, drawn = (
            self._logprobs_of(request.tokens, tokens, t) for t in (1.0, sampling.temperature)
        )
        return Completion(
            tokens,
            self.tokenizer.decode(tokens),
            reason,
            math.fsum(logprobs),
            drawn_logprob=math.fsum(drawn) if self.early else math.nan,
            token_logprobs=None if self.early else tuple(logprobs),
        )

    def _complete(self, request: Request, sampling: Sampling) -> Completion:
        wholes, chances = zip(*self.following(request.tokens, sampling.temperature).items(), strict=True)
        place = bisect([*accumulate(chances)][:-1], request.seed / 2**63)
        return self.written(request, wholes[place], sampling)

    def _logprobs_of(
        self, prompt: Sequence[int], tokens: Sequence[int], temperature: float
    ) -> list[float]:
        """Nats of each token, drawn at a temperature."""
        found, begun = [], tuple(prompt)
        for token in tokens:
            masses = self._next.get(begun, {})
            if token not in masses:
                return [-math.inf]
            total = math.fsum(mass ** (1 / temperature) for mass in masses.values())
            found.append(math.log(masses[token]) / temperature - math.log(total))
            begun = (*begun, token)
        return found


@dataclass(frozen=True, eq=False)
class EndingsWorld:
    """One problem, its three prompts, and the law of each."""

    plain: Endings
    hinted: Endings
    shown: Endings  # plain, with DEMOS before it
    problem: Problem

    @classmethod
    def random(cls, seed: int, num_z: int = 4) -> EndingsWorld:
        """One whose answer is y1."""
        rng = torch.Generator().manual_seed(seed)
        return cls(*(Endings.random(rng, num_z) for _ in range(3)), Problem("p", "x0", "y1"))

    def engine(self, **settings: Any) -> EndingsEngine:
        shown = PROMPTS.with_demos(DEMOS)
        laws = {
            prompt_text(PROMPTS.plain(self.problem)): self.plain.law,
            prompt_text(PROMPTS.hinted(self.problem)): self.hinted.law,
            prompt_text(shown.plain(self.problem)): self.shown.law,
            prompt_text(shown.hinted(self.problem)): self.shown.law,
        }
        return EndingsEngine(laws, **settings)

    def sampler(
        self,
        *,
        temperature: float = 1.0,
        force: Force = "never",
        demos: Demos = (),
        seed: int = 0,
        **settings: Any,
    ) -> Sampler:
        return replace(
            sampler(self.engine(**settings), seed=seed),
            sampling=Sampling(MOST_TOKENS, temperature),
            cut=LINE_CUT,
            force=force,
            demos=demos,
        )


LINE_CUT = Cut(parse_format("line"), ByteTokenizer())


def every_draw(asked: Problem, scheme: Scheme, made: Sampler) -> Iterator[tuple[Draw, float]]:
    """All that may come of a scheme's first request by the real driver, with the chance of each."""
    engine = made.engine
    assert isinstance(engine, EndingsEngine)
    lease = Lease(0, [asked], scheme, made.sampling, 1, demos=made.demos, force=made.force)
    sampling = replace(made.sampling, cut=made.cut)

    def follow(path: list[tuple[int, ...]], chance: float) -> Iterator[tuple[Draw, float]]:
        chunk = OpenChunk(lease, made)
        [request] = chunk.pull(1)
        for whole in path:
            if ready := chunk.settle([(request, engine.written(request, whole, sampling))]):
                [draw] = chunk.grade(ready)
                yield draw, chance
                return
            [request] = chunk.pull(1)
        for whole, share in engine.following(request.tokens, sampling.temperature).items():
            yield from follow([*path, whole], chance * share)

    yield from follow([], 1.0)
