"""A world small enough to know all of it: x, z and y are categories, the model is four tables.

    prompt "x0"      hinted prompt "x0\\n\\nThe correct answer is y1."      completion "z3\\nAnswer: y1"

Its joint law, posterior and likelihood are sums of a few terms, so the laws of schemes are exact
numbers here. `ask` puts it behind the real driver, prompts, parsing and grading.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from femtune.chunks import Setup
from femtune.engines.fake import FakeEngine, Write
from femtune.estep import e_step
from femtune.prompts import Prompts
from femtune.rewards import exact, score
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

    @cache  # noqa: B019  (tables are few, and live as long as the tests)
    def _below(self, prompt: str) -> list[float]:
        told = re.search(r"answer is y(\d+)", prompt)
        joint = self.joint(int(prompt[1]), int(told[1]) if told else None)
        return joint.flatten().cumsum(0)[:-1].tolist()


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
