"""The filters of `femtune view`: what they find, in which order and by which address, and its export."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.reporting.browser.filters import ORDERS, PAGE, Filter
from femtune.reporting.browser.index import Index
from femtune.reporting.browser.store import FACETS, SHOWN_VALUES, Store
from femtune.reporting.browser.wording import SORTED
from femtune.runs.draws import write_draws
from femtune.runs.run import Run
from femtune.schemes.answer_rules import gain
from femtune.types import Score

from ..views import (
    REASONS,
    Folder,
    Look,
    Page,
    Stored,
    looking,
    made,
    make_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Runs in a folder whose name is a pattern."""
    return make_folder(tmp_path_factory.mktemp("view") / "a*b [1] ?")


@pytest.fixture
def look() -> Iterator[Look]:
    with looking() as opened:
        yield opened


@pytest.fixture(scope="module")
def store(folder: Folder) -> Iterator[Store]:
    index = Index([folder.root])
    index.refresh()
    yield Store(index)
    index.close()


def holds(asked: Filter, each: Stored) -> bool:
    """What a filter means, plainly."""
    draw = each.draw
    values = {
        "run": each.run,
        "kind": each.kind,
        "iteration": draw.key.iteration,
        "stage": draw.key.stage,
        "prompt": draw.prompt_kind,
        "kept": "yes" if draw.accepted else "no",
        "reason": draw.score.reason,
        "finish": draw.completion.finish_reason,
        "answer": draw.score.answer,
        "correct": each.correct,
    }
    fits = all(
        not getattr(asked, name) or value in getattr(asked, name) for name, value in values.items()
    )
    return (
        fits
        and asked.problem.lower() in draw.key.problem_id.lower()
        and asked.text.lower() in draw.completion.text.lower()
    )


def some(*values: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple)


FILTERS = st.builds(
    Filter,
    run=some("pps", "rejection(4)", "star's", "none"),
    kind=some("draws", "eval"),
    iteration=some(0, 1, 2, 9),
    stage=some(0, 1),
    prompt=some("plain", "hinted"),
    kept=some("yes", "no"),
    reason=some(*REASONS[1:]),
    finish=some("stop", "length"),
    answer=some("1", "it's 4", "<5>", "' OR 1=1 --"),
    correct=some("1", "2"),
    problem=st.sampled_from(["", "1", "EVAL", "draws-2", "%", "_"]),
    text=st.sampled_from(["", "clear", "answer: 2", "ä", "100%", "%", "_b", "\\N", ".", "'--", "Is cl"]),
    sort=st.sampled_from([*ORDERS]),
)


def all_pages(store: Store, asked: Filter) -> list[str]:
    store.index.prepare(asked)
    num, _ = store.count(asked)
    pages = range(1, max(1, math.ceil(num / PAGE)) + 1)
    return [str(seen.name) for number in pages for seen in store.page(replace(asked, page=number))]


@settings(max_examples=150)
@given(asked=FILTERS)
def test_a_filter_finds_what_a_plain_one_does(asked: Filter, store: Store, folder: Folder) -> None:
    wanted = [each for each in folder.draws if holds(asked, each)]
    found = all_pages(store, asked)
    assert sorted(found) == sorted(each.name for each in wanted)
    kept = sum(each.draw.accepted for each in wanted)
    assert store.count(asked) == (len(wanted), kept)
    by_name = {each.name: each for each in wanted}
    assert found == [each.name for each in in_order([by_name[name] for name in found], asked.sort)]


def in_order(draws: Sequence[Stored], sort: str) -> list[Stored]:
    """Sorted; those that are equal stay as they are."""
    signed = -1 if sort.startswith("-") else 1

    def key(each: Stored) -> Any:
        draw = each.draw
        logprob = draw.completion.logprob
        return {
            "newest": -draw.key.iteration,
            "shuffled": draw.seed,
            "problem": draw.key.problem_id,
            "reward": signed * draw.score.reward,
            "logprob": (math.isnan(logprob), 0 if math.isnan(logprob) else signed * logprob),
            "gain": ((known := gain(draw)) is None, signed * (known or 0.0)),
            "tokens": signed * len(draw.completion.tokens),
            "stored": 0,
        }[sort.removeprefix("-")]

    return sorted(draws, key=key)


def test_every_order_has_a_label() -> None:
    assert SORTED.keys() == ORDERS.keys()


def test_the_stored_order_is_that_of_runs_iterations_and_shards(store: Store, folder: Folder) -> None:
    def order(each: Stored) -> Any:
        return each.run, each.draw.key.iteration, ["draws", "eval"].index(each.kind)

    assert all_pages(store, Filter(sort="stored")) == [
        each.name for each in sorted(folder.draws, key=order)
    ]


