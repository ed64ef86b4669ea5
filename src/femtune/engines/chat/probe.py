"""What a server of chat completions can do, found out by a few short requests: for `femtune check`.

A run asks none of these: it needs messages and text alone, and learns what is refused by its first
request. They tell what else could be relied on: seeds, log-probabilities, several choices, stop texts,
and whether a partial message is continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from femtune.engines.chat.engine import ChatEngine
from femtune.engines.openai.http import Failed, RetriesExhausted
from femtune.types import DrawKey, Message, Request, Sampling

MOST_REQUESTS = 9
_KEY = DrawKey(0, "probe", 0, 0)
_SAMPLING = Sampling(max_new_tokens=64)
_SEEDS = (5, 5, 6)  # the first two must draw the same, and the third another number
_NUMBER = "Write a random number of nine digits, and nothing else."
_PARTIAL = ("What is the capital of France?", "The capital of France is the city of Par")


def probe(engine: ChatEngine) -> dict[str, str]:
    """Return what a server does, in words by topic. Raises what a run's first request would raise."""
    found: dict[str, str] = {}
    first = _first(engine)
    server = engine.server
    counts = first.get("usage") or {}
    told = "prompt_tokens" in counts and "completion_tokens" in counts
    found["answers by"] = f"{first.get('model') or 'no named model'}"
    if first.get("system_fingerprint"):
        found["answers by"] += f", configuration {first['system_fingerprint']}"
    found["token limit"] = server.limit
    found["token counts"] = "given" if told else "not given: caps count the most that is possible"
    found["seeds"] = _seeds(engine)
    for topic, look in _LOOKS.items():
        try:
            found[topic] = look(engine)
        except (Failed, RetriesExhausted) as error:
            found[topic] = f"refused ({error})"
    return found


def _first(engine: ChatEngine) -> Mapping[str, Any]:
    """Ask until parameters are in the form that the server takes; return its reply."""
    body = _body(engine, "Write the word ready, and nothing else.")
    while True:
        try:
            return engine.send(body)
        except Failed as error:
            if not (error.is_of_request and engine.server.adapt(error, body)):
                raise engine.ending(error) from error
            body = _body(engine, "Write the word ready, and nothing else.")
        except RetriesExhausted as error:
            raise engine.ending(error.last) from error


def _seeds(engine: ChatEngine) -> str:
    if "seed" in engine.server.left_out:
        return "refused"
    try:
        drawn = [_text(engine.send(_body(engine, _NUMBER, seed))) for seed in _SEEDS]
    except (Failed, RetriesExhausted) as error:
        return f"refused ({error})"
    if drawn[0] != drawn[1]:
        return "taken, and not kept: draws differ by the same seed"
    same = "the same text by another seed, so nothing is known"
    return same if drawn[0] == drawn[2] else "kept, in this trial"


def _logprobs(engine: ChatEngine) -> str:
    body = _body(engine, _NUMBER) | {"logprobs": True, "top_logprobs": 2}
    logprobs = _choices(engine.send(body))[0].get("logprobs") or {}
    return "given; --engine chat does without" if logprobs.get("content") else "taken, and not given"


def _several(engine: ChatEngine) -> str:
    num = len(_choices(engine.send(_body(engine, _NUMBER) | {"n": 2})))
    return (
        "several choices a request; --engine chat asks for one" if num == 2 else "one choice a request"
    )


def _stop(engine: ChatEngine) -> str:
    body = _body(engine, "Count from one to nine in words, in a line.") | {"stop": ["four"]}
    text = _text(engine.send(body)).lower()
    kept = "one" in text and "five" not in text
    return "kept; --engine chat cuts the text itself" if kept else "taken, and not kept"


def _continues(engine: ChatEngine) -> str:
    question, partial = _PARTIAL
    messages: Sequence[Message] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Write the answer."},
    ]
    request = Request(_KEY, (), 5, messages=tuple(messages), prefill=partial)
    body = engine.server.body(request, _SAMPLING)
    body["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": partial}]
    goes_on = _text(engine.send(body)).startswith("is")
    if engine.server.continues:
        return "continued, and used to force answers" if goes_on else "not continued, in this trial"
    return ("continued" if goes_on else "not continued") + ": answers are forced by a turn of their own"


# by topic, what looks at it; it raises Failed where the server refuses
_LOOKS: Mapping[str, Callable[[ChatEngine], str]] = {
    "logprobs": _logprobs,
    "n": _several,
    "stop": _stop,
    "partial message": _continues,
}


def _body(engine: ChatEngine, text: str, seed: int = 5) -> dict[str, Any]:
    request = Request(_KEY, (), seed, messages=({"role": "user", "content": text},))
    return engine.server.body(request, _SAMPLING)


def _choices(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [choice for choice in reply["choices"] if isinstance(choice, dict)]


def _text(reply: Mapping[str, Any]) -> str:
    return str((_choices(reply)[0].get("message") or {}).get("content") or "")
