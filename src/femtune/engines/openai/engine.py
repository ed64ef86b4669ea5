"""An engine over servers that speak OpenAI's protocol: `vllm serve`, SGLang, llama.cpp, and others.

    engine = OpenAIEngine(folder, tokenizer=tokenizer, base_url="http://127.0.0.1:8000/v1")
    engine.capabilities                             # what was found out: seeds, log-probabilities, ...
    for finished in engine.generate(pull, Sampling(max_new_tokens=512)):
        ...                                         # (request, completion) of what has arrived

Prompts go out as tokens. Tokens come back where the server tells them, else the text's own encoding is
taken. One failed request is tried again, then is a draw with an error; others go on meanwhile. Only
where nothing is answered any more does the engine itself fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from femtune._util.redaction import check_urls
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.openai import dialects
from femtune.engines.openai.http import (
    Failed,
    HttpClient,
    RetriesExhausted,
    RetryPolicy,
    complaint,
    shown,
)
from femtune.engines.openai.probe import look_at
from femtune.engines.openai.server import Server, adapter_url, all_of, complete, request_body
from femtune.engines.pairs import logprobs_by_pairs
from femtune.engines.vllm.setup import read_end_tokens
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.types import Asked, Completion, Request, Sampling

_MAX_BATCH = 64

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and completion

_log = logging.getLogger("femtune")


class OpenAIEngine:
    """Draws from one server, or several with the same model, by URLs with commas between them.

    `model` is the local folder of the base that they serve, for its end tokens; `base_url` is else that
    of OPENAI_BASE_URL, the key always that of OPENAI_API_KEY. `served_model` is the base's name there,
    which may be left out where it is the only one. `max_batch` requests are open at once, 64 by default.

    Raises ConfigError where URL, key or name are wrong, EngineError where a server does not answer as
    one does, and ModelError where its tokenizer is not the given one. What a server lacks is a warning.
    """

    def __init__(
        self,
        model: Path,
        *,
        tokenizer: ChatTokenizer,
        base_url: str | None = None,
        served_model: str | None = None,
        max_batch: int | None = None,
        timeout_s: float = 600.0,
        retries: int = 6,
        retry_policy: RetryPolicy | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        urls = [url.strip() for url in (base_url or os.environ.get("OPENAI_BASE_URL", "")).split(",")]
        if not all(urls):
            raise ConfigError(
                "the openai engine needs a server's URL: set OPENAI_BASE_URL, or base_url, such as "
                "http://127.0.0.1:8000/v1 (several with commas between them)."
            )
        check_urls("base_url or OPENAI_BASE_URL", ",".join(urls))
        self.tokenizer = tokenizer
        self.max_batch = max_batch or _MAX_BATCH
        self._model = Path(model)
        self._ends = read_end_tokens(model, tokenizer, trust_remote_code)
        self._adapter = ""  # its name on the servers, "" for the base
        self._names = (f"femtune-{uuid.uuid4().hex[:8]}-{n}" for n in range(1, 1 << 30))
        self._told_tempered = False
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        retry_policy = retry_policy or RetryPolicy(timeout_s=timeout_s, retries=retries)
        self._client = HttpClient(key, retry_policy, self.max_batch)
        try:
            look = [
                look_at(self._client, url, served_model, tokenizer, sorted(self._ends)) for url in urls
            ]
            servers = self._client.gather(look)
        except BaseException:
            self._client.close()
            raise
        self._servers: dict[str, Server] = {server.url: server for server in servers}
        self.capabilities = all_of([server.capabilities for server in servers])
        self._warn()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its completion may have together, as far as servers tell."""
        told = [server.context for server in self._servers.values() if server.context]
        return min(told, default=1 << 30)

    def load(self, weights: Path) -> None:
        """Serve the base, or a LoRA adapter over it, from now on.

        Raises ModelError for anything else, and where a server can't take the adapter.
        """
        self._check_open()
        weights = Path(weights)
        is_adapter = (weights / "adapter_config.json").is_file()
        if not is_adapter and weights.resolve() != self._model.resolve():
            raise ModelError(
                f"{weights} holds full weights, which a server can't be given while it runs: use "
                "--use-peft (adapters can), --engine vllm, or workers of Ray."
            )
        self._unload()
        if is_adapter:
            name = next(self._names)  # never one of before: a server may have cached under that
            folder = str(weights.resolve())
            self._client.gather(self._load_on(server, name, folder) for server in self._servers.values())
            self._adapter = name

    def release(self) -> None:
        """Nothing: a server's memory is its own."""

    def close(self) -> None:
        """Take the adapter off the servers, end the connections; a second time does nothing."""
        if not self._client.is_closed:
            self._unload()
            self._client.close()

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete what `pull` gives; see `types.Engine`.

        Raises EngineError for a prompt too long, and where the servers answer nothing any more. A caller
        that stops early cancels what is open.
        """
        self._check_open()
        for server in self._servers.values():
            request_body(server, server.model, sampling, 0, ())  # raises before anything is asked
        raw = self._has_raw_logprobs(sampling)
        ended: SimpleQueue[Future[Completion]] = SimpleQueue()
        going: dict[Future[Completion], Request] = {}
        ask = True  # there may be more: at first, and after each yield
        try:
            while True:
                if ask and len(going) < self.max_batch:
                    for request in pull(self.max_batch - len(going)):
                        name = f'problem "{request.key.problem_id}"'
                        self._check_length(len(request.tokens), request.most_tokens(sampling), name)
                        future = self._client.start(self._complete(request, sampling, raw))
                        going[future] = request
                        future.add_done_callback(ended.put)
                if not going:
                    return
                done = [ended.get()]
                while not ended.empty():
                    done.append(ended.get())
                finished = [(going.pop(future), future.result()) for future in done]
                yield finished
                ask = True
        finally:
            for future in going:
                future.cancel()

    def logprob(self, pairs: Sequence[Pair]) -> list[float]:
        """Nats of each completion given its prompt, summed over the completion's tokens.

        Raises EngineError where a server can't score, or fails to.
        """
        self._check_open()
        if not self.capabilities.scores:
            raise EngineError(
                "the server can't score completions (no prompt_logprobs, no echo with logprobs), which "
                "checks of loaded weights and importance weights need: use vLLM, or another "
                "engine."
            )
        for prompt, completion in pairs:
            self._check_length(len(prompt), len(completion), "a pair to score")
        # vLLM with adapters on a CPU crashes on prompt log-probabilities of several requests in a batch
        servers = self._servers.values()
        alone = any(one.capabilities.adapters and one.dialect is dialects.VLLM for one in servers)
        room = asyncio.Semaphore(1 if alone else self.max_batch)
        return self._client.gather(self._score(prompt, completion, room) for prompt, completion in pairs)

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Return log-probabilities (nats) of continuations by `logprob`, a request for each.

        A server that caches prefixes passes one once for all continuations of a single token.
        """
        return logprobs_by_pairs(self.logprob, asked)

    # --- one request each

    async def _complete(self, request: Request, sampling: Sampling, raw: bool) -> Completion:
        async def send(url: str) -> dict[str, Any]:
            server = self._servers[url]
            body = self._body(server, sampling, request.seed) | {"prompt": list(request.tokens)}
            body["max_tokens"] = request.most_tokens(sampling)
            answer = await complete(self._client, url, body, self._client.retry_policy.timeout_s)
            return dict(answer["choices"][0])

        servers = list(self._servers)
        try:
            try:
                choice = await self._client.ask(servers, send)
            except RetriesExhausted as error:
                await self._check_answers(error)
                try:  # the server may have come back just now
                    choice = await self._client.ask(servers, send, retries=0)
                except RetriesExhausted:
                    return _failed(f"{error}; other requests are answered")
        except Failed as error:
            if not error.is_of_request:
                raise EngineError(self._complaint(error)) from error
            return _failed(str(error))
        return dialects.read_completion(choice, self._ends, self.tokenizer, raw)

    async def _check_answers(self, error: RetriesExhausted) -> None:
        """Raise EngineError unless a small request is answered: then it was `error`'s request alone."""

        async def send(url: str) -> Any:
            body = self._body(self._servers[url], Sampling(max_new_tokens=1), 0)
            body["prompt"] = list(self.tokenizer.encode_prompt("Hello"))
            return await complete(self._client, url, body, self._client.retry_policy.handshake_s)

        try:
            await self._client.ask(list(self._servers), send, retries=0)
        except RetriesExhausted:
            raise EngineError(self._given_up(error)) from error

    async def _score(
        self, prompt: Sequence[int], completion: Sequence[int], room: asyncio.Semaphore
    ) -> float:
        async def send(url: str) -> float:
            server = self._servers[url]
            body = dialects.scored_body(server.score_by, prompt, completion)
            body |= self._named(server)
            answer = await complete(self._client, url, body, self._client.retry_policy.timeout_s)
            logprobs = dialects.scored_logprobs(
                server.score_by, answer["choices"][0], prompt, completion
            )
            if logprobs is None:
                raise Failed("an answer without the prompt's log-probabilities", 200)
            return math.fsum(logprobs)

        if not completion:
            return 0.0
        async with room:
            try:
                return await self._client.ask(list(self._servers), send)
            except Failed as error:
                raise EngineError(self._complaint(error)) from error
            except RetriesExhausted as error:
                raise EngineError(self._given_up(error)) from error

    def _body(self, server: Server, sampling: Sampling, seed: int) -> dict[str, Any]:
        body = request_body(server, server.model, sampling, seed, sorted(self._ends))
        return body | self._named(server)

    def _named(self, server: Server) -> dict[str, Any]:
        """Return the part of a request that names the base, or the adapter over it."""
        if self._adapter and server.dialect is dialects.SGLANG:
            return {"model": server.model, "lora_path": self._adapter}
        return {"model": self._adapter or server.model}

    # --- adapters

    async def _load_on(self, server: Server, name: str, folder: str) -> None:
        body = {"lora_name": name, "lora_path": folder}
        try:
            await self._post(adapter_url(server, "load"), body)
        except (Failed, RetriesExhausted) as error:
            if "has already been loaded" in str(error):  # by an attempt whose answer was lost
                return
            status = error.status if isinstance(error, Failed) else error.last.status
            if status in (404, 405) and not server.capabilities.adapters:
                raise ModelError(
                    f"{shown(server.url)} takes no adapters while it runs: start vLLM with "
                    "--enable-lora --max-lora-rank R, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its "
                    "environment; or SGLang with --enable-lora."
                ) from error
            raise ModelError(
                f"{shown(server.url)} can't serve the adapter in {folder}: {error}. The server must be "
                "started with --enable-lora and a --max-lora-rank of at least the adapter's rank, and "
                "must see the folder under this very path."
            ) from error

    def _unload(self) -> None:
        if not self._adapter:
            return
        servers, body = self._servers.values(), {"lora_name": self._adapter}
        self._adapter = ""
        for server in servers:
            # one that is gone, or has forgotten it, holds nothing that could be served by mistake
            with contextlib.suppress(Failed, RetriesExhausted):
                self._client.run(self._post(adapter_url(server, "unload"), body, retries=0))

    async def _post(self, url: str, body: dict[str, str], retries: int = 2) -> Any:
        timeout_s = self._client.retry_policy.timeout_s
        send = partial(self._client.send, "POST", body=body, timeout_s=timeout_s, in_words=True)
        return await self._client.ask([url], send, min(retries, self._client.retry_policy.retries))

    # --- messages

    def _warn(self) -> None:
        """Say once what the servers lack, and what that means."""
        lacks = {
            "seeds": "it does not draw the same by the same seed: draws can't be made again",
            "token_ids": "it does not tell the tokens that it sampled: its text is encoded again, and "
            "the M-step trains on that encoding",
            "logprobs": "it gives no log-probabilities: those of draws are stored as NaN",
        }
        found = asdict(self.capabilities)
        told = [words for name, words in lacks.items() if not found[name]]
        if told:
            urls = ", ".join(map(shown, self._servers))
            _log.warning("%s: %s.", urls, "; ".join(told))

    def _has_raw_logprobs(self, sampling: Sampling) -> bool:
        plain = sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k
        raw = self.capabilities.raw_logprobs or plain
        if not raw and self.capabilities.logprobs and not self._told_tempered:
            self._told_tempered = True
            _log.warning(
                "the server's log-probabilities are those at the sampling's temperature, not the "
                "model's: those of draws are stored as NaN (vLLM: --logprobs-mode raw_logprobs, SGLang: "
                "SGLANG_RETURN_ORIGINAL_LOGPROB=1)."
            )
        return raw

    def _complaint(self, error: Failed) -> str:
        urls = ", ".join(map(shown, self._servers))
        gone = " Does it still serve the model?" if error.status == 404 else ""
        return (
            f"{complaint(error, urls)}{gone} What is stored stays; the same command resumes from there."
        )

    def _given_up(self, error: RetriesExhausted) -> str:
        urls = ", ".join(map(shown, self._servers))
        return (
            f"{urls}: a request {error}; another small one fails too. Look after the server; what is "
            "stored stays, and the same command resumes from there."
        )

    def _check_open(self) -> None:
        if self._client.is_closed:
            raise EngineError("the openai engine is closed: make a new one.")

    def _check_length(self, prompt: int, new: int, name: str) -> None:
        if not prompt or prompt + new > self.context:
            raise EngineError(
                f"{name}: a prompt of {prompt} tokens and up to {new} new ones, expected at least "
                f"one and no more than the server's {self.context} in all."
            )


def _failed(words: str) -> Completion:
    return Completion((), "", "error", math.nan, error=words)
