"""Requests to servers from a thread of its own: time-outs, retries, and the choice among servers.

The caller's thread stays plain Python: it starts coroutines and waits for their futures. What came of
a request is JSON, or `Failed`, which says in words what went wrong and whether another try may help.
A retry may go to another server, so neither tenacity nor the openai client, which has one, is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import anyio
import httpx2

from femtune._util.redaction import Redactor
from femtune.errors import ConfigError

T = TypeVar("T")

_CONNECT_S = 10.0
_LONGEST_PAUSE_S = 60.0  # between two attempts of ours; a server's Retry-After may ask for more
_LONGEST_ASKED_S = 600.0
_SHORTEST_KEY = 16  # characters: what servers without keys are given is shorter
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

_log = logging.getLogger("femtune")


@dataclass(frozen=True)
class RetryPolicy:
    """Time-outs in seconds, and the number of retries."""

    timeout_s: float = 600.0  # one completion
    handshake_s: float = 30.0  # one answer while the server is looked at
    retries: int = 6  # of a request after its first attempt
    backoff_s: float = 1.0  # before the first retry; doubles with each, give or take a half


class Failed(Exception):
    """A request got no usable answer; `status` is 0 where there was none at all."""

    def __init__(self, words: str, status: int = 0, after_s: float | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.after_s = after_s  # when the server wants to be asked again

    @property
    def may_pass(self) -> bool:
        """True if the same request may succeed later."""
        return self.status < 300 or self.status in _AGAIN

    @property
    def is_of_request(self) -> bool:
        """True if the server refuses this one request, and may accept others."""
        return self.status in (400, 413, 422)


class RetriesExhausted(Exception):
    """A request has used up its retries."""

    def __init__(self, last: Failed, attempts: int) -> None:
        super().__init__(f"failed {attempts} times, the last time so: {last}")
        self.last = last


class HttpClient:
    """A client in a thread, until `close`. The key goes into the header alone, and is never shown."""

    def __init__(self, key: str, retry_policy: RetryPolicy, most_open: int) -> None:
        self.retry_policy = retry_policy
        self._key = key
        self.hide = Redactor(key)  # in every message of a server that is passed on
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=most_open)
        self._client = httpx2.AsyncClient(headers=_headers(key), limits=limits)
        self._going: set[Future[Any]] = set()
        self._open: dict[str, int] = {}  # requests by server
        self._down_until: dict[str, float] = {}
        self._warned: set[str] = set()
        ready: Future[None] = Future()
        self._loop = _Loop()
        self._thread = threading.Thread(
            target=lambda: self._serve(ready), name="femtune-http", daemon=True
        )
        self._thread.start()
        ready.result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine in the thread; cancelling its future cancels it."""
        future = asyncio.run_coroutine_threadsafe(_heard(work), self._loop)
        self._going.add(future)
        future.add_done_callback(self._going.discard)
        return future

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result, or raise its error; it ends with the wait."""
        return self.gather([work])[0]

    def gather(self, works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Run several coroutines and return their results; the first error ends the others."""
        futures = [self.start(work) for work in works]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    @property
    def is_closed(self) -> bool:
        """True after `close` was called."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the thread and all that it has open; a second time does nothing."""
        if self._thread.is_alive():
            # by their futures, so that none is cancelled twice: a second time would break off the
            # closing of its connection
            for future in list(self._going):
                future.cancel()
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _serve(self, ready: Future[None]) -> None:
        with contextlib.closing(self._loop) as loop:
            loop.run_until_complete(self._main(ready))
            loop.run_until_complete(loop.shutdown_asyncgens())

    async def _main(self, ready: Future[None]) -> None:
        self._stop = asyncio.Event()
        async with self._client:
            ready.set_result(None)
            await self._stop.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                _, late = await asyncio.wait(others, timeout=_CONNECT_S)
                for task in late:
                    task.cancel()
        for transport in self._loop.made:
            transport.abort()
        await asyncio.sleep(0)  # it closes its socket in the loop's next turn

    async def ask(
        self,
        servers: Sequence[str],
        send: Callable[[str], Awaitable[T]],
        retries: int | None = None,
    ) -> T:
        """Return what `send` gives for the idlest server that is up; retry where that can help.

        Raises Failed where it doesn't, and RetriesExhausted after the last attempt.
        """
        retries = self.retry_policy.retries if retries is None else retries
        for attempt in range(retries + 1):
            server = self._choose(servers)
            self._open[server] = self._open.get(server, 0) + 1
            try:
                return await send(server)
            except Failed as error:
                if not error.may_pass:
                    raise
                if error.status == 0 and len(servers) > 1:
                    self._leave_out(server, error)
                if attempt == retries:
                    raise RetriesExhausted(error, attempt + 1) from error
                pause = pause_s(self.retry_policy, attempt, error)
            finally:
                self._open[server] -= 1
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def send(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        timeout_s: float,
        in_words: bool = False,
    ) -> Any:
        """The JSON of one answer, or its text where it comes `in_words`. Raises Failed."""
        timeout = httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s), pool=None)
        try:
            # a server that drips its answer never exceeds httpx's time-outs
            with anyio.fail_after(timeout_s + 1):
                response = await self._client.request(method, url, json=body, timeout=timeout)
        except httpx2.ConnectTimeout as error:
            raise Failed("no connection within 10 s") from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise Failed(f"no answer within {timeout_s:g} s") from error
        except httpx2.ConnectError as error:
            raise Failed(f"no connection: {self.hide(str(error))}") from error
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise ConfigError(f"{shown(url)} is no URL of a server: {error}") from error
        except httpx2.HTTPError as error:  # reset, cut off, not HTTP
            words = self.hide(str(error)) or type(error).__name__
            raise Failed(f"the connection broke: {words}") from error
        return self._read(response, in_words)

    def _read(self, response: httpx2.Response, in_words: bool) -> Any:
        status = response.status_code
        if status >= 300:
            words = self.hide(_words(response))
            raise Failed(f"HTTP {status}: {words}", status, _retry_after_s(response))
        text = self._without_key(response.text)
        if in_words:
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            kind = response.headers.get("content-type", "of no kind")
            start = self.hide(" ".join(text.split())[:80])
            raise Failed(f"an answer that is no JSON, but {kind}: {start!r}", status) from error

    def _without_key(self, text: str) -> str:
        """An answer that repeats the key, without it; one as short as EMPTY counts as empty."""
        return self.hide(text) if len(self._key) >= _SHORTEST_KEY and self._key in text else text

    def _choose(self, servers: Sequence[str]) -> str:
        now = time.monotonic()
        up = [server for server in servers if self._down_until.get(server, 0.0) <= now]
        return min(up or servers, key=lambda server: self._open.get(server, 0))

    def _leave_out(self, server: str, error: Failed) -> None:
        self._down_until[server] = time.monotonic() + 8 * self.retry_policy.backoff_s
        if server not in self._warned:
            self._warned.add(server)
            _log.warning(
                "%s does not answer (%s): it is left out while others do, and tried again later.",
                shown(server),
                error,
            )


