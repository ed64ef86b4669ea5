"""A server of chat completions on loopback, with that alone: text in messages, text out, and its faults.

    with chatting(write) as server:
        ChatEngine("a-model", base_url=server.url)

Its model is a function of the messages' text and the number of the request with that text. `count` of a
text is the number of its words, as the server's tokens.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]
# from messages and how often these were asked before: the reply's text
Write = Callable[[Messages, int], str]
# an answer in the place of the model's: (status, headers, body), "drop", "hang", or changes of the reply
Fault = Callable[[dict[str, Any], int], Any]


def count(text: str) -> int:
    """Return the number of words, the server's tokens."""
    return len(text.split())


@dataclass
class ChatState:
    """What the server is, and what it has seen."""

    write: Write
    fault: Fault = lambda body, number: None
    models: Any = None  # an answer (status, headers, body) to /models; None: a list of one
    owner: str = "somebody"
    refuses: frozenset[str] = frozenset()  # parameters, by a 400 that names them
    continues: bool = False  # a begun message of the assistant's
    delay_s: float = 0.0
    usage: bool = True
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies, in the order of arrival
    paid: list[dict[str, Any]] = field(default_factory=list)  # bodies that were answered
    open: int = 0
    most_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def repeats(self) -> dict[str, int]:
        """Return how often each paid request was paid for, if more than once."""
        seen = Counter(json.dumps(body, sort_keys=True) for body in self.paid)
        return {body: num for body, num in seen.items() if num > 1}


@contextlib.contextmanager
def chatting(write: Write, **changes: Any) -> Iterator[ChatState]:
    """Serve for as long as the block runs."""
    state = ChatState(write, **changes)

    class Handler(_Handler):
        server_state = state

    httpd = _Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, address: Any) -> None:
        """Connections that break are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: ChatState

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a killed client
            super().handle()

    def do_GET(self) -> None:
        state = self.server_state
        cards = {"data": [{"id": "a-model", "owned_by": state.owner}]}
        known = (200, {}, cards) if self.path == "/v1/models" else (404, {}, {"error": "not found"})
        self._reply(*(state.models or known))

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            self._reply(404, {}, {"error": {"message": f"no {self.path} here"}})
            return
        with state.lock:
            state.asked.append(body)
            number = len(state.asked)
            state.open += 1
            state.most_open = max(state.most_open, state.open)
        try:
            self._answer(body, number)
        finally:
            with state.lock:
                state.open -= 1

    def _answer(self, body: dict[str, Any], number: int) -> None:
        state = self.server_state
        fault = state.fault(body, number)
        if fault == "hang":
            state.closing.wait(60)
            self.close_connection = True
        elif fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(fault, tuple):
            self._reply(*fault)
        elif refused := state.refuses & set(body):
            name = sorted(refused)[0]
            words = f"Unsupported parameter: '{name}' is not supported with this model."
            if name == "max_tokens":
                words += " Use 'max_completion_tokens' instead."
            self._reply(400, {}, {"error": {"message": words}})
        elif any(not isinstance(m.get("content"), str) for m in body["messages"]):
            self._reply(400, {}, {"error": {"message": "content must be text"}})
        else:
            time.sleep(state.delay_s)
            self._complete(body, fault or {})

    def _complete(self, body: dict[str, Any], changes: dict[str, Any]) -> None:
        state, messages = self.server_state, body["messages"]
        with state.lock:
            times = sum(each["messages"] == messages for each in state.paid)
            state.paid.append(body)
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        words = state.write(messages, times)
        finish = "stop"
        if most is not None and count(words) > most:
            words, finish = " ".join(words.split(" ")[:most]), "length"
        message = {"role": "assistant", "content": words, **changes.pop("message", {})}
        reply = {
            "model": "a-model-1",
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": sum(count(m["content"]) for m in messages),
                "completion_tokens": max(1, count(words)),
            },
        }
        if not state.usage:
            del reply["usage"]
        if "finish" in changes:
            reply["choices"][0]["finish_reason"] = changes.pop("finish")  # type: ignore[index]  # a list
        self._reply(200, {}, reply | changes)

    def _reply(self, status: int, headers: dict[str, str], body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def said(messages: Messages) -> str:
    """Return the text of all messages."""
    return "\n\n".join(message["content"] for message in messages)


def sums(messages: Messages, times: int) -> str:
    """Add the two numbers of a question such as "What is 3 + 4?", at times wrongly, and say how.

    With a hint it is always right. Asked for something else, it says that it is ready.
    """
    asked = [m["content"] for m in messages if m["role"] == "user" and "What is " in m["content"]]
    if not asked:
        return "ready"
    question = asked[-1]
    first, second = (
        int(word.strip("?")) for word in question.split("What is ")[1].split("\n")[0].split(" + ")
    )
    noise = random.Random(f"{question}/{times}")
    wrong = "correct answer is" not in question and noise.random() < 0.3
    total = first + second + wrong
    return f"I add {second} to {first}, which gives {total}.\nAnswer: {total}"
