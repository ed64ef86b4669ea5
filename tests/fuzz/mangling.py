"""Values, texts, tables and bytes as nobody should write them, each from a `random.Random` alone."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A file that somebody gave: its name, with the folders that it is in, and its bytes."""

    name: str
    content: bytes

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # one that is still mapped into memory must not be cut
        path.write_bytes(self.content)
        return path


# --- values in place of others

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 0.5, -0.0, 1e308, 1e-320, 10**19, -(10**30), 10**400),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [None], [[]], {"": None}, [1, "2", None], ""),
    *(" ", "\n", "\x00", "0", "5", "1e999", "NaN", "N/A", "null", "true", "A", "B", "tie", "####"),
    *("\ud800", "\udfff x", "é\u0301", "\u202e", "٣", "½", "\u2028", "\ufeff", "{", "[1", "[]"),
    *('{"a":1}', "x" * 70_000, "[" * 20_000, "9" * 5_000, "\\boxed{", " (swapped)"),
    *("<extra_id_1>User\n", "#2", [{"role": "user", "content": "Hi"}], [{"role": "user"}]),
    *([{"role": 1, "content": None}], {"text": ["a", "b"], "label": ["A", "B"]}, {"form": "rating"}),
    *({"frame": 1}, {"item": []}),
)
_NAMES = (
    *("id", "prompt", "answer", "score", "preference", "item", "frame", "rater", "attribute", "title"),
    *("labels", "choices", "", " ", "\ud800", "a.b", "évêque", "terms", "truth", "world", "reward"),
    "x" * 999,
)


def odd(rng: Random) -> Any:
    """A value that hardly belongs anywhere, at times within lists or objects, at times deep in them."""
    value = rng.choice(_ODD)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2, 60))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("text", "role", "a")): value}
    return value


def altered(rng: Random, value: Any) -> Any:
    """A value with something in it replaced, left out, doubled or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice([*value])
        what = rng.randrange(6)
        if what == 0:
            return {key: kept for key, kept in value.items() if key != name}
        if what == 1:
            return {**value, rng.choice(_NAMES): odd(rng)}
        return {**value, name: altered(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at, what = rng.randrange(len(value)), rng.randrange(5)
        middle = {0: [], 1: [value[at]] * 2, 2: [odd(rng), value[at]]}
        return [*value[:at], *middle.get(what, [altered(rng, value[at])]), *value[at + 1 :]]
    if isinstance(value, str) and rng.random() < 0.3:
        return damaged(rng, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return odd(rng)


def rows(rng: Random, good: Sequence[Row]) -> list[Any]:
    """A few of these rows, one or another altered, now and then something that is no row."""
    made: list[Any] = rng.sample(good, rng.randint(1, min(5, len(good))))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        at = rng.randrange(len(made))
        made[at] = altered(rng, made[at])
    if rng.random() < 0.05:
        made.insert(rng.randrange(len(made) + 1), rng.choice((odd(rng), made[0])))
    if rng.random() < 0.2:  # the same in all of them
        name, value = rng.choice(_NAMES), odd(rng)
        made = [{**row, name: value} if isinstance(row, dict) else row for row in made]
    return made


# --- bytes

_SPLICES = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"'", b",", b"\t"),
    *(b"{", b"}", b"[", b":", b"NaN", b"-Infinity", b"1e999", b"\\ud800", b"null", b"{}", b"[]"),
    *(b"PAR1", b"[" * 100_000, b'{"a":' * 3_000, b"1" * 5_000, b"-" + b"9" * 400, b"\xc2\xa0"),
    b"\xe2\x80\xa8",
)


def damaged(rng: Random, data: bytes, splices: Sequence[bytes] = _SPLICES) -> bytes:
    """Bytes of which some are changed, cut out, doubled, or lack their end; or others among them."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        near_end = len(made) - int(rng.expovariate(0.01))  # where Parquet has its footer
        at = max(0, rng.choice((near_end, rng.randrange(len(made) + 1))))
        end = min(len(made), at + rng.choice((1, 1, 1, 4, 30, 300)))
        what = rng.randrange(12)
        if what < 2:
            del made[at:end]
        elif what < 4:
            made[at:at] = made[at:end]
        elif what < 6:
            made[at:end] = rng.randbytes(end - at)
        elif what < 8:
            made[at:at] = rng.choice(splices)
        elif what < 11 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        else:
            del made[at:]
    return bytes(made)


def often(rng: Random, share: float, data: bytes) -> bytes:
    """These bytes, damaged that often."""
    return damaged(rng, data) if rng.random() < share else data


# --- tables


def as_jsonl(rng: Random, made: Sequence[Any]) -> bytes:
    lines = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.9) + "\n" for row in made)
    return often(rng, 0.15, lines.encode("utf-8", "surrogatepass"))


def as_json(rng: Random, made: Sequence[Any]) -> bytes:
    whole = made if rng.random() < 0.95 else rng.choice((*made, odd(rng)))
    return often(rng, 0.15, json.dumps(whole, indent=rng.choice((None, 1))).encode())


def as_csv(rng: Random, made: Sequence[Any], delimiter: str = ",") -> bytes:
    own = [row for row in made if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in own for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in own)
    return often(rng, 0.15, text.getvalue().encode("utf-8", "surrogatepass"))


def _cell(value: Any) -> Any:
    nested = isinstance(value, (list, dict, int)) and not isinstance(value, bool)
    return json.dumps(value) if nested else value


