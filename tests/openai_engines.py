"""Engines over OpenAI's protocol for tests, and what is asked of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.openai.engine import OpenAIEngine
from femtune.engines.openai.http import RetryPolicy
from femtune.types import Completion, DrawKey, Request, Sampling, draw_seed

from .models import byte_tokenizer
from .servers import letters

TOKENIZER = ChatTokenizer(byte_tokenizer())
QUICK = RetryPolicy(timeout_s=2.0, handshake_s=2.0, retries=3, backoff_s=0.01)
SAMPLING = Sampling(max_new_tokens=64)


@contextmanager
def engines(folder: Path) -> Iterator[Any]:
    """What makes engines over the model in a folder; they are closed at the end, threads and all."""
    made: list[OpenAIEngine] = []

    def engine(url: str | None, retry_policy: RetryPolicy = QUICK, **settings: Any) -> OpenAIEngine:
        settings = {"tokenizer": TOKENIZER, **settings}
        made.append(OpenAIEngine(folder, base_url=url, retry_policy=retry_policy, **settings))
        return made[-1]

    yield engine
    for one in made:
        one.close()
    assert not has_threads()


def has_threads() -> bool:
    """Whether an engine's thread lives on."""
    return "femtune-http" in [thread.name for thread in threading.enumerate()]


def requests(count: int) -> list[Request]:
    keys = [DrawKey(1, f"p{i}", 0, 0) for i in range(count)]
    return [Request(key, tokens(f"Question {key.problem_id}?"), draw_seed(0, key)) for key in keys]


def tokens(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode_prompt(text)


def draw(
    engine: OpenAIEngine, asked: Sequence[Request], sampling: Sampling = SAMPLING
) -> dict[str, Completion]:
    """All completions, by problem."""
    todo = list(asked)

    def pull(room: int) -> list[Request]:
        assert room > 0
        given, todo[:room] = todo[:room], []
        return given

    found = [pair for batch in engine.generate(pull, sampling) for pair in batch]
    assert len(found) == len(asked)
    return {request.key.problem_id: completion for request, completion in found}


def written(request: Request, kind_bits: int = 63) -> tuple[int, ...]:
    """What the server's model writes for a request."""
    prompt = TOKENIZER.tokenizer.decode(list(request.tokens))
    return TOKENIZER.encode_completion(letters(prompt, request.seed % 2**kind_bits))
