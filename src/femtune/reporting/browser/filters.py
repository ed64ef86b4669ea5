"""Filters of draws: from a query string to a filter to SQL conditions.

    >>> found = Filter.read([("iteration", "3"), ("kept", "no"), ("text", "because")])
    >>> found.query()
    'iteration=3&kept=no&text=because'

Only the columns and orders named here enter the SQL; user input is always a bound parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import quote, urlencode

from femtune._util.text import near
from femtune.errors import ConfigError

PAGE = 50  # draws on a page
LONGEST = 1000  # characters of a search text, or of a value
MOST = 50  # values of a filter: each is a link that has the others in it
MOST_TEXT = 4000  # characters of all values together, for the same reason

# the column of each field that takes several values
COLUMNS = {
    "run": "s.run",
    "kind": "s.kind",
    "iteration": "s.iteration",
    "stage": "d.stage",
    "prompt": "d.prompt",
    "kept": "if(d.reason = '', 'yes', 'no')",
    "reason": "d.reason",
    "finish": "d.finish_reason",
    "answer": "d.answer",
    "correct": "d.correct",
}
NUMBERS = ("iteration", "stage")
_LAST = "s.position, d.id"  # the order of storage; it makes all orders total
ORDERS = {
    "stored": _LAST,
    "newest": f"s.iteration DESC, {_LAST}",
    "shuffled": f"d.seed, {_LAST}",  # a seed is a hash
    "problem": f"d.problem_id, {_LAST}",
    "reward": f"d.reward, {_LAST}",
    "-reward": f"d.reward DESC, {_LAST}",
    "logprob": f"isnan(d.logprob), d.logprob, {_LAST}",
    "-logprob": f"isnan(d.logprob), d.logprob DESC, {_LAST}",
    "gain": f"d.gain NULLS LAST, {_LAST}",
    "-gain": f"d.gain DESC NULLS LAST, {_LAST}",
    "tokens": f"d.num_tokens, {_LAST}",
    "-tokens": f"d.num_tokens DESC, {_LAST}",
}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A selection of draws, their order, and the page; an empty field matches every draw."""

    run: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()  # draws, eval
    iteration: tuple[int, ...] = ()
    stage: tuple[int, ...] = ()
    prompt: tuple[str, ...] = ()  # plain, hinted
    kept: tuple[str, ...] = ()  # yes, no
    reason: tuple[str, ...] = ()  # why a draw was not kept
    finish: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    correct: tuple[str, ...] = ()
    problem: str = ""  # a part of its id
    text: str = ""  # a part of the completion, regardless of case
    sort: str = "newest"
    page: int = 1

    @classmethod
    def read(cls, query: Iterable[tuple[str, str]]) -> Filter:
        """Read a filter from the names and values of a query string; empty values are ignored.

        Raises ConfigError for unknown names and invalid values.
        """
        many: dict[str, list[Any]] = {}
        made: dict[str, Any] = {}
        query = list(query)
        if len(query) > MOST or sum(len(value) for _, value in query) > MOST_TEXT:
            raise ConfigError(
                f"an address has at most {MOST} values of {MOST_TEXT:,} characters in all: this one has "
                f"{len(query):,} values."
            )
        for name, value in query:
            if value == "":
                continue
            if name in COLUMNS:
                own = _whole(name, value) if name in NUMBERS else _short(name, value)
                many.setdefault(name, []).append(own)
            elif name == "page":
                made[name] = _whole(name, value, least=1)
            elif name in ("problem", "text", "sort"):
                made[name] = _short(name, value)
            else:
                known = [field.name for field in fields(cls)]
                raise ConfigError(f"{name[:60]} is nothing to filter by.{near(name, known)}")
        if made.get("sort", "newest") not in ORDERS:
            raise ConfigError(f"sort is one of {', '.join(ORDERS)}, got {made['sort'][:60]}.")
        made |= {name: tuple(dict.fromkeys(values)) for name, values in many.items()}
        return cls(**made)

    def items(self) -> list[tuple[str, str]]:
        """Return names and values as in a query string, without default values."""
        made: list[tuple[str, str]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                made += [(field.name, str(each)) for each in value]
            elif value != field.default:
                made.append((field.name, str(value)))
        return made

    def query(self, **changes: Any) -> str:
        """Return the query string with changes; any change except `page` resets to the first page."""
        changed = replace(self, **({"page": 1} | changes if changes else {}))
        return urlencode(changed.items(), quote_via=quote, safe="/")

    def toggled(self, name: str, value: Any) -> str:
        """Return the query string with a value added, or removed if it was there."""
        there: tuple[Any, ...] = getattr(self, name)
        less = tuple(each for each in there if each != value)
        return self.query(**{name: less if value in there else (*there, value)})

    @property
    def narrows(self) -> bool:
        """Return True if the filter can exclude draws."""
        return self != Filter(sort=self.sort, page=self.page)

    def group_conditions(self, without: str = "") -> tuple[str, list[Any]]:
        """Return conditions on grouped columns, so not on texts, `without` one name's condition."""
        return self._joined(tuple(name for name in COLUMNS if name != without))

    def conditions(self) -> tuple[str, list[Any]]:
        """Return SQL over shards s, draws d and hits, and its values."""
        sql, values = self.group_conditions()
        parts, more = self.text_conditions()
        return f"{sql} AND {parts}", [*values, *more]

    def text_conditions(self) -> tuple[str, list[Any]]:
        """Return the conditions on parts of texts, and their values."""
        sql, values = "TRUE", list[Any]()
        if self.problem:
            sql += " AND contains(lower(d.problem_id), lower(?))"
            values.append(self.problem)
        if self.text:
            sql += " AND d.id IN (SELECT h.id FROM hits h WHERE h.needle = ?)"
            values.append(self.text)
        return sql, values

    def _joined(self, names: tuple[str, ...]) -> tuple[str, list[Any]]:
        parts, values = ["TRUE"], list[Any]()
        for name in names:
            if given := getattr(self, name):
                parts.append(f"{COLUMNS[name]} IN ({', '.join('?' * len(given))})")
                values += given
        return " AND ".join(parts), values


def _whole(name: str, text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise ConfigError(f"{name} must be a whole number, at least {least}, got {text[:60]!r}.")
    return int(text)


def _short(name: str, text: str) -> str:
    if len(text) > LONGEST:
        raise ConfigError(f"{name} has {len(text):,} characters; at most {LONGEST:,} can be searched.")
    return text
