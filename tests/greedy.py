"""The same questions for every engine, answered greedily by the demo model, cut and forced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from femtune.data.answer_format import parse_format
from femtune.data.prompts import Prompts
from femtune.data.truncation import Cut
from femtune.data.worlds import SEEDLING, WORLDS, make_splits
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.rewards.builtin import exact
from femtune.rewards.builtin import score as graded
from femtune.schemes.filters import Accepted
from femtune.types import Draw, Problem, Sampling, Scheme, Stage

# the first closes after the first line of a sum, the second where a model writes an answer, if it does
FORMATS = (r"regex:write (\d), carry \d\.$", "line")
ONCE = Scheme("once", (Stage("plain", 1, "all"),), weigh=Accepted())


@cache
def questions() -> tuple[Problem, ...]:
    """Of four worlds, without their instructions: the model often gives no answer, or goes on."""
    return tuple(
        problem
        for name in ("sums", "quiz", "rubric", "tldr-axis")
        for problem in make_splits(WORLDS[name], 8, 1, seed=0)[0][:5]
    )


def greedy_draws(engine: Any, spec: str) -> list[Draw]:
    """Draws of the real E-step in that answer format, forced where there is no answer."""
    prompts = Prompts(instruction="", format=parse_format(spec))

    def grade(problems: Any, completions: Any, **more: Any) -> Any:
        return graded(problems, completions, prompts=prompts, reward=exact(), **more)

    made = Sampler(
        engine,
        engine.tokenizer,
        prompts,
        grade,
        Sampling(40, temperature=0.0),
        cut=Cut(prompts.format, engine.tokenizer),
        context=512,
        force="all",
    )
    [chunk] = e_step(questions(), ONCE, made, iteration=1)
    return chunk.draws


def assert_same(draws: Sequence[Draw], expected: Sequence[Draw], spec: str) -> None:
    """Tokens, ends and scores alike; log-probabilities to a thousandth, where both are known."""
    assert len(draws) == len(expected)
    known = 0
    for draw, other in zip(draws, expected, strict=True):
        one, two = draw.completion, other.completion
        assert (draw.key, one.tokens, one.text) == (other.key, two.tokens, two.text)
        assert (one.finish_reason, one.num_forced) == (two.finish_reason, two.num_forced)
        assert draw.score == other.score
        if not (math.isnan(one.logprob) or math.isnan(two.logprob)):
            assert one.logprob == pytest.approx(two.logprob, abs=1e-3)
            known += 1
    forced = [draw.completion.num_forced > 0 for draw in draws]
    reasons = [draw.completion.finish_reason for draw in draws]
    if spec == "line":
        assert sum(forced) >= 3
    else:
        assert not any(forced) and reasons.count("answered") >= 4
    assert known == len(draws) - sum(forced)


class Model:
    """The demo model as transformers runs it, token by token without a cache: for a server's answers."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.coder: Any = transformers.AutoTokenizer.from_pretrained(SEEDLING)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32)

    @torch.inference_mode()
    def __call__(
        self, prompt: Sequence[int], most: int, temperature: float, seed: int
    ) -> tuple[list[int], list[float]]:
        """Tokens up to the end token or `most`, and the nats of each at temperature 1."""
        rng = torch.Generator().manual_seed(seed)
        tokens, logprobs = list(prompt), list[float]()
        while len(logprobs) < most and (not logprobs or tokens[-1] != self.coder.eos_token_id):
            logits = self._model(input_ids=torch.tensor([tokens]), logits_to_keep=1).logits[0, -1]
            token = int(logits.argmax())
            if temperature >= 0.1:
                token = int((logits / temperature).softmax(-1).multinomial(1, generator=rng))
            tokens.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))
        return tokens[len(prompt) :], logprobs
