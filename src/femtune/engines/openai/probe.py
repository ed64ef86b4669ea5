"""What a server is and can do, found out before a run: its kind, model, tokenizer and capabilities.

A few tiny completions tell more than a list of versions: whether seeds are respected, which numbers come
back, and whether log-probabilities are the model's own. A server whose tokenizer is not the M-step's is
refused, as its tokens would be trained on as something else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.openai import dialects
from femtune.engines.openai.http import Failed, HttpClient, RetriesExhausted, complaint, shown
from femtune.engines.openai.server import Server, adapter_url, complete, request_body
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.types import Capabilities, Sampling

T = TypeVar("T")

# Words, digits, scripts and signs that tokenizers cut differently.
_ODD = "Zoë's naïve 1234567890 + 98.6% ≠ 3,141\t“日本語” 🦉\n    x_1 = f(y);  Über   "
_SEEDS = (2**62 + 1, 2**62 + 1, 5, 6)  # the first two must draw the same, all four must not
_DRAWN = Sampling(max_new_tokens=12)
_COLD = Sampling(max_new_tokens=1, temperature=0.05)
_UNKNOWN = Capabilities(
    seeds=False, logprobs=False, raw_logprobs=False, token_ids=False, scores=False, adapters=False
)


async def look_at(
    client: HttpClient, url: str, model: str | None, tokenizer: ChatTokenizer, ends: Sequence[int]
) -> Server:
    """Find out what a server is and can do.

    Raises ConfigError where the URL, the key or the model's name is wrong, EngineError where it does not
    answer as such a server does, and ModelError where its tokenizer is another one.
    """
    look = _Look(client, tokenizer, ends)
    try:
        url, cards = await look.models(url)
        dialect = dialects.dialect_of(cards)
        card = _chosen(cards, model, url)
        server = Server(
            url=url,
            dialect=dialect,
            model=str(card["id"]),
            context=_context(card),
            capabilities=_UNKNOWN,
            seed_bits=dialect.seed_bits,
            left_out=frozenset(),
            score_by="",
        )
        tokenized = await look.same_tokens(server)
        server, choices = await look.drawn(server)
        if not tokenized:
            await look.same_text(server, choices)
        return await look.capabilities(server, choices)
    except RetriesExhausted as error:
        raise EngineError(f"{shown(url)} fails on a first small request: {error}.") from error
    except Failed as error:
        raise EngineError(complaint(error, url)) from error


class _Look:
    """The requests of a handshake: each has the handshake's time-out, and few retries."""

    def __init__(self, client: HttpClient, tokenizer: ChatTokenizer, ends: Sequence[int]) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.ends = ends
        self.odd = self._encode(_ODD)

    async def models(self, url: str) -> tuple[str, list[Mapping[str, Any]]]:
        """The URL, with /v1 after it where that was left out, and the models' cards."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base URL {shown(url)!r}: expected http://HOST:PORT/v1 or https://..., as "
                "OPENAI_BASE_URL or as the engine's."
            )
        url = url.rstrip("/")
        first: Failed | None = None
        for tried in (url, f"{url}/v1"):
            try:
                answer = await self._get(f"{tried}/models")
                cards = answer.get("data") if isinstance(answer, dict) else None
                if isinstance(cards, list) and all(isinstance(c, dict) and "id" in c for c in cards):
                    return tried, cards
                first = first or Failed("its answer holds no list of models", 200)
            except Failed as error:
                if error.status == 0:
                    raise EngineError(
                        f"{shown(tried)} does not answer ({error}): start the server (for example "
                        "`vllm serve MODEL`), or correct OPENAI_BASE_URL."
                    ) from error
                if error.status in (401, 403):
                    raise ConfigError(complaint(error, tried)) from error
                if error.status in (429, 503):  # it is one, but is not ready
                    raise EngineError(f"{shown(tried)} is not ready: {error}. Try later.") from error
                first = first or error
        raise ConfigError(
            f"{shown(url)}/models is not of an OpenAI-compatible server ({first}), nor is /v1/models "
            "under it: expected a base URL such as http://127.0.0.1:8000/v1."
        )

    async def same_tokens(self, server: Server) -> bool:
        """Return True if /tokenize gives the local tokens, False if it differs or is missing.

        Raises ModelError where it gives others.
        """
        if server.dialect.tokenize is None:
            return False
        text_name, special_name = server.dialect.tokenize
        end = self.tokenizer.tokenizer.decode([self.tokenizer.end_token_id])
        text = _ODD + end
        body = {"model": server.model, text_name: text, special_name: False}
        root = server.url.removesuffix("/v1")
        try:
            answer = await self._post(f"{root}/tokenize", body)
        except Failed:
            return False
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            return False
        if tokens != self._encode(text):
            raise ModelError(_other_tokenizer(server, f"{text!r} is {tokens[:8]}...", "there"))
        return True

    async def same_text(self, server: Server, choices: Sequence[Mapping[str, Any]]) -> None:
        """Compare tokenizers by what completions show. Raises ModelError where they differ."""
        for choice in choices:
            tokens, text = dialects.token_ids(choice), choice.get("text")
            # a character that is cut in two at the end may be shown or left out
            if tokens and text and _bare(self.tokenizer.decode(tokens)) != _bare(text):
                told = f"tokens {tokens[:8]}... are {text!r}"
                raise ModelError(_other_tokenizer(server, told, "there"))
        with_special = list(self.tokenizer.tokenizer(_ODD)["input_ids"])
        body = self._body(server, Sampling(max_new_tokens=1), 0) | {"prompt": _ODD}
        try:
            answer = await self._complete(server, body)
        except Failed:  # it takes tokens alone
            return
        there = answer["choices"][0].get("prompt_token_ids")
        if isinstance(there, list):
            same, told = there in (self.odd, with_special), f"{there[:8]}..."
        else:
            there = (answer.get("usage") or {}).get("prompt_tokens")
            same = not there or there in (len(self.odd), len(with_special))
            told = f"{there} tokens"
        if not same:
            raise ModelError(_other_tokenizer(server, f"{_ODD!r} is {told}", "there"))

    async def drawn(self, server: Server) -> tuple[Server, list[Mapping[str, Any]]]:
        """Completions by `_SEEDS`, and the server with what it refuses left out of requests."""
        refused: Failed | None = None
        for bits, left_out in (
            (server.seed_bits, ()),
            (dialects.SMALL_SEEDS, ()),
            (server.seed_bits, ("logprobs",)),
            (dialects.SMALL_SEEDS, ("logprobs",)),
            (server.seed_bits, ("seed",)),
            (server.seed_bits, ("seed", "logprobs")),
        ):
            server = dataclasses.replace(server, seed_bits=bits, left_out=frozenset(left_out))
            try:
                answers = [await self._draw(server, _DRAWN, seed) for seed in _SEEDS]
            except Failed as error:
                if not error.is_of_request:
                    raise
                refused = refused or error
                continue
            self._check_prompt(server, answers[0])
            return server, [answer["choices"][0] for answer in answers]
        raise EngineError(
            f"{shown(server.url)} refuses a completion of a prompt of token ids ({refused}): use a "
            "server that takes them, such as vLLM, SGLang or llama.cpp."
        ) from refused

    async def capabilities(self, server: Server, choices: Sequence[Mapping[str, Any]]) -> Server:
        """The server with what it can do, judged by its first completions and a few more."""
        logprobs = dialects.first_logprob(choices[0]) is not None
        drawn = [dialects.token_ids(choice) or choice.get("text") for choice in choices]
        cold = (await self._draw(server, _COLD, 0))["choices"][0] if logprobs else {}
        score_by = await self._score_by(server, choices[0])
        found = Capabilities(
            seeds=drawn[0] == drawn[1] and len({str(some) for some in drawn}) > 1,
            logprobs=logprobs,
            raw_logprobs=logprobs and not _tempered(cold, choices),
            token_ids=all(dialects.token_ids(choice) is not None for choice in choices),
            scores=bool(score_by),
            adapters=server.dialect.adapters and await self._takes_adapters(server),
        )
        return dataclasses.replace(server, capabilities=found, score_by=score_by)

    async def _score_by(self, server: Server, choice: Mapping[str, Any]) -> str:
        """The way of scoring that gives a draw the log-probabilities that it was drawn with, or ""."""
        prompt, known = self.odd, dialects.all_logprobs(choice)
        completion = dialects.token_ids(choice) if known else None
        if not completion:
            half = len(self.odd) // 2
            prompt, completion, known = self.odd[:half], self.odd[half:], None
        for way in server.dialect.scores:
            body = {"model": server.model, **dialects.scored_body(way, prompt, completion)}
            try:
                answer = await self._complete(server, body)
            except (Failed, RetriesExhausted):
                continue
            logprobs = dialects.scored_logprobs(way, answer["choices"][0], prompt, completion)
            if (
                logprobs
                and all(map(math.isfinite, logprobs))
                and (known is None or _near(logprobs, known))
            ):
                return way
        return ""

    async def _takes_adapters(self, server: Server) -> bool:
        """Return True if adapters can be loaded: a request without a name is refused, not unknown."""
        try:
            await self._post(adapter_url(server, "load"), {})
        except Failed as error:
            return error.status not in (404, 405)
        except RetriesExhausted:  # a fault within, of what is there
            return True
        return True

    async def _draw(self, server: Server, sampling: Sampling, seed: int) -> Mapping[str, Any]:
        body = self._body(server, sampling, seed) | {"prompt": self.odd}
        return await self._complete(server, body)

    def _body(self, server: Server, sampling: Sampling, seed: int) -> dict[str, Any]:
        return request_body(server, server.model, sampling, seed, self.ends)

    def _check_prompt(self, server: Server, answer: Mapping[str, Any]) -> None:
        count = (answer.get("usage") or {}).get("prompt_tokens")
        if count and count != len(self.odd):  # text was made of them, or a BOS added
            raise EngineError(
                f"{shown(server.url)} reads a prompt of {len(self.odd)} token ids as {count} tokens: "
                "its prompts would not be those that are trained under. Switch its adding of BOS off, "
                "or use another server."
            )

    async def _get(self, url: str) -> Any:
        return await self.client.send("GET", url, None, self.client.retry_policy.handshake_s)

    async def _post(self, url: str, body: Mapping[str, Any]) -> Any:
        return await self._patient(
            lambda at: self.client.send("POST", at, body, self.client.retry_policy.handshake_s), url
        )

    async def _complete(self, server: Server, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._patient(
            lambda at: complete(self.client, at, body, self.client.retry_policy.handshake_s), server.url
        )

    async def _patient(self, send: Callable[[str], Awaitable[T]], url: str) -> T:
        return await self.client.ask([url], send, retries=min(2, self.client.retry_policy.retries))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"])


def _chosen(cards: Sequence[Mapping[str, Any]], model: str | None, url: str) -> Mapping[str, Any]:
    """The card of the base model. Raises ConfigError where it is not served, or not the only one."""
    by_name = {str(card["id"]): card for card in cards}
    bases = [name for name, card in by_name.items() if not card.get("parent")]  # the rest are adapters
    if model is None and len(bases) == 1:
        return by_name[bases[0]]
    if model in by_name:
        return by_name[str(model)]
    near = difflib.get_close_matches(str(model), bases, n=8) or bases[:8]
    names = ", ".join(near) or "none"
    more = f" and {len(bases) - len(near)} others" if len(bases) > len(near) else ""
    what = f"does not serve {model!r}" if model else f"serves {len(bases)} models"
    raise ConfigError(f"{shown(url)} {what}: name one of those that it serves: {names}{more}.")


def _context(card: Mapping[str, Any]) -> int | None:
    for holder, name in ((card, "max_model_len"), (card.get("meta") or {}, "n_ctx")):
        if isinstance(holder.get(name), int):
            return int(holder[name])
    return None


def _tempered(cold: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if log-probabilities are those at the sampling's temperature.

    Near temperature 0, the likeliest token then has all but all of the mass: more than it had in the
    draws at temperature 1, or so much that one of those would have shown it.
    """
    logprob = dialects.first_logprob(cold)
    if logprob is None:
        return False
    first = _first_id(cold)
    for choice in choices:
        known = dialects.first_logprob(choice)
        if known is not None and first is not None and _first_id(choice) == first:
            return not _near([logprob], [known])
    return logprob > -0.1


def _first_id(choice: Mapping[str, Any]) -> int | None:
    tokens = dialects.token_ids(choice)
    return tokens[0] if tokens else None


def _near(some: Sequence[float], others: Sequence[float]) -> bool:
    """Return True if two ways to compute log-probabilities agree up to rounding at 16 bits."""
    pairs = zip(some, others, strict=True)
    return all(abs(a - b) <= 0.1 + 0.02 * abs(b) for a, b in pairs)


def _bare(text: str) -> str:
    return text.replace("\ufffd", "").strip()


def _other_tokenizer(server: Server, told: str, where: str) -> str:
    return (
        f"{shown(server.url)} serves {server.model!r} with another tokenizer than the M-step's: {told} "
        f"{where}, and not here. Serve the model that is trained, or name that one as the model."
    )
