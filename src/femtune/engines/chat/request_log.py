"""What was asked of a server and what it answered, so that nothing is paid for twice.

    requests.jsonl   in a run's folder: a checksum and an object a line

    {"sent": ID, "prompt_tokens": 812, "completion_tokens": 512}    before a request is sent: its most
    {"answer": ID, "text": ..., "usage": ..., "model": ...}         as its answer arrives
    {"free": ID}                                                    the server refused it, for no money

An answer is stored before anything is made of it. A request that was sent and has neither of the other
lines was open when the process was killed: it counts as spent, and is asked again.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from femtune._util.atomic_files import cant_write
from femtune.engines.chat.budget import Spent

LOG = "requests.jsonl"

_log = logging.getLogger("femtune")


class RequestLog:
    """Answers by the id of their request, in a file; without a path, in one that is gone with it.

    `spent` is what was spent when it was opened, `lost` the number of requests that were
    never answered.
    Raises RunError where the file can't be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # of answers: start and length
        self._lock = threading.Lock()
        self.spent, self.lost = Spent(), 0
        self.first: dict[str, Any] | None = None  # the first answer
        try:
            self._file = _opened(path)
            self._read()
        except OSError as error:
            raise cant_write(path or Path(tempfile.gettempdir()), error) from error

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def answer(self, name: str) -> dict[str, Any]:
        """Return a stored answer. Raises KeyError."""
        start, length = self._places[name]
        with self._lock:
            self._file.seek(start)
            found: dict[str, Any] = json.loads(self._file.read(length)[9:])
        return found

    def add_sent(self, name: str, most: Spent) -> None:
        """Store that a request is about to be sent, and the most that it may take."""
        tokens = {
            "prompt_tokens": most.prompt_tokens,
            "completion_tokens": most.completion_tokens,
        }
        self._append({"sent": name, **tokens})

    def add_answer(self, name: str, answer: Mapping[str, Any]) -> None:
        """Store an answer."""
        self._places[name] = self._append({"answer": name, **answer})

    def add_free(self, name: str) -> None:
        """Store that the server refused a request."""
        self._append({"free": name})

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    def _append(self, entry: Mapping[str, Any]) -> tuple[int, int]:
        text = json.dumps(entry, separators=(",", ":")).encode()
        line = b"%08x %b\n" % (crc32(text), text)
        try:
            with self._lock:
                start = self._file.seek(0, 2)
                left = memoryview(line)
                while left:  # a disk that gets full takes a part of it first
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise cant_write(self.path or Path(tempfile.gettempdir()), error) from error
        return start, len(line)

    def _read(self) -> None:
        """Read what is stored; a line that a kill cut off is removed, a damaged one is left out."""
        sent: dict[str, list[Spent]] = {}
        num_damaged = 0
        for start, line in self._lines():
            check, _, text = line.rstrip(b"\n").partition(b" ")
            if check != b"%08x" % crc32(text):
                num_damaged += 1
                continue
            entry = json.loads(text)
            if name := entry.get("sent"):
                sent.setdefault(name, []).append(_tokens(entry))
            elif name := entry.get("free"):
                sent[name].pop()
            else:
                name = entry["answer"]
                self._places[name] = start, len(line)
                most = sent.get(name) or [Spent(requests=1)]
                self.spent += took(entry) or most[-1]
                most.pop()
                self.first = self.first or entry
        left = [most for each in sent.values() for most in each]
        self.lost = sum(bool(each) and name not in self._places for name, each in sent.items())
        self.spent = sum(left, self.spent)
        if num_damaged:
            _log.warning("%s has damaged lines: %d are left out.", self.path, num_damaged)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        start = self._file.seek(0)
        rest = b""
        while part := self._file.read(1 << 20):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield start, line + b"\n"
                start += len(line) + 1
        self._file.truncate(start)


def _opened(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)
    return path.open("a+b", buffering=0)


def took(answer: Mapping[str, Any]) -> Spent | None:
    """Return what a stored answer took; None where the server gave no counts."""
    prompt, completion = answer.get("prompt_tokens"), answer.get("completion_tokens")
    if prompt is None or completion is None:
        return None
    return Spent(
        requests=1,
        prompt_tokens=prompt,
        cached_tokens=min(answer.get("cached_tokens") or 0, prompt),
        completion_tokens=completion,
    )


def _tokens(entry: Mapping[str, Any]) -> Spent:
    return Spent(
        requests=1,
        prompt_tokens=entry["prompt_tokens"],
        completion_tokens=entry["completion_tokens"],
    )
