"""Caps on requests, tokens and money, kept before a request is sent.

A request reserves the most that it may take: its prompt has at most as many tokens as bytes, and its
completion at most its limit. What it took, by the server's usage, is booked once it is answered. So a
cap is never exceeded, and is nearly reached only once what is open has been answered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from femtune._util.parsing import named_pairs
from femtune.errors import ConfigError
from femtune.types import Message

_PER_MESSAGE = 16  # tokens that a chat template writes around a message, at most
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices of a million tokens, in any currency; `cached` is that of prompt tokens from a cache."""

    prompt: float
    generated: float
    cached: float | None = None

    def of(self, prompt: int, cached: int, generated: int) -> float:
        """Return the price of so many tokens; the cached ones are among the prompt's.

        >>> Prices(prompt=2.0, generated=8.0, cached=0.5).of(1_000_000, 400_000, 100_000)
        2.2
        """
        rate = self.prompt if self.cached is None else self.cached
        full = (prompt - cached) * self.prompt + cached * rate + generated * self.generated
        return full / MILLION


@dataclass(frozen=True, kw_only=True)
class Caps:
    """The most that a run may spend; None for no cap."""

    max_requests: int | None = None
    max_total_tokens: int | None = None  # of prompts and completions together
    max_cost: float | None = None
    prices: Prices | None = None

    @property
    def counts_tokens(self) -> bool:
        """Return True if a cap needs the server's counts of tokens."""
        return self.max_total_tokens is not None or self.max_cost is not None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Requests and their tokens: by the server's usage, else the most that may have been used."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's
    completion_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )

    def cost(self, prices: Prices | None) -> float | None:
        """Return the money by a price table; None without one."""
        if prices is None:
            return None
        return prices.of(self.prompt_tokens, self.cached_tokens, self.completion_tokens)

    def describe(self, prices: Prices | None = None) -> str:
        """Say it in words.

        >>> Spent(requests=2, prompt_tokens=1500, completion_tokens=80).describe()
        '2 requests, 1,500 prompt tokens, 80 generated tokens'
        """
        words = (
            f"{self.requests:,} requests, {self.prompt_tokens:,} prompt tokens, "
            f"{self.completion_tokens:,} generated tokens"
        )
        money = self.cost(prices)
        return words if money is None else f"{words}, {money:.4g} by the prices"


@dataclass
class Budget:
    """Keep what is spent and what is reserved under the caps; for several threads."""

    caps: Caps
    spent: Spent = Spent()
    _reserved: dict[str, Spent] = field(default_factory=dict)
    _excess: int = 0  # tokens by which a prompt was longer than thought
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def most_of(self, messages: Sequence[Message], most_new: int) -> Spent:
        """Return the most that a request of these messages may take."""
        prompt = sum(len(message["content"].encode()) + _PER_MESSAGE for message in messages)
        return Spent(
            requests=1,
            prompt_tokens=prompt + _PER_MESSAGE + self._excess,
            completion_tokens=most_new,
        )

    def reserve(self, name: str, most: Spent) -> bool:
        """Reserve what a request may take; False if a cap has no room for it."""
        with self._lock:
            if not self._fits(sum(self._reserved.values(), self.spent) + most):
                return False
            self._reserved[name] = most
            return True

    def _fits(self, total: Spent) -> bool:
        tokens = total.prompt_tokens + total.completion_tokens
        caps, money = self.caps, total.cost(self.caps.prices)
        if caps.max_requests is not None and total.requests > caps.max_requests:
            return False
        if caps.max_total_tokens is not None and tokens > caps.max_total_tokens:
            return False
        return caps.max_cost is None or money is None or money <= caps.max_cost

    def free(self, name: str) -> None:
        """Take a reservation back: the server refused the request, and charges nothing for it."""
        with self._lock:
            self._reserved.pop(name, None)

    def book(self, name: str, took: Spent | None = None) -> None:
        """Book what a request took; None: it may have been answered, so all that it reserved."""
        with self._lock:
            most = self._reserved.pop(name, Spent(requests=1))
            if took is not None:
                self._excess = max(self._excess, took.prompt_tokens - most.prompt_tokens)
            self.spent += took or most

    def exhausted(self) -> str:
        """Name the caps that are set, and what is spent."""
        caps = self.caps
        named = {
            "--max-requests": caps.max_requests,
            "--max-total-tokens": caps.max_total_tokens,
            "--max-cost": caps.max_cost,
        }
        given = ", ".join(f"{flag} {value:,g}" for flag, value in named.items() if value is not None)
        return f"a cap is reached ({given}): {self.spent.describe(caps.prices)} are spent"


def read_caps(settings: Any) -> Caps:
    """Return the caps of settings: config.Ask. Raises ConfigError for prices that are not numbers."""
    pairs = named_pairs("prices", settings.prices)
    prices = _prices(pairs) if pairs else None
    if settings.max_cost is not None and prices is None:
        raise ConfigError(
            "max_cost needs prices: add --prices prompt=0.4 generated=1.6, say, per million tokens."
        )
    for name in ("max_requests", "max_total_tokens", "max_cost"):
        if (value := getattr(settings, name)) is not None and value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value:g}.")
    return Caps(
        max_requests=settings.max_requests,
        max_total_tokens=settings.max_total_tokens,
        max_cost=settings.max_cost,
        prices=prices,
    )


def _prices(pairs: Mapping[str, str]) -> Prices:
    known = {"prompt", "generated", "cached"}
    try:
        values = {name: float(value) for name, value in pairs.items()}
        if not {"prompt", "generated"} <= values.keys() <= known or min(values.values()) < 0:
            raise ValueError
    except ValueError:
        given = " ".join(f"{name}={value}" for name, value in pairs.items())
        raise ConfigError(
            f"prices {given!r}: give numbers of at least 0, each per million tokens, as prompt=0.4 "
            "generated=1.6, with cached=0.1 where prompt tokens from a cache cost less."
        ) from None
    return Prices(**values)
