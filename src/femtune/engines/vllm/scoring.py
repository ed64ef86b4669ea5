"""Log-probabilities from vLLM: of completions after their prompts, and of continuations after a prefix.

vLLM tells log-probabilities of what it writes and of a prompt, so each request asks for one more token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from femtune.types import Asked, Tokens

SCORED_AT_ONCE = 256  # pairs in one round of scoring: bounds what is held of their log-probabilities

MOST_CHILDREN = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and completion

Work = TypeVar("Work")


class OneTokenEach(Protocol):
    """A function that asks vLLM for one token after each of some tokens."""

    def __call__(
        self, asked: Iterable[tuple[Work, Sequence[int], Any]], /
    ) -> Iterator[tuple[Work, Any]]:
        """Yield each piece of work with vLLM's output, from work, tokens and sampling parameters."""
        ...


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


def score_pairs(one_token_each: OneTokenEach, pairs: Sequence[Pair], *, by_token: bool) -> list[float]:
    """Return each completion's log-probability after its prompt, in nats; see `scoring_jobs`."""
    logprobs = [0.0] * len(pairs)
    jobs = (job for index, pair in enumerate(pairs) for job in scoring_jobs(index, pair, by_token))
    asked = ((job, job.tokens, _scored_params(job)) for job in jobs)
    for job, output in one_token_each(asked):
        logprobs[job.index] += scored_logprob(output, job.num_before)
    return logprobs


def score_continuations(one_token_each: OneTokenEach, asked: Sequence[Asked]) -> list[list[float]]:
    """Return each continuation's log-probability after its prefix, in nats.

    Each text that continuations follow is one request, for all tokens that come next.
    """
    logprobs = [[0.0] * len(several) for _, several in asked]
    jobs = (job for index, each in enumerate(asked) for job in branches(index, *each))
    requests = ((job, job.tokens, one_token_params(logprob_token_ids=[*job.children])) for job in jobs)
    for job, output in one_token_each(requests):
        [place] = output.outputs[0].logprobs
        for token, continuations in job.children.items():
            for number in continuations:
                logprobs[job.index][number] += place[token].logprob
    return logprobs


def scoring_jobs(index: int, pair: Pair, by_token: bool = False) -> Iterator[ScoringJob]:
    """Yield the requests that score a pair: the last token after all others.

    With `by_token`, each token after those before it. An engine with adapters needs that: vLLM has
    sampled rows alone in mind when it adds an adapter to the logits (0.32).
    """
    prompt, completion = pair
    if by_token:
        for place, token in enumerate(completion):
            yield ScoringJob(index, [*prompt, *completion[:place]], token, 0)
    elif completion:
        yield ScoringJob(index, [*prompt, *completion[:-1]], completion[-1], len(completion) - 1)


def _scored_params(job: ScoringJob) -> Any:
    return one_token_params(
        allowed_token_ids=[job.token],
        logprobs=0,
        # vLLM then reads no cached prefix: its log-probabilities were not kept
        prompt_logprobs=0 if job.num_before else None,
    )


def one_token_params(**more: Any) -> Any:
    """Return the sampling parameters of a request for one token, with further ones."""
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
    """Return the log-probability of the token that was written and of the prompt's last `num_before`."""
    found: float = output.outputs[0].cumulative_logprob
    if num_before:
        tokens = output.prompt_token_ids
        places = range(len(tokens) - num_before, len(tokens))
        found += math.fsum(output.prompt_logprobs[place][tokens[place]].logprob for place in places)
    return found
