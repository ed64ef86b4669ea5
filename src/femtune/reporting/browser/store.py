"""Queries to the index and the shards: counts, pages, single draws, the draws of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import duckdb

from femtune.errors import ConfigError, FemtuneError
from femtune.reporting.browser.filters import COLUMNS, NUMBERS, ORDERS, PAGE, Filter
from femtune.reporting.browser.index import Index
from femtune.reporting.browser.items import last_message, own_lines
from femtune.reporting.browser.runs import PROBLEMS
from femtune.types import Message, Problem, Prompt

FACETS = ("run", "kind", "iteration", "stage", "prompt", "kept", "reason", "finish", "answer", "correct")
SHOWN_VALUES = 12  # values shown of a facet, the most frequent ones
EXCERPT = 400  # characters of a draw in a list
_BEFORE = 100  # characters of the excerpt before the search text
_FROM = "FROM draws d JOIN shards s USING (shard)"
_BY = {"run": "min(s.position)", "kind": "value", "iteration": "value", "stage": "value"}
_SHORT = "s.run, s.kind, s.iteration, d.stage, d.index, d.problem_id"


@dataclass(frozen=True, order=True, kw_only=True)
class Name:
    """The unique name of a draw among all runs, also used in links."""

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
    def of(cls, parts: Sequence[Any]) -> Name:
        """Return the name of these parts, in the order of the fields."""
        run, kind, iteration, stage, index, problem_id = parts
        return cls(
            run=run, kind=kind, iteration=iteration, stage=stage, index=index, problem_id=problem_id
        )

    @classmethod
    def read(cls, text: str) -> Name:
        """Parse the output of `str`. Raises ConfigError."""
        parts = text.split("/", 5)
        numbers = parts[2:5]
        if len(parts) < 6 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in numbers):
            raise ConfigError("a draw is named RUN/KIND/ITERATION/STAGE/INDEX/PROBLEM in a link.")
        return cls.of([*parts[:2], *map(int, numbers), parts[5]])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A draw in a list, with its text shortened."""

    id: int
    name: Name
    prompt: str
    finish_reason: str
    logprob: float
    reward: float
    answer: str
    reason: str
    correct: str | None
    gain: float | None  # gain in the correct answer's log-probability (nats); None: not computed
    num_tokens: int
    text: str
    cut: bool  # True if the text is shortened
    detail: str

    @property
    def kept(self) -> bool:
        return self.reason == ""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A draw with all its stored columns."""

    seen: Seen
    rationale: str
    seed: int
    error: str
    tokens: tuple[int, ...]
    num_forced: int  # trailing tokens that were forced, not sampled
    demos: str  # digest of the worked examples in its prompt; "" for none
    temperature: float


@dataclass(frozen=True)
class Asked:
    """The prompts of a problem in a run; `why_not` if they cannot be rendered."""

    plain: tuple[Message, ...] = ()
    hinted: tuple[Message, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Value:
    """One value of a facet, and the number of draws with it under all other filters."""

    value: Any
    num: int
    num_kept: int


class Store:
    """The queries of the pages."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def count(self, asked: Filter) -> tuple[int, int]:
        """Count the draws that match a filter, and the kept ones among them."""
        where, values = asked.group_conditions()
        sql = f"""
            SELECT coalesce(sum(d.num), 0)::BIGINT,
            coalesce(sum(d.num) FILTER (d.reason = ''), 0)::BIGINT
            FROM groups d JOIN shards s USING (shard) WHERE d.key = ? AND {where}
        """
        ((num, num_kept),) = self.index.query(sql, [self.index.groups(asked), *values])
        return num, num_kept

    def knows_gains(self) -> bool:
        """Return True if any draw has a gain."""
        return bool(self.index.query("SELECT 1 FROM draws WHERE gain IS NOT NULL LIMIT 1"))

    def page(self, asked: Filter) -> list[Seen]:
        """Return the draws of the filter's page."""
        where, values = asked.conditions()
        sql = f"""
            SELECT d.id {_FROM} WHERE {where}
            ORDER BY {ORDERS[asked.sort]} LIMIT {PAGE} OFFSET {(asked.page - 1) * PAGE}
        """
        return self.seen([id for (id,) in self.index.query(sql, values)], needle=asked.text)

    def seen(self, ids: Sequence[int], length: int = EXCERPT, needle: str = "") -> list[Seen]:
        """Return these draws, each with an excerpt of its text, around the needle if there is one."""
        sql = f"""
            SELECT d.id, {_SHORT}, d.prompt, d.finish_reason, d.logprob, d.reward, d.answer, d.reason,
            d.correct, d.gain {_FROM} WHERE d.id IN (SELECT unnest(?))
        """
        short = {row[0]: row for row in self.index.query(sql, [list(ids)])}
        start = "greatest(1, strpos(lower(r.text), lower($needle)) - $before)"
        columns = f"len(r.tokens), substr(r.text, {start}, $length + 1), {start}, r.detail"
        asked = {"needle": needle, "before": _BEFORE, "length": length}
        made, rows = [], self.index.rows(ids, columns, asked)
        counts = self._counts([id for id, num_tokens, text, *_ in rows if text and not num_tokens])
        for id, num_tokens, text, first, detail in rows:
            _, *name, prompt, finish, logprob, reward, answer, reason, correct, gain = short[id]
            shown = ("…" if first > 1 else "") + text[:length] + ("…" if len(text) > length else "")
            seen = Seen(
                id=id,
                name=Name.of(name),
                prompt=prompt,
                finish_reason=finish,
                logprob=logprob,
                reward=reward,
                answer=answer,
                reason=reason,
                correct=correct,
                gain=gain,
                num_tokens=counts.get(id, num_tokens),
                text=shown,
                cut=shown != text,
                detail=detail,
            )
            made.append(seen)
        return made

    def _counts(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the tokens that a server counted, of those of these draws that are of text."""
        counts: dict[int, int] = {}
        for number in {id >> 32 for id in ids}:
            table = self.index.shard(number)
            if "served" in table.column_names:
                mine = [id for id in ids if id >> 32 == number]
                served = table["served"].take([id & 0xFFFFFFFF for id in mine]).to_pylist()
                counts |= {
                    id: (each or {}).get("completion_tokens") or 0
                    for id, each in zip(mine, served, strict=True)
                }
        return counts

    def facets(self, asked: Filter) -> dict[str, list[Value]]:
        """Return the values of each facet under the other filters, the most frequent ones if many."""
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
        """Return the values of a facet that fulfil a condition."""
        where, values = asked.group_conditions(without=name)
        sql = f"""
            SELECT {COLUMNS[name]} AS value, sum(d.num)::BIGINT AS num,
            coalesce(sum(d.num) FILTER (d.reason = ''), 0)::BIGINT
            FROM groups d JOIN shards s USING (shard) WHERE d.key = ? AND {where}
            GROUP BY value HAVING {having} ORDER BY {_BY.get(name, "num DESC, value")} {limit}
        """
        return [Value(*row) for row in self.index.query(sql, [key, *values, *more])]

    def find(self, name: Name) -> int | None:
        """Return the id of a draw, or None if no draw has this name."""
        sql = f"SELECT d.id {_FROM} WHERE ({_SHORT}) = (?, ?, ?, ?, ?, ?)"
        found = self.index.query(sql, [*astuple(name)])
        return found[0][0] if found else None

    def whole(self, id: int, length: int) -> Whole:
        """Return a whole draw; its text and rationale have at most `length` + 1 characters."""
        columns = "r.seed, r.error, r.tokens, r.num_forced, r.demos, r.temperature"
        ((_, rationale, seed, error, tokens, num_forced, demos, temperature),) = self.index.rows(
            [id], f"left(r.rationale, $length + 1), {columns}", {"length": length}
        )
        return Whole(
            seen=self.seen([id], length)[0],
            rationale=rationale,
            seed=seed,
            error=error,
            tokens=tuple(tokens),
            num_forced=num_forced,
            demos=demos,
            temperature=temperature,
        )

    def neighbours(self, asked: Filter, id: int) -> tuple[Name | None, Name | None]:
        """Return the draws before and after one in the filter's order."""
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
        return None if id is None else Name.of(self.index.query(sql, [id])[0])

    def of_problem(self, problem_id: str, runs: Sequence[str], length: int) -> list[Seen]:
        """Return all draws of a problem in these runs, in the order of storage."""
        sql = f"""
            SELECT d.id {_FROM}
            WHERE d.problem_id = ? AND list_contains(?, s.run) ORDER BY s.position, d.id
        """
        ids = [id for (id,) in self.index.query(sql, [problem_id, list(runs)])]
        return self.seen(ids, length)

    def items(self, draws: Sequence[Seen]) -> dict[tuple[str, str, str], str]:
        """Return what each of these draws is about, by run, kind and problem: see `own_lines`.

        Problems that are not stored or can't be read are left out.
        """
        wanted: dict[tuple[str, str], set[str]] = {}
        for draw in draws:
            wanted.setdefault((draw.name.run, draw.name.kind), set()).add(draw.name.problem_id)
        prompts: dict[tuple[str, str, str], str] = {}
        for (run, kind), ids in wanted.items():
            path = self.index.runs[run].root / PROBLEMS[kind]
            sql = "SELECT id, prompt FROM read_parquet($links) WHERE list_contains($ids, id)"
            try:
                links = [self.index.linked(path)]
                rows = self.index.query(sql, {"links": links, "ids": [*ids]}) if path.is_file() else []
            except duckdb.Error:  # named at the head of the page
                continue
            prompts |= {(run, kind, id): last_message(prompt) for id, prompt in rows}
        return own_lines(prompts)

    def asked(self, run: str, kind: str, problem_id: str) -> Asked:
        """Return the prompts of a problem, as the run rendered them."""
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
