"""A world small enough to know all of it: x, z and y are categories, the model is four tables.

    prompt "x0"      hinted prompt "x0\\n\\nThe correct answer is y1."      completion "z3\\nAnswer: y1"

Its joint law, posterior and likelihood are sums of a few terms, so the laws of schemes are exact
numbers here. `ask` puts it behind the real driver, prompts, parsing and grading; `e_steps` behind the
loop's E-step, which scores draws, remembers them, and stores examples.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from femtune.chunks import Setup
from femtune.engines.fake import FakeEngine, Write
from femtune.estep import e_step
from femtune.loop import Evaluation, Plan, Steps
from femtune.progress import Quiet
from femtune.prompts import Prompts
from femtune.rewards import exact, score
from femtune.run import Run
from femtune.training import Training
from femtune.tries import Tries
from femtune.types import Draw, Problem, Sampling, Scheme

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

    def nats(self, prompt: str, completion: str) -> float:
        """Log-probability of a completion: log pi, or log q after a hinted prompt."""
        found = re.fullmatch(r"z(\d+)\nAnswer: y(\d+)", completion)
        return self._nats(prompt)[int(found[1])][int(found[2])] if found else -math.inf

    @cache  # noqa: B019  (tables are few, and live as long as the tests)
    def _below(self, prompt: str) -> list[float]:
        return self._asked(prompt).flatten().cumsum(0)[:-1].tolist()

    @cache  # noqa: B019
    def _nats(self, prompt: str) -> list[list[float]]:
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


def setup(engine: FakeEngine, *, seed: int = 0, chunk_size: int = 1024) -> Setup:
    """Graded by exact match; completions are of at most 15 bytes and an end."""
    grade = partial(score, prompts=PROMPTS, reward=exact())
    return Setup(engine, engine.tokenizer, PROMPTS, grade, Sampling(16), seed, chunk_size)


def ask(write: Write, problems: Sequence[Problem], scheme: Scheme, *, seed: int = 0) -> list[Draw]:
    """All draws of an E-step by the real driver."""
    engine = FakeEngine(write, room=256)
    chunks = e_step(problems, scheme, setup(engine, seed=seed), iteration=1)
    return [draw for chunk in chunks for draw in chunk.draws]


class TableEngine(FakeEngine):
    """Serves the tables of that number: weights are named by it."""

    def __init__(self, thetas: Sequence[Tables]) -> None:
        super().__init__(
            lambda prompt, seed: self.theta.write(prompt, seed),
            nats=lambda prompt, text: self.theta.nats(prompt, text),
            room=256,
        )
        self.thetas = thetas

    def load(self, weights: Path) -> None:
        super().load(weights)
        self.theta = self.thetas[int(weights.name)]


class TableSteps(Steps):
    """The loop over tables: theta_k is the k-th of them, from then on the last one."""

    def weights(self, iteration: int) -> Path:
        return Path("tables") / str(min(iteration, len(self.setup.engine.thetas) - 1))

    def tries(self, iteration: int) -> list[Draw]:
        """What the rules of an iteration were given."""
        return [draw for chunk in self._stored(iteration) for draw in chunk]

    def recalled(self, iteration: int) -> list[Draw]:
        """What was remembered of the iterations before."""
        tries = self._stored(iteration)
        return [draw for index in tries.indices for draw in tries.recalled(index)]

    def _stored(self, iteration: int) -> Tries:
        return Tries(self.run, iteration, self.problems, self.plan.scheme, self.setup)

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
    """A run in a folder, of which `expect(k)` is the real E-step k."""
    engine = TableEngine(thetas)
    plan = Plan(scheme, Training(), Evaluation())
    made = setup(engine, seed=seed, chunk_size=chunk_size)
    tokenizer: Any = engine.tokenizer
    return TableSteps(Run(root), Path("tables/0"), problems, [], plan, made, tokenizer, Quiet())
