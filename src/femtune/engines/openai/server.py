"""One server as it was found, and the requests that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from femtune.engines.openai import dialects
from femtune.engines.openai.dialects import Dialect
from femtune.engines.openai.http import Failed, HttpClient
from femtune.types import Sampling


@dataclass(frozen=True)
class Abilities:
    """What one server can do, or all of several."""

    seeds: bool  # the same seed draws the same tokens
    logprobs: bool  # of sampled tokens
    raw_logprobs: bool  # those are the model's own at any temperature, not the sampling's
    token_ids: bool  # the sampled tokens come back as they are
    scores: bool  # can score a given completion
    adapters: bool  # takes LoRA adapters while it runs


@dataclass(frozen=True)
class Server:
    """One server as it was found."""

    url: str  # with the version, as in http://127.0.0.1:8000/v1
    dialect: Dialect
    model: str  # the name under which it serves the base
    context: int | None  # tokens of a prompt and its completion, where it tells
    abilities: Abilities
    seed_bits: int
    left_out: frozenset[str]  # parameters that it refuses
    score_by: str  # "" where it can't: see dialects.scored_body


def all_of(found: Sequence[Abilities]) -> Abilities:
    """Return what all of several servers can do."""
    names = [field.name for field in dataclasses.fields(Abilities)]
    return Abilities(**{name: all(getattr(one, name) for one in found) for name in names})


async def complete(
    client: HttpClient, url: str, body: Mapping[str, Any], timeout_s: float
) -> Mapping[str, Any]:
    """A completion's answer, which has at least one choice. Raises Failed."""
    answer = await client.send("POST", f"{url}/completions", body, timeout_s)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise Failed(f"an answer without choices: {client.hide(str(answer))[:200]}", 200)
    found: Mapping[str, Any] = answer
    return found


def request_body(
    server: Server, model: str, sampling: Sampling, seed: int, ends: Sequence[int]
) -> dict[str, Any]:
    """A completion's parameters as this server takes them, without the prompt."""
    body = dialects.completion_body(server.dialect, sampling, seed, server.seed_bits, ends)
    return {"model": model} | {n: value for n, value in body.items() if n not in server.left_out}


def adapter_url(server: Server, verb: str) -> str:
    """Return the URL that loads or unloads adapters: SGLang has it beside /v1, vLLM under it."""
    root = server.url.removesuffix("/v1") if server.dialect is dialects.SGLANG else server.url
    return f"{root}/{verb}_lora_adapter"
