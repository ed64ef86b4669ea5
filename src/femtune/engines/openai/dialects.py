"""What OpenAI-compatible servers are sent beyond OpenAI's own parameters, and what they send back.

    vLLM         token ids both ways, prompt log-probabilities, adapters while it runs
    SGLang       the same but for prompt log-probabilities, which it gives by `echo`
    llama.cpp    token ids within the log-probabilities; seeds of 32 bits
    others       OpenAI's parameters alone: others would be refused

Defaults of a server or of its model (a top-k of 40, a repetition penalty) would change what is drawn
from, so all that are known are switched off by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.errors import ConfigError
from femtune.types import Completion, FinishReason, Sampling

SMALL_SEEDS = 31  # bits, for servers that take no more

_NO_PENALTIES = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True)
class Dialect:
    """The parameters and replies of one kind of server."""

    name: str
    extras: Mapping[str, Any] = field(default_factory=dict)  # sent with every completion
    all_top_k: int | None = None  # top_k that leaves all tokens in; None: it takes none
    takes_ends: bool = False  # stop_token_ids
    _: KW_ONLY
    logprobs: int = 1  # asked for: the fewest that bring the chosen token's
    seed_bits: int = 63
    tokenize: tuple[str, str] | None = None  # /tokenize's names for the text and for special tokens
    adapters: bool = False  # takes them while it runs
    scores: tuple[str, ...] = ()  # ways to score that are worth a try: see `scored_body`


VLLM = Dialect(
    "vLLM",
    # the second is for vLLM before 0.10.2, that knows nothing of the first
    {
        **_NO_PENALTIES,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "ignore_eos": True,  # stop_token_ids say which tokens end it, the EOS among them
    },
    all_top_k=0,
    takes_ends=True,
    logprobs=0,
    tokenize=("prompt", "add_special_tokens"),
    adapters=True,
    scores=("prompt_logprobs",),
)
SGLANG = Dialect(
    "SGLang",
    {**_NO_PENALTIES, "return_token_ids": True},  # its ignore_eos switches stop_token_ids off too
    all_top_k=-1,
    takes_ends=True,
    tokenize=("prompt", "add_special_tokens"),
    adapters=True,
    scores=("echo",),
)
LLAMACPP = Dialect(
    "llama.cpp",
    {"samplers": ["temperature", "top_k", "top_p"]},  # these in this order, and no others
    all_top_k=0,
    seed_bits=SMALL_SEEDS,
    tokenize=("content", "add_special"),
)
PLAIN = Dialect("an OpenAI-compatible server", scores=("echo none", "echo"))

_OWNERS = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMACPP}


def dialect_of(cards: Sequence[Mapping[str, Any]]) -> Dialect:
    """Return the kind of server that serves these models, by their owner."""
    owners = [str(card.get("owned_by", "")).lower() for card in cards]
    return next((_OWNERS[owner] for owner in owners if owner in _OWNERS), PLAIN)


def completion_body(
    dialect: Dialect, sampling: Sampling, seed: int, seed_bits: int, ends: Sequence[int]
) -> dict[str, Any]:
    """A completion's parameters, less model and prompt. Raises ConfigError for top_k where unknown."""
    body: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed % 2**seed_bits,
        "logprobs": dialect.logprobs,
        **dialect.extras,
    }
    if dialect.all_top_k is not None:
        body["top_k"] = sampling.top_k or dialect.all_top_k
    elif sampling.top_k:
        raise ConfigError(
            f"top_k={sampling.top_k}: OpenAI's protocol has no such setting, and the server is not one "
            "that adds it (vLLM, SGLang, llama.cpp): leave it at 0."
        )
    if dialect.takes_ends:
        body["stop_token_ids"] = list(ends)
    return body


def sampling_extras(dialect: Dialect) -> dict[str, Any]:
    """Return the parameters that switch a server's own defaults off, without those about tokens."""
    return {n: v for n, v in dialect.extras.items() if n in _NO_PENALTIES or n == "samplers"}


def scored_body(way: str, prompt: Sequence[int], completion: Sequence[int]) -> dict[str, Any]:
    """Parameters of a request that scores a completion; `scored_logprobs` reads its answer."""
    body: dict[str, Any] = {"temperature": 1.0, "prompt": [*prompt, *completion]}
    if way == "prompt_logprobs":
        # vLLM reads no cached prefix for a request with these
        before = {"prompt_logprobs": 0} if len(completion) > 1 else {}
        # the last token is all that it may write, so a full context can be scored
        return body | {
            "prompt": [*prompt, *completion[:-1]],
            "max_tokens": 1,
            "allowed_token_ids": [completion[-1]],
            "ignore_eos": True,
            "logprobs": 0,
            **before,
        }
    return body | {"max_tokens": 0 if way == "echo none" else 1, "echo": True, "logprobs": 1}


