"""An in-memory index of the filterable columns of all draws; texts stay in the shards until shown.

DuckDB holds the index and reads the shards. Each refresh adds new shards and reads changed ones again.
Unreadable shards are left out and named in `damaged`. Nothing is written into a run.

    shards   number, position in the overall order, run, kind, iteration, link
    draws    id, shard, and the short columns of each draw, with its problem's correct answer
    hits     for a search text: the ids of draws that contain it
    groups   numbers of draws that differ only in their texts; for each search text
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from femtune.reporting.browser.database import Database
from femtune.reporting.browser.filters import Filter
from femtune.reporting.browser.runs import PROBLEMS, Found, Shard, Stamp, find_runs, stamp

_TABLES = """
CREATE TABLE shards (shard INT, position INT, run TEXT, kind TEXT, iteration INT, link TEXT);
CREATE TABLE problems (run TEXT, kind TEXT, id TEXT, answer TEXT);
CREATE TABLE draws (id BIGINT, shard INT, problem_id TEXT, stage INT, "index" INT, prompt TEXT,
    seed BIGINT, finish_reason TEXT, logprob DOUBLE, reward DOUBLE, answer TEXT, reason TEXT,
    correct TEXT, num_tokens INT, gain DOUBLE);
CREATE TABLE hits (needle TEXT, id BIGINT);
CREATE TABLE groups (key INT, shard INT, stage INT, prompt TEXT, finish_reason TEXT, reason TEXT,
    answer TEXT, correct TEXT, num BIGINT);
"""
# a draw's id is its shard's number, then its row there
_STORED = """
FROM read_parquet($links, filename = true, file_row_number = true) r
JOIN shards s ON s.link = r.filename
"""
_ID = "(s.shard::BIGINT << 32) + r.file_row_number"
_ADD = f"""
INSERT INTO draws SELECT {_ID}, s.shard, r.problem_id, r.stage, r."index", r.prompt_kind, r.seed,
    r.finish_reason, r.logprob, r.reward, r.answer, r.reason, p.answer, NULL, NULL
{_STORED} LEFT JOIN problems p ON p.run = s.run AND p.kind = s.kind AND p.id = r.problem_id
"""
_SEARCH = f"INSERT INTO hits SELECT $needle, {_ID} {_STORED} WHERE regexp_matches(r.text, $needle, 'il')"
_MEASURE = f"""
UPDATE draws d SET num_tokens = m.num
FROM (SELECT {_ID} AS id, len(r.tokens) AS num {_STORED}) m WHERE m.id = d.id
"""
# see answer_rules.gain
_GAINS = """
UPDATE draws d SET gain = if(isinf(g.{after}), g.{after}, g.{after} - g.{without})
FROM scores g WHERE d.shard = ? AND g.{without} IS NOT NULL
    AND d.problem_id = g.problem_id AND d.stage = g.stage AND d."index" = g."index"
"""
_COUNT = """
INSERT INTO groups SELECT {key}, d.shard, d.stage, d.prompt, d.finish_reason, d.reason, d.answer,
    d.correct, count(*) FROM draws d JOIN shards s USING (shard) WHERE {where} GROUP BY ALL