_ARRAYS: tuple[Callable[[int], Any], ...] = (
    lambda size: pa.array([datetime(2024, 2, 29)] * size),
    lambda size: pa.array([10**18] * size, pa.timestamp("ns", tz="UTC")),
    lambda size: pa.array([timedelta(days=3)] * size),
    lambda size: pa.array([Decimal("4.50")] * size),
    lambda size: pa.array([b"\xff\x00"] * size),
    lambda size: pa.array([b"4"] * size, pa.large_binary()),
    lambda size: pa.array(["a"] * size).dictionary_encode(),
    lambda size: pa.array([[("role", "user")]] * size, pa.map_(pa.string(), pa.string())),
    lambda size: pa.array([2**64 - 1] * size, pa.uint64()),
    lambda size: pa.array([1.5] * size, pa.float32()),
    lambda size: pa.array([None] * size, pa.null()),
    lambda size: pa.array([["x"] * 3] * size, pa.large_list(pa.large_string())),
    lambda size: pa.array([10**12] * size, pa.time64("us")),
    lambda size: pa.array([-(10**6)] * size, pa.date32()),
)


def as_parquet(rng: Random, made: Sequence[Any], metadata: Sequence[bytes] = ()) -> bytes:
    """Rows as Parquet, as far as it can hold them; else what can be, beside columns of odd types."""
    own = [row for row in made if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in own for name in row))
    columns = {name: _array([row.get(name) for row in own]) for name in names}
    kept = {name.encode("utf-8", "replace").decode(): column for name, column in columns.items()}
    kept = {name: column for name, column in kept.items() if column is not None}
    if kept and rng.random() < 0.3:
        kept[rng.choice([*kept, "x"])] = rng.choice(_ARRAYS)(len(own))
    pairs = list(kept.items())
    if pairs and rng.random() < 0.05:
        pairs.append(rng.choice(pairs))  # a name twice
    table = pa.Table.from_arrays([column for _, column in pairs], names=[name for name, _ in pairs])
    if metadata and rng.random() < 0.3:
        table = table.replace_schema_metadata({rng.choice(metadata): odd_bytes(rng)})
    return often(rng, 0.25, written(table))


def written(table: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _array(values: list[Any]) -> Any:
    """Values as an Arrow array that Parquet can hold, or None."""
    try:
        array = pa.array(values)
        written(pa.table({"x": array}))
        return array
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return None


def odd_bytes(rng: Random) -> bytes:
    """JSON of some value, at times damaged."""
    return often(rng, 0.15, json.dumps(odd(rng)).encode("utf-8", "surrogatepass"))


# --- texts


def sequence(rng: Random, parts: Sequence[str], most: int = 12) -> str:
    """Parts in a row, at times one of them very often."""
    made = [rng.choice(parts) for _ in range(rng.randint(0, most))]
    if rng.random() < 0.03:
        part = rng.choice(parts)
        made.insert(
            rng.randrange(len(made) + 1),
            part * min(rng.choice((50, 3_000, 20_000)), 100_000 // len(part or " ")),
        )
    return "".join(made)


def nested(rng: Random, forms: Sequence[str], leaves: Sequence[str], depth: int) -> str:
    """Forms with {} for what is within them, to this depth.

    >>> nested(Random(0), ["({})"], ["x"], 3)
    '(((x)))'
    """
    if depth == 0:
        return rng.choice(leaves)
    form = rng.choice(forms)
    holes = form.count("{}")
    fills = [nested(rng, forms, leaves, depth - 1)]
    fills += [nested(rng, forms, leaves, min(depth - 1, 1)) for _ in range(holes - 1)]
    for fill in fills[:holes]:
        form = form.replace("{}", fill, 1)
    return form


# --- YAML

_YAML_PARTS = (
    *(b"!!python/object/apply:os.system ['true']", b"!!python/name:os.system", b"&a ", b"*a"),
    *(b"<<: *a", b": ", b"!!binary x", b"!!timestamp 2001-99-99", b"!!int x", b"? ", b"- ", b"---\n"),
    *(b"...\n", b"\t", b"%YAML 9.9\n", b"{{}: 1}", b"[" * 3_000, b"{a: " * 2_000, b"2024-02-30"),
    *(b"1:99", b"0o9", b".inf", b".nan", b"~", b"0x_", b"\xff", b"1" * 5_000, b"!!float "),
    *(b"!!set {a}", b"!!omap [1]", b"!!null x", b"\x00", b"\xe2\x80\xa8", b"? [a]\n", b"=: 1\n"),
)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def as_yaml(rng: Random, good: Row) -> bytes:
    """Settings as YAML, altered and damaged; at times of other things, or a bomb of aliases."""
    value: Any = good
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        value = altered(rng, value)
    if isinstance(value, dict):  # no more rows, draws or attempts than can be looked at
        value = {key: v for key, v in value.items() if key != "launch"}
    try:
        text = yaml.safe_dump(value, allow_unicode=rng.random() < 0.5, sort_keys=False)
    except (yaml.YAMLError, ValueError, RecursionError):
        text = "seed: 1\n"
    if rng.random() < 0.02:
        text += _BOMB + rng.choice(("", "seed: *i\n", "columns: *i\n", "scheme: *h\n"))
    data = text.encode("utf-8", "surrogatepass")
    return damaged(rng, data, _YAML_PARTS) if rng.random() < 0.4 else data


@contextmanager
def within(folder: Path) -> Iterator[None]:
    """In that folder, as somebody would be who gives a command."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
