"""What a vLLM engine is asked, piece by piece: prompts, sampling parameters, and pairs to score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from femtune.types import Tokens

# Requests that wait in vLLM at most, by max_batch: a row that ends is followed at once, and requests
# are sent in bursts, when none waits any more, as each burst interrupts vLLM.
SPARE = 0.5

SCORED_AT_ONCE = 256  # pairs in one round of scoring: bounds what is held of their log-probabilities

MOST_CHILDREN = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and completion


@dataclasses.dataclass(frozen=True)
class ScoringJob:
    """A token to score after others, with some of those."""

    index: int  # of the pair that it is of
    tokens: Sequence[int]
    token: int
    num_before: int  # how many of `tokens`, the last ones, are scored too


@dataclasses.dataclass(frozen=True)
class Branch:
    """Tokens to score after others, each with the numbers of the continuations that have it there."""

    index: int  # of the prefix
    tokens: Sequence[int]
    children: Mapping[int, Sequence[int]]


def make_prompt(tokens: Sequence[int]) -> Any:
    """A prompt as vLLM takes it without a look at its text."""
    try:
        from vllm.inputs import tokens_input
    except ImportError:  # an older vLLM
        return {"prompt_token_ids": list(tokens)}
    return tokens_input(list(tokens))


def one_token_params(**more: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,  # the last token is written, not given, so that a full context can be scored
        temperature=0,
        ignore_eos=True,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **more,
    )


def branches(index: int, prefix: Sequence[int], several: Sequence[Tokens]) -> Iterator[Branch]:
    """Return each text where a prefix's continuations branch, with the tokens that follow.

    vLLM scores so many tokens after a text at once: of more, some are in another branch.
    """
    after: dict[Tokens, dict[int, list[int]]] = {}
    for number, continuation in enumerate(several):
        for place, token in enumerate(continuation):
            after.setdefault(continuation[:place], {}).setdefault(token, []).append(number)
    for begun, children in after.items():
        left = iter(children.items())
        while some := dict(islice(left, MOST_CHILDREN)):
            yield Branch(index, [*prefix, *begun], some)


def scored_logprob(output: Any, num_before: int) -> float:
    """Nats of the one token that was written, and of the prompt's last `num_before`."""
    found: float = output.outputs[0].cumulative_logprob
    if num_before:
        tokens = output.prompt_token_ids
        places = range(len(tokens) - num_before, len(tokens))
        found += math.fsum(output.prompt_logprobs[place][tokens[place]].logprob for place in places)
    return found


def one_line(error: Exception) -> str:
    """An error's message in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:500] if lines else type(error).__name__
