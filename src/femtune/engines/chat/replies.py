"""What a server answers to a chat completion, as it is stored and as femtune knows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from femtune.engines.openai.http import Failed
from femtune.metric_types import Served
from femtune.types import Completion, FinishReason

# how servers name the two ways in which a completion ends
_ENDS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}


def read_reply(reply: Any) -> dict[str, Any]:
    """Return what is kept of a reply. Raises Failed where it holds no completion.

    text            the message's content
    reasoning       its thinking, where the server returns that apart
    refusal         why the model refuses, where it says so apart
    finish          how it ended, in the server's word
    prompt_tokens, completion_tokens, cached_tokens   None where the server does not count
    model, fingerprint                                "" where it does not tell
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Failed(f"an answer without a message: {str(reply)[:200]}", 200)
    usage = reply.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return {
        "text": _text(message.get("content")),
        "reasoning": _text(message.get("reasoning_content") or message.get("reasoning")),
        "refusal": _text(message.get("refusal")),
        "finish": str(choice.get("finish_reason") or ""),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "cached_tokens": _count(details.get("cached_tokens")),
        "model": str(reply.get("model") or ""),
        "fingerprint": str(reply.get("system_fingerprint") or ""),
    }


def _text(content: Any) -> str:
    """Return a content's text: itself, or that of its parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def as_completion(stored: Mapping[str, Any]) -> Completion:
    """Return a stored answer as a completion, of text or with the error that stands for it.

    It has what `read_reply` gives, and `forced_by`, the way in which its request forced an answer.
    """
    served = Served(
        model=stored["model"],
        fingerprint=stored["fingerprint"],
        prompt_tokens=stored["prompt_tokens"],
        completion_tokens=stored["completion_tokens"],
        forced_by=stored["forced_by"],
    )
    text, finish = stored["text"], _ENDS.get(stored["finish"])
    if stored["reasoning"]:
        # thinking that was cut off stays open, as it is in the text of other engines
        closing = "\n</think>\n\n" if text or finish != "length" else ""
        text = f"<think>\n{stored['reasoning']}{closing}{text}"
    if stored["refusal"]:
        return _failed(text or stored["refusal"], f"the model refused: {stored['refusal']}", served)
    if stored["finish"] == "content_filter":
        return _failed(text, "the server's content filter withheld the answer", served)
    if finish is None:
        return _failed(text, f"the server ended it by {stored['finish'] or 'no named reason'}", served)
    return Completion((), text, finish, math.nan, served=served)


def _failed(text: str, error: str, served: Served) -> Completion:
    return Completion((), text, "error", math.nan, error=error, served=served)
