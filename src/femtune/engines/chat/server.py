"""A server of chat completions as it is found, and the requests that it takes.

Servers differ in what they call the limit of tokens, in the parameters that they refuse, and in whether
they continue a partial message:

    OpenAI       max_completion_tokens for newer models, some of which take temperature 1 alone
    vLLM, SGLang continue_final_message; their models' own defaults of sampling are switched off
    llama.cpp    continues the last message where it is the assistant's
    others       OpenAI's parameters; an answer is forced by a turn of its own

What a server refuses by a 400 that names it is left out of later requests, where that changes nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from femtune.engines.openai import dialects
from femtune.engines.openai.dialects import Dialect
from femtune.engines.openai.http import Failed, HttpClient, RetriesExhausted, shown
from femtune.errors import ConfigError, EngineError
from femtune.types import Message, Request, Sampling

_LIMITS = ("max_tokens", "max_completion_tokens")
# fields by which a server continues the last message
_CONTINUES: Mapping[str, Mapping[str, bool]] = {
    dialects.VLLM.name: {"continue_final_message": True, "add_generation_prompt": False},
    dialects.SGLANG.name: {"continue_final_message": True},
    dialects.LLAMACPP.name: {},
}


@dataclass(kw_only=True)
class ChatServer:
    """A server: where it is, what it calls itself, and what its requests are made of."""

    url: str  # with the version, as in http://127.0.0.1:8000/v1
    model: str  # the name that requests carry
    dialect: Dialect = dialects.PLAIN
    names: Sequence[str] = ()  # of the models that it lists
    template_args: Mapping[str, Any] = field(default_factory=dict)
    limit: str = _LIMITS[0]  # its name for the most tokens of a completion
    left_out: set[str] = field(default_factory=set)  # parameters that it refused

    @property
    def continues(self) -> bool:
        """Return True if it is known to continue a partial message of the assistant's."""
        return self.dialect.name in _CONTINUES

    def forces_by(self, request: Request) -> Literal["", "prefill", "turn"]:
        """Return how a request forces an answer."""
        if not request.prefill:
            return ""
        return "prefill" if self.continues else "turn"

    def messages(self, request: Request) -> tuple[Message, ...]:
        """Return the messages of a request, with the partial one for a forced answer."""
        if self.forces_by(request) != "prefill":
            return request.messages
        return (*request.messages[:-2], {"role": "assistant", "content": request.prefill})

    def body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """Return the body of a request, without what the server refuses."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in self.messages(request)],
            self.limit: request.most_tokens(sampling),
            "temperature": sampling.temperature,
            "seed": request.seed % 2**dialects.SMALL_SEEDS,
            **dialects.sampling_extras(self.dialect),
        }
        if sampling.top_p < 1 or self.dialect is not dialects.PLAIN:
            body["top_p"] = sampling.top_p
        if self.dialect.all_top_k is not None:
            body["top_k"] = sampling.top_k or self.dialect.all_top_k
        if self.template_args:
            body["chat_template_kwargs"] = dict(self.template_args)
        if self.forces_by(request) == "prefill":
            body |= _CONTINUES[self.dialect.name]
        return {name: value for name, value in body.items() if name not in self.left_out}

    def check(self, sampling: Sampling) -> None:
        """Raise ConfigError for a sampling that the protocol has no words for."""
        if sampling.top_k and self.dialect.all_top_k is None:
            raise ConfigError(
                f"top_k={sampling.top_k}: chat completions have no such setting, and {shown(self.url)} "
                "is not a server that adds it (vLLM, SGLang, llama.cpp): leave it at 0."
            )

    def adapt(self, error: Failed, body: Mapping[str, Any]) -> str:
        """Leave out, or rename, what a 400 names; return the parameter, "" if none is to change.

        Raises EngineError where a setting that was asked for is refused.
        """
        said = str(error)
        if not _REFUSES.search(said):
            return ""
        if (limit := self._other_limit(said, body)) is not None:
            return limit
        named = [name for name in body if re.search(rf"\b{name}\b", said)]
        for name in named:
            if name in self.left_out:  # by the answer to another request, meanwhile
                return name
            if name in ("seed", *dialects.sampling_extras(self.dialect)) or (
                name in ("temperature", "top_p") and body[name] == 1
            ):
                self.left_out.add(name)
                return name
            if name in ("temperature", "top_p", "top_k", "chat_template_kwargs"):
                what = f"{shown(self.url)} refuses {name} {body[name]}: {said}."
                if name == "chat_template_kwargs":
                    raise EngineError(f"{what} Leave --template-args out.")
                raise EngineError(f"{what} Set it to what the server takes, such as --temperature 1.")
        return ""

    def _other_limit(self, said: str, body: Mapping[str, Any]) -> str | None:
        """Take the other name of the limit if the one in the body is refused; None if it is not."""
        sent = next((name for name in _LIMITS if name in body), "")
        if not re.search(rf"\b{sent}\b", said) or "too large" in said:
            return None
        other = _LIMITS[1 - _LIMITS.index(sent)]
        if self.limit == sent:
            if sent == _LIMITS[1] and not re.search(rf"\b{other}\b", said):
                return None  # both names were refused
            self.limit = other
        return other

    def unknown_model(self, error: Failed) -> str:
        """Return the message for a model name that the server does not know."""
        near = difflib.get_close_matches(self.model, self.names, n=8) or list(self.names[:8])
        more = len(self.names) - len(near)
        known = f" It lists {', '.join(near)}{f' and {more} others' * (more > 0)}." if near else ""
        return (
            f"{shown(self.url)} does not serve {self.model!r}: {error}.{known} Give the name of a model "
            "that it serves as --served-model, or as --model."
        )


_REFUSES = re.compile(
    r"(?i)support|unknown|unrecogni[sz]ed|unexpected|extra|permitted|allowed|invalid|not valid|only the "
    r"default|forbidden|deprecated"
)


async def look_at(client: HttpClient, url: str, model: str) -> ChatServer:
    """Find out where a server has its chat completions, and of what kind it is; costs nothing.

    A server that lists no models, or not without another key, is taken as it is. Raises ConfigError for
    an invalid URL, and EngineError where nothing answers.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"base URL {shown(url)!r}: expected http://HOST:PORT/v1 or https://....")
    url = url.rstrip("/")
    for tried in (url, f"{url}/v1"):
        try:
            answer = await client.ask([f"{tried}/models"], lambda at: _models(client, at), retries=3)
        except (Failed, RetriesExhausted) as failed:
            error = failed.last if isinstance(failed, RetriesExhausted) else failed
            if error.status == 0:
                raise EngineError(
                    f"{shown(tried)} does not answer ({error}): start the server, or correct --base-url "
                    "or OPENAI_BASE_URL."
                ) from failed
            continue
        cards = answer.get("data") if isinstance(answer, dict) else None
        if isinstance(cards, list) and all(isinstance(c, dict) and "id" in c for c in cards):
            names = [str(card["id"]) for card in cards]
            dialect = dialects.dialect_of(cards)
            return ChatServer(url=tried, model=model, dialect=dialect, names=names)
    return ChatServer(url=url, model=model)


async def _models(client: HttpClient, url: str) -> Any:
    return await client.send("GET", url, None, client.retry_policy.handshake_s)
