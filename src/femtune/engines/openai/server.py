"""One server as it was found, and the requests that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from femtune.engines.openai import dialects
from femtune.engines.openai.dialects import Dialect
from femtune.engines.openai.http import Failed, HttpClient
from femtune.types import Capabilities, Sampling


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server as it was found."""

    url: str  # with the version, as in http://127.0.0.1:8000/v1
    dialect: Dialect
    model: str  # the name under which it serves the base
    context: int | None  # tokens of a prompt and its completion, where it tells
    capabilities: Capabilities
    seed_bits: int
    left_out: frozenset[str]  # parameters that it refuses
    score_by: str  # "" where it can't: see dialects.scored_body


def all_of(found: Sequence[Capabilities]) -> Capabilities:
    """Return what each of several servers can do."""
    each = [asdict(one) for one in found]
    return Capabilities(**{name: min(one[name] for one in each) for name in each[0]})


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
