"""An engine over chat completions: messages in, text out, no weights and no tokenizer.

    engine = ChatEngine(model="gpt-4.1-mini", base_url="https://api.openai.com/v1", log=run / LOG)
    for finished in engine.generate(pull, Sampling(max_new_tokens=512)):
        ...                                         # (request, completion) of what has arrived

Any server that has /v1/chat/completions serves. Every answer is stored as it arrives, and a request
that is stored is not sent again: see request_log.py. Caps are kept: see budget.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import astuple, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from femtune._util.parsing import named_pairs, read_value
from femtune._util.redaction import check_urls
from femtune.engines.chat.budget import Budget, Caps, Spent, read_caps
from femtune.engines.chat.pace import Pace
from femtune.engines.chat.replies import as_completion, read_reply
from femtune.engines.chat.request_log import LOG, RequestLog, took
from femtune.engines.chat.server import look_at
from femtune.engines.openai.http import Failed, HttpClient, RetryPolicy, complaint, pause_s, shown
from femtune.errors import BudgetReached, ConfigError, EngineError
from femtune.types import Asked, Capabilities, Completion, Request, Sampling

CAPABILITIES = Capabilities(
    seeds=False,  # servers give no promise: `probe` tells whether one keeps them
    logprobs=False,
    raw_logprobs=False,
    token_ids=False,
    scores=False,
    adapters=False,
    text_only=True,
)
_MAX_BATCH = 16
_ALL_REFUSED = 8  # requests, none of which was answered: then the settings are refused, not a prompt
_STORED = "What is stored stays; the same command resumes from there."

_logger = logging.getLogger("femtune")


class ChatEngine:
    """Draws from one server's chat completions.

    `base_url` is else that of OPENAI_BASE_URL, the key that of OPENAI_API_KEY. `max_batch` requests are
    open at once, 16 by default, and fewer while the server says that they are too many. `log` is the
    file of answers. A server that answers by another model than before ends the command, or is warned
    of: `on_model_change`.

    Raises ConfigError where URL or key are wrong, and EngineError where nothing answers.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        log: Path | None = None,
        caps: Caps | None = None,
        max_batch: int | None = None,
        retry_policy: RetryPolicy | None = None,
        on_model_change: Literal["stop", "warn"] = "stop",
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        url = (base_url or os.environ.get("OPENAI_BASE_URL", "")).strip()
        if not url or "," in url:
            raise ConfigError(
                "the chat engine needs the URL of one server: set --base-url or OPENAI_BASE_URL, such "
                "as https://api.openai.com/v1."
            )
        check_urls("base_url or OPENAI_BASE_URL", url)
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.caps = caps or Caps()
        self._policy = retry_policy or RetryPolicy()
        self._on_model_change = on_model_change
        self._client = HttpClient(key, self._policy, max_batch or _MAX_BATCH)
        try:
            self.server = self._client.run(look_at(self._client, url, model))
            self.server.template_args = template_args or {}
            self._log = RequestLog(log)
        except BaseException:
            self._client.close()
            raise
        self._budget = Budget(self.caps, self._log.spent)
        self._pace = Pace(max_batch or _MAX_BATCH)
        self._refused = 0  # requests by a 400 of their own, before the first answer
        self._ending: EngineError | None = None  # why no further request is sent
        self._warned: set[str] = set()
        if self._log.lost:
            _logger.warning(
                "requests that were sent before and never answered: %d. They count as spent, and are "
                "asked again where a draw is missing.",
                self._log.lost,
            )

    @property
    def spent(self) -> Spent:
        """Return what this run's requests took so far, in all its sessions."""
        return self._budget.spent

    def load(self, weights: Path) -> None:
        """Nothing: the server has its model, and what is learned stands in the prompts."""

    def release(self) -> None:
        """Nothing: a server's memory is its own."""

    def close(self) -> None:
        """End the connections and say what was spent; a second time does nothing."""
        if not self._client.is_closed:
            self._client.close()
            self._log.close()
            if self.spent.requests:
                said = self.spent.describe(self.caps.prices)
                _logger.info("%s: %s so far.", shown(self.server.url), said)

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Raise EngineError: chat completions score nothing."""
        raise EngineError(
            "the chat engine can't score completions. Serve the model with vLLM and take --engine "
            "openai, or choose what needs no log-probabilities."
        )

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Raise EngineError: chat completions score nothing."""
        self.logprob([])
        return []

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete what `pull` gives; see `types.Engine`.

        Raises BudgetReached where a cap leaves no room for the next request, and EngineError where the
        server can't be used; either once all that is open has been answered, stored and yielded.
        """
        if self._client.is_closed:
            raise EngineError("the chat engine is closed: make a new one.")
        self.server.check(sampling)
        self._ending = None
        ended: SimpleQueue[Future[Completion]] = SimpleQueue()
        going: dict[Future[Completion], Request] = {}
        waiting: deque[Request] = deque()
        try:
            while True:
                room = self._pace.room - len(going) - len(waiting)
                if room > 0 and self._ending is None:
                    waiting.extend(pull(room))
                found, is_capped = self._begin(waiting, going, ended, sampling)
                if found:
                    yield found
                    continue
                if not going:
                    break
                done = [ended.get()]
                while not ended.empty():
                    done.append(ended.get())
                if finished := self._finished(done, going):
                    yield finished
            if self._ending is not None:
                raise self._ending
            if is_capped:
                raise BudgetReached(
                    f"{self._budget.exhausted()}. {_STORED} Give it a higher cap to go on."
                )
        finally:
            for future in going:
                future.cancel()

    def send(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send one request as it is, under the caps; return the reply, which has a message.

        It is not stored: for trials. Raises Failed, RetriesExhausted and BudgetReached.
        """
        name = f"trial {self._budget.spent.requests}"
        most = self._budget.most_of(body["messages"], 2 * body.get(self.server.limit, 0))
        if not self._budget.reserve(name, most):
            raise BudgetReached(f"{self._budget.exhausted()}. {_STORED}")
        url, timeout_s = f"{self.server.url}/chat/completions", self._policy.timeout_s

        async def post(at: str) -> Mapping[str, Any]:
            reply: Mapping[str, Any] = await self._client.send("POST", at, body, timeout_s)
            self._budget.book(name, took(read_reply(reply)))
            return reply

        try:
            return self._client.run(self._client.ask([url], post))
        finally:
            self._budget.free(name)

    def _begin(
        self,
        waiting: deque[Request],
        going: dict[Future[Completion], Request],
        ended: SimpleQueue[Future[Completion]],
        sampling: Sampling,
    ) -> tuple[list[tuple[Request, Completion]], bool]:
        """Send waiting requests; return those that are answered already, and True if a cap stops it."""
        found: list[tuple[Request, Completion]] = []
        while waiting and self._ending is None:
            # the first goes alone: its answer tells which parameters the server takes
            if not self._pace.is_tried and going:
                break
            request = waiting[0]
            name = self._name(request, sampling)
            if name in self._log:
                stored = self._log.answer(name)
                if self._is_same_model(stored):
                    waiting.popleft()
                    found.append((request, as_completion(stored)))
                continue
            most = self._budget.most_of(request.messages, request.most_tokens(sampling))
            if not self._budget.reserve(name, most):
                return found, True
            waiting.popleft()
            self._log.add_sent(name, most)
            future = self._client.start(self._complete(request, sampling, name, most))
            going[future] = request
            future.add_done_callback(ended.put)
        return found, False

    def _finished(
        self, done: Sequence[Future[Completion]], going: dict[Future[Completion], Request]
    ) -> list[tuple[Request, Completion]]:
        """Return what was completed; an error ends the sending, and others are still waited for."""
        finished = []
        for future in done:
            request = going.pop(future)
            try:
                finished.append((request, future.result()))
            except EngineError as error:
                self._ending = self._ending or error
        return finished

    def _name(self, request: Request, sampling: Sampling) -> str:
        """Return a request's id: all that it asks, in whatever form it is sent, and for which draw."""
        how = (sampling.temperature, sampling.top_p, sampling.top_k, request.most_tokens(sampling))
        messages = [[m["role"], m["content"]] for m in request.messages]
        asked = [astuple(request.key), request.seed, self.server.model, messages, request.prefill, how]
        args = sorted(self.server.template_args.items())
        return hashlib.blake2b(json.dumps([*asked, args]).encode(), digest_size=12).hexdigest()

    # --- in the client's thread

    async def _complete(
        self, request: Request, sampling: Sampling, name: str, most: Spent
    ) -> Completion:
        """Ask until there is an answer, or an error that others do not share."""
        attempts = limited = 0
        begun = self._pace.num_answered
        forced_by = self.server.forces_by(request)
        while True:
            await self._pace.wait()
            if self._ending is not None:
                self._let_go(name)
                raise self._ending
            body = self.server.body(request, sampling)
            try:
                return await self._ask(body, name, forced_by)
            except Failed as error:
                if error.is_of_request and self._adapted(error, body, name):
                    continue
                if error.is_of_request and forced_by == "prefill":
                    # some refuse a partial message, as llama.cpp does of models that think
                    request, forced_by = replace(request, prefill=""), "turn"
                    continue
                if error.is_of_request:
                    return self._refusal(error, name)
                pause = pause_s(self._policy, max(attempts, limited), error)
                if error.status == 429 and not _is_out_of_money(error):
                    limited += 1
                    self._pace.slow_down(pause)
                    if limited <= 4 * self._policy.retries:
                        continue
                elif error.may_pass and not _is_out_of_money(error):
                    attempts += 1
                    if attempts <= self._policy.retries:
                        self._again(error, name, most)
                        await asyncio.sleep(pause)
                        continue
                self._give_up(error, name)
                if error.may_pass and error.status != 429 and self._pace.num_answered > begun:
                    words = f"failed {attempts} times, the last time so: {error}; others are answered"
                    return as_error(words)
                raise self.ending(error) from error

    async def _ask(
        self, body: Mapping[str, Any], name: str, forced_by: Literal["", "prefill", "turn"]
    ) -> Completion:
        """Send a request and store its answer. Raises Failed, and EngineError for another model."""
        url = f"{self.server.url}/chat/completions"
        reply = await self._client.send("POST", url, body, self._policy.timeout_s)
        answer = read_reply(reply) | {"forced_by": forced_by}
        self._log.add_answer(name, answer)
        self._budget.book(name, took(answer))
        self._pace.answered()
        self._warn_of(answer, body)
        if not self._is_same_model(answer):
            assert self._ending is not None
            raise self._ending
        return as_completion(answer)

    def _adapted(self, error: Failed, body: Mapping[str, Any], name: str) -> bool:
        """Return True if the server takes the request in another form, as far as its error says."""
        try:
            changed = self.server.adapt(error, body)
        except EngineError:  # of a setting, which all requests have
            self._let_go(name)
            raise
        if changed and changed in self.server.left_out:
            what = "draws can't be repeated by their seeds" if changed == "seed" else "it uses its own"
            self._warn(
                changed, f"{shown(self.server.url)} refuses {changed}, which is left out: {what}."
            )
        return bool(changed)

    def _refusal(self, error: Failed, name: str) -> Completion:
        """Return a draw with the error of a request that the server refuses, and charges nothing for."""
        self._let_go(name)
        self._refused += 1
        if self._refused >= _ALL_REFUSED and not self._pace.is_tried:
            self._ending = EngineError(
                f"{shown(self.server.url)} refused the first {self._refused} requests: {error}. "
                f"{_STORED}"
            )
            raise self._ending
        return as_error(str(error))

    def _let_go(self, name: str) -> None:
        self._log.add_free(name)
        self._budget.free(name)

    def _again(self, error: Failed, name: str, most: Spent) -> None:
        """Book an attempt that may have been answered, and reserve the next."""
        if error.status >= 300 or str(error).startswith("no connection"):
            return  # not charged
        self._budget.book(name)
        if not self._budget.reserve(name, most):
            self._ending = BudgetReached(
                f"{self._budget.exhausted()}. A request that {error} counts as spent. {_STORED}"
            )
            raise self._ending
        self._log.add_sent(name, most)

    def _give_up(self, error: Failed, name: str) -> None:
        if error.status >= 300 or str(error).startswith("no connection"):
            self._let_go(name)
        else:
            self._budget.book(name)

    def ending(self, error: Failed) -> EngineError:
        """Return the error that ends the command, for a failure that concerns all requests."""
        where = shown(self.server.url)
        if error.status == 404:
            words = self.server.unknown_model(error)
        elif _is_out_of_money(error):
            words = f"{where}: the account has nothing left to spend ({error})."
        elif error.status == 429:
            words = f"{where} still limits the rate after many waits ({error}): set a lower --max-batch."
        elif error.may_pass:
            words = f"{where}: a request failed again and again ({error}). Look after the server."
        else:
            words = complaint(error, where)
        self._ending = EngineError(f"{words} {_STORED}")
        return self._ending

    # --- what answers tell

    def _is_same_model(self, answer: Mapping[str, Any]) -> bool:
        """Return False, and end the sending, if another model answers and that is not wanted."""
        first = self._log.first = self._log.first or dict(answer)
        if answer["model"] == first["model"]:
            if answer["fingerprint"] != first["fingerprint"]:
                self._warn(
                    "fingerprint",
                    f"{shown(self.server.url)} changed its configuration: its answers have the "
                    f"fingerprint {answer['fingerprint'] or 'none'!r} after {first['fingerprint']!r}. "
                    f"Each draw's is stored.",
                )
            return True
        words = (
            f"{shown(self.server.url)} answers by the model {answer['model']!r}, and did by "
            f"{first['model']!r} when this began"
        )
        if self._on_model_change == "warn":
            self._warn("model", f"{words}. Each draw's is stored.")
            return True
        self._ending = self._ending or EngineError(
            f"{words}: draws of both are not one model's. {_STORED} Name the first one by "
            "--served-model in a new run, or take both by --on-model-change warn."
        )
        return False

    def _warn_of(self, answer: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Say once what a server does otherwise than it was asked."""
        num, most = answer["completion_tokens"], body.get(self.server.limit)
        if num is None and self.caps.counts_tokens:
            words = "gives no counts of tokens: each request counts as the most that it may take"
            self._warn("usage", f"{shown(self.server.url)} {words}.")
        if num is not None and most is not None and num > most:
            words = f"wrote {num} tokens, and {self.server.limit} was {most}: it does not keep to that"
            self._warn("limit", f"{shown(self.server.url)} {words}.")

    def _warn(self, kind: str, words: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning("%s", words)


def engine_of(model: str, settings: Any, folder: Path | None) -> ChatEngine:
    """Return the engine of settings, a config.Ask; its answers are stored in a run's folder, if any."""
    args = named_pairs("template_args", settings.template_args)
    return ChatEngine(
        model,
        base_url=settings.base_url,
        log=None if folder is None else folder / LOG,
        caps=read_caps(settings),
        max_batch=settings.max_batch,
        retry_policy=RetryPolicy(timeout_s=settings.engine_timeout),
        on_model_change=settings.on_model_change,
        template_args={name: read_value(value) for name, value in args.items()},
    )


def as_error(words: str) -> Completion:
    """Return the completion of a request without an answer."""
    return Completion((), "", "error", float("nan"), error=words)


def _is_out_of_money(error: Failed) -> bool:
    """Return True for a limit that waiting does not lift."""
    said = str(error).lower()
    is_quota = any(words in said for words in ("insufficient_quota", "exceeded your current quota"))
    return error.status == 402 or (is_quota and error.after_s is None and "retry" not in said)