def pause_s(policy: RetryPolicy, attempt: int, error: Failed) -> float:
    """Return the seconds to wait after a failed attempt, numbered from 0: as asked, else doubling."""
    if error.after_s is not None:
        return min(error.after_s, _LONGEST_ASKED_S)
    # jitter, so that requests that failed together do not come back together
    pause = policy.backoff_s * 2.0 ** min(attempt, 16)
    return min(pause, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its connections, so that none stays open.

    One that is made as its builder is cancelled is in no client's pool: anyio's connect_tcp forgets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the class above."""
        transport, protocol = await super().create_connection(*args, **kwargs)
        self.made.add(transport)
        return transport, protocol


async def _heard(work: Coroutine[Any, Any, T]) -> T:
    """The same; what it raises when nobody waits for it any more is not logged by asyncio."""
    try:
        return await work
    except Exception:
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


def shown(url: str) -> str:
    """A URL without the password or key that it may hold.

    >>> shown("http://me:secret@host/v1?key=secret")
    'http://host/v1'
    """
    scheme, mark, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def complaint(error: Failed, url: str) -> str:
    """Return a message for a failure that concerns all requests: a wrong key, name or address."""
    if error.status in (401, 403):
        return f"{shown(url)} refuses the key ({error}): set OPENAI_API_KEY to one that it takes."
    return f"{shown(url)} can't be used: {error}."


def _headers(key: str) -> dict[str, str]:
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("OPENAI_API_KEY holds characters that no key has: set it again.")
    return {"Authorization": f"Bearer {key}"}


def _words(response: httpx2.Response) -> str:
    """Return a server's own message for an error, in a line."""
    try:
        said = response.json()
    except ValueError:
        said = response.text
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return " ".join(str(said).split())[:500] or response.reason_phrase


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds until a server wants to be asked again, where it says so in seconds or as a date."""
    try:  # OpenAI's own, finer
        return max(0.0, float(response.headers.get("retry-after-ms", "")) / 1000)
    except ValueError:
        pass
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, (at - datetime.now(at.tzinfo or timezone.utc)).total_seconds())
