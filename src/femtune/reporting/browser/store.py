"""Questions to index and shards: how many, which, what a draw says, what a problem's draws say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from femtune.errors import ConfigError, FemtuneError
from femtune.reporting.browser.filters import COLUMNS, NUMBERS, ORDERS, PAGE, Filter
from femtune.reporting.browser.index import Index
from femtune.reporting.browser.runs import PROBLEMS
from femtune.types import Message, Problem, Prompt

FACETS = ("run", "kind", "iteration", "stage", "prompt", "kept", "reason", "finish", "answer", "correct")
SHOWN_VALUES = 12  # of a facet, the most frequent ones
EXCERPT = 400  # characters of a draw in a list
_BEFORE = 100  # of these, before what was looked for
_FROM = "FROM draws d JOIN shards s USING (shard)"
_BY = {"run": "min(s.position)", "kind": "value", "iteration": "value", "stage": "value"}
_SHORT = "s.run, s.kind, s.iteration, d.stage, d.index, d.problem_id"


@dataclass(frozen=True, order=True)
class Name:
    """Names a draw among all runs, in links too."""

    run: str
    kind: str
    iteration: int
    stage: int
    index: int
    problem_id: str

    def __str__(self) -> str:
        head = (self.run, self.kind, self.iteration, self.stage, self.index)
        return "/".join([*map(str, head), self.problem_id])

    @classmethod
    def read(cls, text: str) -> Name:
        """From what `str` makes. Raises ConfigError."""
        parts = text.split("/", 5)
        numbers = parts[2:5]
        if len(parts) < 6 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in numbers):
            raise ConfigError("a draw is named RUN/KIND/ITERATION/STAGE/INDEX/PROBLEM in a link.")
        iteration, stage, index = map(int, numbers)
        return cls(parts[0], parts[1], iteration, stage, index, parts[5])


@dataclass(frozen=True)
class Seen:
    """A draw in a list, its text cut."""

    id: int
    name: Name
    prompt: str
    finish_reason: str
    logprob: float
    reward: float
    answer: str
    reason: str
    correct: str | None
    gain: float | None  # nats by which the rationale raises the correct answer; None: not scored
    num_tokens: int
    text: str
    cut: bool  # whether there is more of the text
    detail: str

    @property
    def kept(self) -> bool:
        return self.reason == ""


@dataclass(frozen=True)
class Whole:
    """A draw with all that is stored of it."""

    seen: Seen
    rationale: str
    seed: int
    error: str
    tokens: tuple[int, ...]
    num_forced: int  # last tokens that were not free
    demos: str  # digest of the worked examples in its prompt; "" for none
    temperature: float


@dataclass(frozen=True)
class Asked:
    """What a run asked of a problem; `why_not` where that can't be told."""

    plain: tuple[Message, ...] = ()
    hinted: tuple[Message, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Value:
    """One value of a facet, and how many draws have it under all other filters."""

    value: Any
    num: int
    num_kept: int


class Store:
    """What the pages ask."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def count(self, asked: Filter) -> tuple[int, int]:
        """How many draws a filter lets through, and how many of these are kept."""
        where, values = asked.group_conditions()
        sql = f"""
            SELECT coalesce(sum(d.num), 0)::BIGINT,
            coalesce(sum(d.num) FILTER (d.reason = ''), 0)::BIGINT
            FROM groups d JOIN shards s USING (shard) WHERE d.key = ? AND {where}
        """
        ((num, num_kept),) = self.index.query(sql, [self.index.groups(asked), *values])
        return num, num_kept

    def knows_gains(self) -> bool:
        """Return whether any draw's rationale was scored."""
        return bool(self.index.query("SELECT 1 FROM draws WHERE gain IS NOT NULL LIMIT 1"))

    def page(self, asked: Filter) -> list[Seen]:
        """The draws of the filter's page."""
        where, values = asked.conditions()
        sql = f"""
            SELECT d.id {_FROM} WHERE {where}
            ORDER BY {ORDERS[asked.sort]} LIMIT {PAGE} OFFSET {(asked.page - 1) * PAGE}
        """
        return self.seen([id for (id,) in self.index.query(sql, values)], needle=asked.text)

    def seen(self, ids: Sequence[int], length: int = EXCERPT, needle: str = "") -> list[Seen]:
        """These draws, each with so many characters of its text, around the needle if there is one."""
        sql = f"""
            SELECT d.id, {_SHORT}, d.prompt, d.finish_reason, d.logprob, d.reward, d.answer, d.reason,
            d.correct, d.gain {_FROM} WHERE d.id IN (SELECT unnest(?))
        """
        short = {row[0]: row for row in self.index.query(sql, [list(ids)])}
        start = "greatest(1, strpos(lower(r.text), lower($needle)) - $before)"
        columns = f"len(r.tokens), substr(r.text, {start}, $length + 1), {start}, r.detail"
        asked = {"needle": needle, "before": _BEFORE, "length": length}
        made = []
        for id, num_tokens, text, first, detail in self.index.rows(ids, columns, asked):
            _, *name, prompt, finish, logprob, reward, answer, reason, correct, gain = short[id]
            shown = ("…" if first > 1 else "") + text[:length] + ("…" if len(text) > length else "")
            own = (num_tokens, shown, shown != text, detail)
            known = (prompt, finish, logprob, reward, answer, reason, correct, gain)
            made.append(Seen(id, Name(*name), *known, *own))
        return made

    def facets(self, asked: Filter) -> dict[str, list[Value]]:
        """Of each facet its values under the other filters; of many the most frequent ones."""
        key, made = self.index.groups(asked), {}
        for name in FACETS:
            most = "" if name in (*NUMBERS, "run") else f"LIMIT {SHOWN_VALUES}"
            named = "TRUE" if name in NUMBERS else "value <> ''"
            made[name] = self._values(asked, key, name, named, most)
            missing = {*getattr(asked, name)} - {value.value for value in made[name]}
            if missing and most:
                these = f"value IN ({', '.join('?' * len(missing))})"
                made[name] += self._values(asked, key, name, these, "", [*missing])
        return made

    def _values(
        self, asked: Filter, key: int, name: str, having: str, limit: str, more: Sequence[Any] = ()
    ) -> list[Value]:
        """Values of a facet that fulfil a condition."""
        where, values = asked.group_conditions(without=name)
        sql = f"""
            SELECT {COLUMNS[name]} AS value, sum(d.num)::BIGINT AS num,
            coalesce(sum(d.num) FILTER (d.reason = ''), 0)::BIGINT
            FROM groups d JOIN shards s USING (shard) WHERE d.key = ? AND {where}
            GROUP BY value HAVING {having} ORDER BY {_BY.get(name, "num DESC, value")} {limit}
        """
        return [Value(*row) for row in self.index.query(sql, [key, *values, *more])]

    def find(self, name: Name) -> int | None:
        """The id of a draw, None where there is none of that name."""
        sql = f"SELECT d.id {_FROM} WHERE ({_SHORT}) = (?, ?, ?, ?, ?, ?)"
        parts = [name.run, name.kind, name.iteration, name.stage, name.index, name.problem_id]
        found = self.index.query(sql, parts)
        return found[0][0] if found else None

    def whole(self, id: int, length: int) -> Whole:
        """All of a draw; of text and rationale so many characters, and one more where there are more."""
        columns = "r.seed, r.error, r.tokens, r.num_forced, r.demos, r.temperature"
        ((_, rationale, seed, error, tokens, *under),) = self.index.rows(
            [id], f"left(r.rationale, $length + 1), {columns}", {"length": length}
        )
        return Whole(self.seen([id], length)[0], rationale, seed, error, tuple(tokens), *under)

    def neighbours(self, asked: Filter, id: int) -> tuple[Name | None, Name | None]:
        """The draws before and after one in the filter's order."""
        where, values = asked.conditions()
        order = ORDERS[asked.sort]
        sql = f"""
            SELECT before, after FROM (
                SELECT d.id, lag(d.id) OVER w AS before, lead(d.id) OVER w AS after
                {_FROM} WHERE {where} WINDOW w AS (ORDER BY {order})
            ) WHERE id = ?
        """
        found = self.index.query(sql, [*values, id])
        if not found:
            return None, None
        before, after = (self._name(each) for each in found[0])
        return before, after

    def _name(self, id: int | None) -> Name | None:
        sql = f"SELECT {_SHORT} {_FROM} WHERE d.id = ?"
        return None if id is None else Name(*self.index.query(sql, [id])[0])

    def of_problem(self, problem_id: str, runs: Sequence[str], length: int) -> list[Seen]:
        """All draws of a problem in these runs, as they are stored."""
        sql = f"""
            SELECT d.id {_FROM}
            WHERE d.problem_id = ? AND list_contains(?, s.run) ORDER BY s.position, d.id
        """
        ids = [id for (id,) in self.index.query(sql, [problem_id, list(runs)])]
        return self.seen(ids, length)

    def asked(self, run: str, kind: str, problem_id: str) -> Asked:
        """The prompts of a problem, as the run rendered them."""
        found = self.index.runs[run]
        path = found.root / PROBLEMS[kind]
        if not path.is_file():
            return Asked(why_not=f"the run has no {path.name}: its prompts are not stored.")
        sql = "SELECT prompt, answer FROM read_parquet($links) WHERE id = $id"
        try:
            rows = self.index.query(sql, {"links": [self.index.linked(path)], "id": problem_id})
            if not rows:
                return Asked(why_not=f"{path.name} has no such problem.")
            prompt: Prompt = rows[0][0]
            problem = Problem(problem_id, prompt, rows[0][1])
            prompts = found.prompts()
            return Asked(tuple(prompts.plain(problem)), tuple(prompts.hinted(problem)))
        except duckdb.Error:
            return Asked(why_not=f"{path.name} can't be read.")
        except FemtuneError as error:
            return Asked(why_not=str(error))
