"""A server of OpenAI's protocol on loopback, with a model that can be computed by hand, and its faults.

    with serving(kind="vllm") as server:
        OpenAIEngine(folder, tokenizer=..., base_url=server.url)

Its model is bytes (`models.byte_tokenizer`): `write` gives a completion's text by prompt and seed, and a
token's log-probability depends on the token alone. A fault is a function that may answer in the model's
place: see `Faults`.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .models import byte_tokenizer

Write = Callable[[str, int], str]
# from a prompt's tokens, the most tokens, a temperature and a seed: tokens, and the nats of each
Complete = Callable[[list[int], int, float, int], tuple[list[int], list[float]]]


def letters(prompt: str, seed: int) -> str:
    """Three to twenty letters that depend on the seed."""
    noise = random.Random(f"{prompt}/{seed}")
    return "".join(noise.choices(string.ascii_lowercase, k=noise.randint(3, 20)))


def token_logprobs_of(token: int) -> float:
    """Log-probability of any token, whatever stands before it."""
    return -0.5 - token % 7 / 4


@dataclass
class Faults:
    """What the server does wrong; each can be changed while it runs."""

    # of /completions, by its body and the count so far: an answer (status, headers, body), "drop",
    # "truncate", "hang", or None
    completion: Callable[[dict[str, Any], int], Any] = lambda body, count: None
    models: Any = None  # (status, headers, body) or "hang" in the place of the models
    delay_s: float = 0.0  # of each completion
    ignores_seeds: bool = False
    tells_logprobs: bool = True
    tells_ids: bool = True
    leaves_out_end: bool = False
    tempered: bool = False  # log-probabilities at the sampling's temperature
    refuses: frozenset[str] = frozenset()  # parameters, with a 400
    largest_seed: int = 2**63 - 1
    shift: int = 0  # of token ids in the server's tokenizer
    key: str = ""
    takes_adapters: bool = True
    echoes: bool = True  # scores


@dataclass
class FakeServer:
    """What the server is, and what it has seen."""

    kind: str
    write: Write
    faults: Faults
    names: list[str]
    context: int | None
    version: str
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies of completions
    headers: list[dict[str, str]] = field(default_factory=list)  # of all requests
    adapters: dict[str, str] = field(default_factory=dict)  # path by name
    unloaded: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    cancelled: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: Callable[[], None] = lambda: None  # as a crash would
    model: Complete | None = None  # in the place of `write` and `token_logprobs_of`


@contextlib.contextmanager
def serving(
    kind: str = "vllm",
    write: Write = letters,
    faults: Faults | None = None,
    names: tuple[str, ...] = ("base",),
    context: int | None = 512,
    version: str = "/v1",
    port: int = 0,
    model: Any = None,
) -> Iterator[FakeServer]:
    """A server of one kind ("vllm", "sglang", "llamacpp", "openai") for as long as the block runs.

    `model` is a `Complete` with its tokenizer as `coder`; without one the model is bytes.
    """
    state = FakeServer(kind, write, faults or Faults(), list(names), context, version, model=model)
    tokenizer = model.coder if model else byte_tokenizer()

    class Handler(_Handler):
        server_state = state
        coder = tokenizer

    httpd = _Server(("127.0.0.1", port), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}{version}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def stop() -> None:
        state.closing.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()
        httpd.cut()

    state.stop = stop
    try:
        yield state
    finally:
        stop()


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, *args: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, address: Any) -> None:
        """Connections that break are what is tested."""

    def cut(self) -> None:
        """Break what is still open."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server_state: FakeServer
    coder: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        if not self._admitted():
            return
        if state.faults.models == "hang":
            self._wait(60)
        elif state.faults.models is not None:
            self._reply(*state.faults.models)
        elif self.path == f"{state.version}/models":
            cards: list[dict[str, Any]] = [
                {"id": name, "owned_by": state.kind, "max_model_len": state.context}
                for name in state.names
            ]
            cards += [{"id": name, "owned_by": state.kind, "parent": "base"} for name in state.adapters]
            self._reply(200, {}, {"object": "list", "data": cards})
        else:
            self._reply(404, {}, {"detail": "Not Found"})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._admitted():
            return
        adapters = "" if state.kind == "sglang" else state.version
        if self.path == f"{state.version}/completions":
            self._completion(body)
        elif self.path == "/tokenize" and state.kind != "openai":
            text = body["content" if state.kind == "llamacpp" else "prompt"]
            self._reply(200, {}, {"tokens": self._encode(text)})
        elif self.path == f"{adapters}/load_lora_adapter" and state.faults.takes_adapters:
            if not body.get("lora_path"):
                self._reply(400, {}, {"error": {"message": "lora_path must be provided"}})
            elif "refused" in body["lora_path"]:
                self._reply(500, {}, {"error": {"message": "rank 64 is greater than 16"}})
            else:
                state.adapters[body["lora_name"]] = body["lora_path"]
                self._reply(200, {}, "Success: added")
        elif self.path == f"{adapters}/unload_lora_adapter" and state.faults.takes_adapters:
            state.unloaded.append(body["lora_name"])
            known = state.adapters.pop(body["lora_name"], None)
            self._reply(200 if known else 404, {}, "Success: removed" if known else {"error": "none"})
        else:
            self._reply(404, {}, {"detail": "Not Found"})

    def _admitted(self) -> bool:
        state = self.server_state
        state.headers.append({name.lower(): value for name, value in self.headers.items()})
        said = self.headers.get("authorization", "")
        if not state.faults.key or said == f"Bearer {state.faults.key}":
            return True
        # as OpenAI's own does, it says the key that it got
        self._reply(401, {}, {"error": {"message": f"Incorrect API key provided: {said[7:]}"}})
        return False

    def _completion(self, body: dict[str, Any]) -> None:
        state = self.server_state
        with state.lock:
            state.asked.append(body)
            state.open += 1
            state.most_open = max(state.most_open, state.open)
            count = len(state.asked)
        try:
            fault = state.faults.completion(body, count)
            if fault == "hang":
                self._wait(60)
            elif fault == "drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif isinstance(fault, tuple):
                self._reply(*fault)
            elif self._wait(state.faults.delay_s):
                self._reply(*self._answer(body), truncate=fault == "truncate")
        finally:
            with state.lock:
                state.open -= 1

    def _wait(self, seconds: float) -> bool:
        """Whether the client still waits after so long; False where the server closes, too."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.server_state.closing.wait(0.005):
                return False
            if select.select([self.connection], [], [], 0)[0]:
                self.server_state.cancelled += 1
                self.close_connection = True
                return False
        return True

    def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        state, faults = self.server_state, self.server_state.faults
        if refused := faults.refuses & set(body):
            return 400, {}, {"error": {"message": f"unknown parameter: {sorted(refused)[0]}"}}
        if body.get("seed", 0) > faults.largest_seed:
            return 422, {}, {"detail": "seed: too large"}
        name = body.get("lora_path") or body["model"]
        if name not in state.names and name not in state.adapters:
            return 404, {}, {"error": {"message": f"The model `{name}` does not exist."}}
        prompt = body["prompt"]
        tokens = self._encode(prompt) if isinstance(prompt, str) else prompt
        if "allowed_token_ids" in body or body.get("echo"):
            return self._score(body, tokens)
        cold = body["temperature"] < 0.1
        seed = 0 if faults.ignores_seeds or cold else body.get("seed", 0)
        if faults.ignores_seeds and not cold:
            seed = random.getrandbits(32)
        if state.model is not None:
            with state.lock:
                written, each = state.model(tokens, body["max_tokens"], body["temperature"], seed)
        else:
            text = state.write(self.coder.decode(tokens), seed)
            written = [*self._encode(text), self.coder.eos_token_id][: body["max_tokens"]]
            each = [token_logprobs_of(token) for token in written]
        ended = written[-1] == self.coder.eos_token_id
        told = written[:-1] if ended and faults.leaves_out_end else written
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.coder.decode(written, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
            "logprobs": None,
        }
        scale = 1e-3 if faults.tempered and body["temperature"] != 1 else 1.0
        logprobs = [value * scale for value in each[: len(told)]]
        wants = faults.tells_logprobs and body.get("logprobs") is not None
        if state.kind == "llamacpp" and wants:
            ids = told if faults.tells_ids else [None] * len(told)
            choice["logprobs"] = {
                "content": [{"id": i, "logprob": n} for i, n in zip(ids, logprobs, strict=True)]
            }
        elif wants:
            choice["logprobs"] = {"tokens": [chr(97)] * len(told), "token_logprobs": logprobs}
        if body.get("return_token_ids") and faults.tells_ids:
            choice |= {"token_ids": told, "prompt_token_ids": tokens}
        return self._with_usage(choice, tokens, told)

    def _score(self, body: dict[str, Any], tokens: list[int]) -> tuple[int, dict[str, str], Any]:
        if not self.server_state.faults.echoes:
            return 400, {}, {"error": {"message": "echo is not supported"}}
        prompt_logprobs = [None, *(token_logprobs_of(token) for token in tokens[1:])]
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        if body.get("echo"):
            written = [97] * min(1, body["max_tokens"])
            logprobs = prompt_logprobs + [token_logprobs_of(token) for token in written]
            choice["logprobs"] = {"tokens": ["?"] * len(logprobs), "token_logprobs": logprobs}
        else:
            written = body["allowed_token_ids"]
            choice["logprobs"] = {"tokens": ["?"], "token_logprobs": [token_logprobs_of(written[0])]}
            if body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = [
                    None if value is None else {str(token): {"logprob": value}}
                    for token, value in zip(tokens, prompt_logprobs, strict=True)
                ]
        return self._with_usage(choice, tokens, written)

    def _with_usage(self, choice: Any, tokens: Any, written: Any) -> tuple[int, dict[str, str], Any]:
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(written)}
        return 200, {}, {"object": "text_completion", "choices": [choice], "usage": usage}

    def _encode(self, text: str) -> list[int]:
        tokens = self.coder(text, add_special_tokens=False)["input_ids"]
        return [
            (token + self.server_state.faults.shift) % 256 if token < 256 else token for token in tokens
        ]

    def _reply(self, status: int, headers: dict[str, str], body: Any, truncate: bool = False) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/html" if text.startswith("<") else "application/json"
        data = text.encode()
        self.send_response(status)
        if not text.startswith("Success"):  # vLLM's has no type
            self.send_header("content-type", kind)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if truncate else data)
        if truncate:
            self.close_connection = True
