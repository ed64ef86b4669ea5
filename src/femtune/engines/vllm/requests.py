"""Requests to vLLM as it takes them, and completions read from what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from femtune.types import Completion, FinishReason, Sampling, Tokenizer

# Requests that wait in vLLM at most, by max_batch: a row that ends is followed at once, and requests
# are sent in bursts, when none waits any more, as each burst interrupts vLLM.
SPARE = 0.5


def make_prompt(tokens: Sequence[int]) -> Any:
    """Return a prompt in the form that vLLM takes without a look at its text."""
    try:
        from vllm.inputs import tokens_input
    except ImportError:  # an older vLLM
        return {"prompt_token_ids": list(tokens)}
    return tokens_input(list(tokens))


def read_completion(output: Any, sampling: Sampling, tokenizer: Tokenizer) -> Completion:
    """Return what vLLM wrote as a completion; a failed one says why in `error`."""
    tokens = tuple(output.token_ids)
    logprob = output.cumulative_logprob
    error = ""
    reason: FinishReason = "stop" if output.finish_reason == "stop" else "length"
    if output.finish_reason not in ("stop", "length"):
        error = f"vLLM ended it by: {output.finish_reason} {output.stop_reason or ''}".strip()
    elif logprob is None or not math.isfinite(logprob):
        error = f"the log-probability of its tokens is {logprob}: the model gives no numbers"
    if error:
        reason = "error"
    text = tokenizer.decode(tokens)
    logprob = math.nan if logprob is None else logprob
    each = None
    if sampling.cut is not None and output.logprobs is not None:
        each = tuple(place[token].logprob for place, token in zip(output.logprobs, tokens, strict=False))
    return Completion(tokens, text, reason, logprob, error=error, token_logprobs=each)


def one_line(error: Exception) -> str:
    """Return an error's message in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:500] if lines else type(error).__name__