@settings(max_examples=60)
@given(asked=FILTERS)
def test_facets_count_under_the_other_filters(asked: Filter, store: Store, folder: Folder) -> None:
    store.index.prepare(asked)
    facets = store.facets(asked)
    for name in ("run", "kind", "iteration", "kept", "reason", "answer"):
        others = replace(asked, **{name: ()})
        wanted: Counter[Any] = Counter()
        for each in (each for each in folder.draws if holds(others, each)):
            draw = each.draw
            wanted[
                {
                    "run": each.run,
                    "kind": each.kind,
                    "iteration": draw.key.iteration,
                    "kept": "yes" if draw.accepted else "no",
                    "reason": draw.score.reason,
                    "answer": draw.score.answer,
                }[name]
            ] += 1
        del wanted[""]
        assert {value.value: value.num for value in facets[name]} == wanted
    assert set(facets) == set(FACETS)


def test_of_many_values_the_most_frequent_are_shown_and_the_chosen_one(tmp_path: Path) -> None:
    draws = [
        made(problem_id=f"{n}-{i}", score=Score(1.0, f"answer {n:02}"))
        for n in range(20)
        for i in range(20 - n)
    ]
    write_draws(Run(tmp_path).shard(1, "draws", 0), draws, {})
    index = Index([tmp_path])
    index.refresh()
    found = Store(index).facets(Filter(answer=("answer 19",)))["answer"]
    assert [value.value for value in found] == [f"answer {n:02}" for n in (*range(SHOWN_VALUES), 19)]
    index.close()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(FILTERS, TEXT, TEXT, st.integers(1, 99))
def test_a_filter_comes_back_from_its_address(asked: Filter, text: str, answer: str, page: int) -> None:
    changed = replace(asked, text=text, answer=(answer,) if answer else (), page=page)
    assert Filter.read(parse_qsl(changed.query(page=page), keep_blank_values=True)) == changed


def test_values_are_taken_in_and_out() -> None:
    asked = Filter(iteration=(1,), page=4)
    assert asked.toggled("iteration", 2) == "iteration=1&iteration=2"
    assert asked.toggled("iteration", 1) == ""
    assert asked.query(sort="reward") == "iteration=1&sort=reward"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("iteration=x", "whole number"),
        ("iteration=-1", "whole number"),
        ("iteration=99999999999999999999", "whole number"),
        ("page=0", "at least 1"),
        ("sort=d.seed;DROP TABLE draws", "sort is one of"),
        ("itration=1", "Did you mean iteration?"),
        ("text=" + "x" * 1001, "at most 1,000"),
        ("answer=" + "x" * 1001, "at most 1,000"),
        ("&".join(f"answer={n}" for n in range(4000)), "at most 50 values"),
        ("&".join(f"answer={n}{'x' * 200}" for n in range(40)), "at most 50 values of 4,000 characters"),
        ("answer)=1", "nothing to filter by"),
    ],
)
def test_what_is_no_filter_is_said(query: str, said: str, look: Look, folder: Folder) -> None:
    answer = look(folder.root).get(f"/draws?{query}")
    assert answer.status_code == 400
    assert said in Page(answer.text).shown


# --- downloads


@pytest.mark.parametrize("query", ["", "kept=yes&iteration=1&sort=shuffled", "text=clear", "run=none"])
def test_an_export_is_what_the_filter_finds(query: str, look: Look, folder: Folder) -> None:
    client, asked = look(folder.root), Filter.read(parse_qsl(query))
    by_name = {each.name: each for each in folder.draws if holds(asked, each)}
    lines = client.get(f"/export.jsonl?{query}")
    rows = [json.loads(line) for line in lines.text.splitlines()]
    table = pq.read_table(io.BytesIO(client.get(f"/export.parquet?{query}").content))
    assert [json.loads(json.dumps(row).replace("NaN", "null")) for row in table.to_pylist()] == rows
    assert "attachment" in lines.headers["content-disposition"]
    assert len(rows) == len(by_name)
    for row in rows:
        place = (
            row["run"],
            row["kind"],
            row["iteration"],
            row["stage"],
            row["index"],
            row["problem_id"],
        )
        each = by_name.pop("/".join(map(str, place)))
        draw = each.draw
        assert row["correct_answer"] == each.correct
        assert row["tokens"] == list(draw.completion.tokens)
        assert row["text"] == draw.completion.text
        assert row["seed"] == draw.seed
        assert row["logprob"] == (
            None if math.isnan(draw.completion.logprob) else draw.completion.logprob
        )