"""
_NEEDLES = 8  # search texts whose hits are cached
_TOKENS = ""  # no search text: stands for num_tokens


class Stale(Exception):
    """A shard has vanished or is damaged; it is now in `damaged`, so try again."""


class Index:
    """The index of all draws; `refresh` updates it. It must be closed."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = places
        self.runs: dict[str, Found] = {}
        self.damaged: dict[Path, tuple[Stamp | None, str]] = {}
        self._listing: list[tuple[Shard, Stamp | None]] = []
        self._numbers: dict[tuple[Shard, Stamp | None], int] = {}
        self._problems: dict[tuple[str, str], Stamp | None] = {}
        self._scanned: dict[str, set[int]] = {}  # by needle, oldest first
        self._groups: dict[tuple[str, str], int] = {}  # keys by text and problem, oldest first
        self._links: dict[Path, str] = {}
        self._next = self._made = 0
        self._db = Database(_TABLES)
        self._con = self._db.con

    def close(self) -> None:
        """Interrupt running queries, also in other threads, and close."""
        self._db.close()

    def query(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Return rows of the index. Raises Closed."""
        return self._db.query(sql, values)

    # --- loading shards

    def refresh(self) -> None:
        """Update the index with new, changed and removed files. Raises Closed."""
        with self._db.alone():
            self.runs = find_runs(self.places)
            for run in self.runs.values():
                self._read_problems(run)
            # a shard is read again when its problems change, as they hold the correct answers
            listing = [
                (shard, self._problems[shard.run, shard.kind])
                for run in self.runs.values()
                for shard in run.shards()
                if self.damaged.get(shard.path, (None, ""))[0] != shard.stamp
            ]
            if listing != self._listing:
                self._update(listing)

    def _read_problems(self, run: Found) -> None:
        """Load ids and correct answers of a run's problems if they have changed."""
        for kind, name in PROBLEMS.items():
            path = run.root / name
            try:
                known = stamp(path.stat())
            except OSError:
                known = None
            if self._problems.get((run.name, kind), ()) == known:
                continue
            self._problems[run.name, kind] = known
            self._con.execute("DELETE FROM problems WHERE run = ? AND kind = ?", [run.name, kind])
            if known is None:
                continue
            link = self.linked(path)
            try:
                self._con.execute(
                    "INSERT INTO problems SELECT ?, ?, id, answer FROM read_parquet([?])",
                    [run.name, kind, link],
                )
            except duckdb.Error as error:
                self.damaged[path] = known, _why(error).replace(link, name)
            else:
                self.damaged.pop(path, None)

    def _update(self, listing: list[tuple[Shard, Stamp | None]]) -> None:
        there = {each: self._numbers[each] for each in listing if each in self._numbers}
        gone = [number for each, number in self._numbers.items() if each not in there]
        new = [each for each in listing if each not in there]
        for shard, known in new:
            self.damaged.pop(shard.path, None)
            os.symlink(shard.path, self._where(self._next))  # DuckDB reads a * in a path as a pattern
            there[shard, known] = self._next
            self._next += 1
        self._con.begin()
        self._drop(gone)
        self._numbers, self._listing = there, listing
        self._place()
        self._con.commit()
        bad = self._each(_ADD, [there[each] for each in new])
        self._set_aside(bad)
        for shard, known in new:
            self.damaged.pop(shard.scores, None)
            if there[shard, known] not in bad and shard.scores_stamp is not None:
                self._add_gains(there[shard, known], shard)

    def _add_gains(self, number: int, shard: Shard) -> None:
        """Load by how much rationales raise the probability of the correct answer."""
        try:
            with shard.scores.open("rb") as file:
                scores = pq.read_table(file)
            self._con.register("scores", scores)
            # for a closed set the gain among its answers, if it is stored
            for after, without in (("log_answer", "log_direct"), ("among_answer", "among_direct")):
                if without in scores.column_names:  # older runs have none
                    sql = _GAINS.format(after=after, without=without)
                    self._con.execute(sql, [number])
            self._con.unregister("scores")
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            if isinstance(error, duckdb.InterruptException):
                raise
            self.damaged[shard.scores] = shard.scores_stamp, str(error).splitlines()[0][:300]

    def _place(self) -> None:
        """Rebuild the table of shards in the order of the listing."""
        rows = [(self._numbers[each], each[0]) for each in self._listing]
        columns = [
            [number for number, _ in rows],
            list(range(len(rows))),
            [shard.run for _, shard in rows],
            [shard.kind for _, shard in rows],
            [shard.iteration for _, shard in rows],
            [self._where(number) for number, _ in rows],
        ]
        self._con.execute("DELETE FROM groups")
        self._groups.clear()
        self._con.execute("DELETE FROM shards")
        self._con.execute(f"INSERT INTO shards SELECT {', '.join(['unnest(?)'] * 6)}", columns)

    def _drop(self, numbers: Sequence[int]) -> None:
        """Remove shards from the index."""
        if numbers:
            for table in ("draws", "hits"):
                self._con.execute(f"DELETE FROM {table} WHERE list_contains(?, id >> 32)", [numbers])
            for number in numbers:
                os.unlink(self._where(number))

    def _where(self, number: int) -> str:
        return f"{self._db.folder}/{number}.parquet"

    def linked(self, path: Path) -> str:
        """Return a link without pattern characters to a file that is no shard."""
        with self._db.alone():
            if path not in self._links:
                self._links[path] = f"{self._db.folder}/problems-{len(self._links)}"
                os.symlink(path, self._links[path])
            return self._links[path]

    # --- queries over many shards

    def _each(self, sql: str, numbers: Sequence[int], **values: Any) -> dict[int, str]:
        """Run SQL over shards, at once if all are readable; return unreadable ones with the reason."""
        if not numbers:
            return {}
        try:
            self._con.execute(sql, {"links": [self._where(number) for number in numbers], **values})
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:
            if len(numbers) == 1:
                return {numbers[0]: _why(error)}
            half = len(numbers) // 2
            first = self._each(sql, numbers[:half], **values)
            return first | self._each(sql, numbers[half:], **values)
        return {}

    def _set_aside(self, bad: dict[int, str]) -> None:
        """Exclude shards until they change."""
        if not bad:
            return
        each = {number: shard for (shard, _), number in self._numbers.items()}
        for number, why in bad.items():
            said = why.replace(self._where(number), each[number].path.name)
            self.damaged[each[number].path] = each[number].stamp, said
        self._con.begin()
        self._drop([*bad])
        self._numbers = {key: n for key, n in self._numbers.items() if n not in bad}
        self._listing = [key for key in self._listing if key in self._numbers]
        self._place()
        self._con.commit()

    def prepare(self, asked: Filter) -> None:
        """Search all shards for the filter's text; count tokens if the filter sorts by them."""
        with self._db.alone():
            if asked.text:
                self._scan(asked.text, _SEARCH, needle=asked.text)
            if asked.sort in ("tokens", "-tokens"):
                self._scan(_TOKENS, _MEASURE)

    def groups(self, asked: Filter) -> int:
        """Return the key of the groups for the filter's texts; build the groups if needed."""
        with self._db.alone():
            texts = asked.text, asked.problem
            key = self._groups.pop(texts, None)
            if key is None:
                key = self._made = self._made + 1
                where, values = asked.text_conditions()
                self._con.execute(_COUNT.format(where=where, key=key), values)
            self._groups[texts] = key
            for old in [*self._groups][:-_NEEDLES]:
                self._con.execute("DELETE FROM groups WHERE key = ?", [self._groups.pop(old)])
            return key

    def _scan(self, key: str, sql: str, **values: Any) -> None:
        """Read a long column of the shards not yet read for this key."""
        done = self._scanned.pop(key, set())
        new = [number for number in self._numbers.values() if number not in done]
        bad = self._each(sql, new, **values)
        self._scanned[key] = {*self._numbers.values()}
        self._set_aside(bad)
        needles = [needle for needle in self._scanned if needle]
        for needle in needles[:-_NEEDLES]:
            del self._scanned[needle]
            self._con.execute("DELETE FROM hits WHERE needle = ?", [needle])

    def rows(self, ids: Sequence[int], columns: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return columns of these draws from their shards, in this order, each row after the id.

        Raises Stale if a shard is no longer readable.
        """
        numbers = sorted({each >> 32 for each in ids})
        if not ids:
            return []
        sql = f"""
            SELECT w.id, {columns} FROM read_parquet($links, filename = true, file_row_number = true) r
            JOIN (SELECT unnest($ids) AS id, unnest($where) AS link) w
            ON w.link = r.filename AND w.id & 4294967295 = r.file_row_number
        """
        places = [self._where(each >> 32) for each in ids]
        asked = {"links": [*map(self._where, numbers)], "ids": list(ids), "where": places, **values}
        try:
            found = {row[0]: row for row in self.query(sql, asked)}
            return [found[each] for each in ids]
        except (duckdb.Error, KeyError) as error:
            with self._db.alone():
                self._set_aside(self._unreadable(numbers, columns, values))
            raise Stale from error

    def shard(self, number: int) -> pa.Table:
        """Read a whole shard."""
        with open(self._where(number), "rb") as file:
            return pq.read_table(file)

    def _unreadable(self, numbers: Sequence[int], columns: str, values: Any) -> dict[int, str]:
        bad = {}
        for number in numbers:
            if number not in self._numbers.values():
                continue
            try:
                sql = f"SELECT {columns} FROM read_parquet($links) r"
                self.query(sql, {"links": [self._where(number)], **values})
            except duckdb.Error as error:
                bad[number] = _why(error)
        return bad


def _why(error: duckdb.Error) -> str:
    """Return the first line of a DuckDB error."""
    return str(error).splitlines()[0][:300]
