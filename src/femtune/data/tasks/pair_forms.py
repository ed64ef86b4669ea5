"""Conversion of preferences between two texts, in the forms of users' own tables, to a task's rows.

prompt, response_a, response_b, preference        A, B, a tie, or as `codings` decodes it
prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie      0 or 1 each
prompt, chosen, rejected                          text, messages, or text with turns
conversation_a, conversation_b, winner
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

from femtune.data.rows import BadRow
from femtune.data.tasks.cells import (
    Row,
    item_of,
    lean,
    read_conversation,
    read_number,
    read_plain,
    read_text,
    wrong,
)
from femtune.data.tasks.sides import AS_TEXT, read_response, take_apart


def plain_names(given: Collection[str]) -> tuple[str, ...]:
    """Return the columns of plain text that a row may have beside the texts that are judged."""
    return ("id", "item", "attribute", "rater", *(("title",) if "post" in given else ()))


def pair_rows(row: Row) -> Iterator[dict[str, Any]]:
    prompt = read_conversation(row.get("prompt"), "prompt")
    yield _pair(row, {"prompt": prompt}, "response")


def _pair(row: Row, given: dict[str, str], thing: str) -> dict[str, Any]:
    """Return the row of two texts; its preference is as published, and decoded by `codings`."""
    found = [read_response(row, f"{thing}_{side}") for side in "ab"]
    (a, _), (b, _) = found
    values = {f"{thing}_a": a, f"{thing}_b": b, AS_TEXT: " ".join(name for _, name in found).strip()}
    return _of_two(row, given, values)


def _of_two(row: Row, given: dict[str, str], texts: dict[str, str]) -> dict[str, Any]:
    values = given | texts | {"preference": _winner(row)}
    values |= {name: read_plain(row.get(name), name) for name in plain_names(given)}
    pair = [text for name, text in texts.items() if name != AS_TEXT]
    return lean(row, *row, **values | {"item": values["item"] or item_of(*given.values(), *pair)})


def _winner(row: Row) -> str | None:
    """Return a preference as published; the name of one of the two models as that model's column."""
    said = read_plain(row.get("preference"), "preference")
    models = [read_plain(row.get(name), name) for name in ("model_a", "model_b")]
    if said is not None and models.count(said) == 1:
        return ("model_a", "model_b")[models.index(said)]
    return said


WINNERS = {"winner_model_a": "A", "winner_model_b": "B", "winner_tie": "tie"}


def one_hot_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a pair whose winner has a column of its own, in which it is 1."""
    cells = {name: read_number(row.get(name), name) for name in WINNERS}
    won = [label for name, label in WINNERS.items() if cells[name] == 1]
    if len(won) != 1 and any(cell is not None for cell in cells.values()):
        columns = ", ".join(f"`{name}`" for name in WINNERS)
        raise BadRow(f"exactly one of {columns} must be 1", f"{len(won)} are")
    rest = {name: value for name, value in row.items() if name not in WINNERS}
    yield from pair_rows(rest | {"preference": won[0] if won else None})


def labelled_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a pair of stanfordnlp/SHP, whose label is 1 if A is preferred, and 0 if B is."""
    label = read_number(row.get("labels"), "labels")
    if label not in (None, 0, 1):
        raise wrong("labels", "0 or 1", label)
    rest = {name: value for name, value in row.items() if name != "labels"}
    rest |= {"preference": None if label is None else "BA"[int(label)]}
    prompt = read_text(row, "history")
    texts = {f"response_{side}": read_text(row, f"human_ref_{side.upper()}") for side in "ab"}
    kept = {name: value for name, value in rest.items() if not name.startswith("human_ref_")}
    yield _of_two(kept, {"prompt": prompt}, texts)


def chosen_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a pair of a chosen and a rejected response, as A and B by a hash of their texts."""
    yield _chosen(row, "prompt", "response")


def _chosen(row: Row, prompt: str, thing: str) -> dict[str, Any]:
    asked, chosen, rejected = take_apart(row, ("chosen", "rejected"), prompt)
    # otherwise A would always be the better one
    coin = hashlib.blake2b(f"sides {item_of(asked, chosen, rejected)}".encode(), digest_size=1).digest()
    a, b, better = (chosen, rejected, "A") if coin[0] % 2 else (rejected, chosen, "B")
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected", prompt)}
    texts = {f"{thing}_a": a, f"{thing}_b": b}
    return _of_two(rest | {"preference": better}, {prompt: asked}, texts)


def arena_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a pair of two conversations with the same user, whose shared beginning is the prompt."""
    asked, a, b = take_apart(row, ("conversation_a", "conversation_b"), "prompt")
    rest = {name: value for name, value in row.items() if not name.startswith("conversation_")}
    rest |= {"preference": row.get("winner")}
    yield _of_two(rest, {"prompt": asked}, {"response_a": a, "response_b": b})


def summary_pair_rows(row: Row) -> Iterator[dict[str, Any]]:
    yield _pair(row, {"post": read_text(row, "post")}, "summary")


def chosen_summary_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a pair of a chosen and a rejected summary, as A and B by a hash of their texts."""
    yield _chosen(row, "post", "summary")
