"""The number of open requests, and the time of the next: as much as a server's limit allows."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """The pace of requests: half as many at once after a refusal, one more after each full round.

    All requests wait while the server wants to be left alone, not the refused one only.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_answered = 0
        self._limit = float(most)
        self._until = 0.0  # monotonic time

    @property
    def is_tried(self) -> bool:
        """Return True once a request was answered."""
        return self.num_answered > 0

    @property
    def room(self) -> int:
        """Return how many requests may be open: one until the first is answered."""
        return int(self._limit) if self.is_tried else 1

    def answered(self) -> None:
        """Note an answer."""
        self.num_answered += 1
        self._limit = min(self.most, self._limit + 1 / self._limit)

    def slow_down(self, seconds: float) -> None:
        """Halve the number of requests, once a pause, and leave the server alone for so long."""
        now = time.monotonic()
        if now >= self._until:
            self._limit = max(1.0, self._limit / 2)
        self._until = max(self._until, now + seconds)

    async def wait(self) -> None:
        """Wait until a request may be sent."""
        while (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left)