def scored_logprobs(
    way: str, choice: Mapping[str, Any], prompt: Sequence[int], completion: Sequence[int]
) -> list[float] | None:
    """Nats of each token of a completion, or None where the answer does not hold them all."""
    start, stop = len(prompt), len(prompt) + len(completion)
    written = _token_logprobs(choice)
    if way == "prompt_logprobs":
        found = choice.get("prompt_logprobs") or []
        if not written or (len(completion) > 1 and len(found) != stop - 1):
            return None
        tokens = [str(token) for token in completion[:-1]]
        logprobs = [found[start + i].get(token, {}).get("logprob") for i, token in enumerate(tokens)]
        logprobs.append(written[0])
    else:
        if len(written) != stop + (way == "echo"):
            return None
        logprobs = written[start:stop]
    return logprobs if all(isinstance(value, (int, float)) for value in logprobs) else None


def token_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """The sampled tokens, where a server tells them."""
    found: Any = choice.get("token_ids")
    logprobs = choice.get("logprobs") or {}
    if found is None and logprobs.get("content"):
        found = [entry.get("id") for entry in logprobs["content"]]
    if found is None and logprobs.get("tokens"):
        found = [_named_id(token) for token in logprobs["tokens"]]
    if isinstance(found, list) and all(type(token) is int for token in found):
        return found
    return None


def read_completion(
    choice: Mapping[str, Any], ends: frozenset[int], tokenizer: ChatTokenizer, raw: bool
) -> Completion:
    """A completion as femtune knows it; `raw`: its log-probabilities are the model's own.

    Where a server tells no token ids, the tokens are those that its text is encoded to.
    """
    finish = choice.get("finish_reason")
    tokens, logprobs = token_ids(choice), _token_logprobs(choice)
    if finish not in ("stop", "length"):
        words = f"the server ended it by: {finish}"
        text = str(choice.get("text") or "")
        return Completion(tuple(tokens or ()), text, "error", math.nan, error=words)
    reason: FinishReason = "stop" if finish == "stop" else "length"
    if tokens is None:
        encode = tokenizer.tokenizer
        tokens = encode(str(choice.get("text") or ""), add_special_tokens=False)["input_ids"]
        logprobs = []
    first = next((i for i, token in enumerate(tokens) if token in ends), None)
    if first is not None:  # what a server wrote beyond one of its model's ends is not of the draw
        tokens, reason = tokens[: first + 1], "stop"
    elif reason == "stop":
        tokens = [*tokens, _end_left_out(choice, ends, tokenizer)]
    total, each = math.nan, None
    if raw and len(logprobs) >= len(tokens):
        each = tuple(math.nan if value is None else value for value in logprobs[: len(tokens)])
        total = math.fsum(each)
        if not math.isfinite(total):
            error = f"the log-probability of its tokens is {total}: the model gives no numbers"
            return Completion(tuple(tokens), tokenizer.decode(tokens), "error", math.nan, error=error)
    text = tokenizer.decode(tokens)
    return Completion(tuple(tokens), text, reason, total, token_logprobs=each)


def first_logprob(choice: Mapping[str, Any]) -> float | None:
    """Nats of a completion's first token, where a server tells them."""
    logprobs = _token_logprobs(choice)
    return logprobs[0] if logprobs else None


def all_logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Nats of all tokens that `token_ids` tells, or None."""
    logprobs, tokens = _token_logprobs(choice), token_ids(choice)
    return logprobs if tokens and len(logprobs) == len(tokens) and None not in logprobs else None


def _token_logprobs(choice: Mapping[str, Any]) -> list[Any]:
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):
        return [entry.get("logprob") for entry in logprobs["content"]]
    return list(logprobs.get("token_logprobs") or [])


def _named_id(token: object) -> int | None:
    """The id in vLLM's "token_id:7"."""
    name, _, number = str(token).partition(":")
    return int(number) if name == "token_id" and number.isdigit() else None


def _end_left_out(choice: Mapping[str, Any], ends: frozenset[int], tokenizer: ChatTokenizer) -> int:
    for name in ("stop_reason", "matched_stop"):  # of vLLM, of SGLang
        if choice.get(name) in ends:
            return int(choice[name])
    return tokenizer.end_token_id
