"""`femtune view`: what its pages find is what is stored, hostile text is text, nobody else may look."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from femtune.cli import main
from femtune.problems import load_problems, save_problems
from femtune.prompts import Prompts
from femtune.run import Run, read_draws, read_shard, write_draws
from femtune.types import Completion, Draw, DrawKey, Problem, Score
from femtune.view.app import make_app
from femtune.view.difference import difference
from femtune.view.filters import ORDERS, PAGE, Filter
from femtune.view.index import Index
from femtune.view.store import FACETS, SHOWN_VALUES, Name, Store
from femtune.view.texts import visible

TOKEN = "a-token"
REASONS = ("", "wrong", "cut off", "unparsable", "leaks the hint")
WORDS = ("It", "is", "clear", "100%", "a_b", "ÄRGER", "<b>", "'--", "\\n", "ﬁt")


@dataclass(frozen=True)
class Stored:
    """A draw as a plain filter sees it."""

    run: str
    kind: str
    draw: Draw
    correct: str | None

    @property
    def name(self) -> str:
        key = self.draw.key
        return f"{self.run}/{self.kind}/{key.iteration}/{key.stage}/{key.index}/{key.problem_id}"


def made(
    text: str = "Because.\nAnswer: 3",
    problem_id: str = "p",
    *,
    iteration: int = 1,
    index: int = 0,
    **changes: Any,
) -> Draw:
    score = Score(1.0, "3", "", "", text.rpartition("\n")[0])
    values = {"prompt": "plain", "seed": 7, "score": score} | changes
    completion = Completion(tuple(range(len(text) % 40)), text, "stop", -2.5)
    values = {"completion": completion} | values
    return Draw(DrawKey(iteration, problem_id, 0, index), **values)


def at_random(rng: random.Random, iteration: int, problem_id: str, index: int) -> Draw:
    reason = rng.choice(REASONS)
    answer = rng.choice(["1", "2", "3", "it's 4", "<5>"]) if reason != "cut off" else ""
    rationale = " ".join(rng.choices(WORDS, k=rng.randrange(12)))
    text = f"{rationale}\nAnswer: {answer}" if answer else rationale
    finish = "length" if reason == "cut off" else "stop"
    logprob = rng.choice([math.nan, -rng.random() * 9])
    reward = 1.0 if reason == "" else rng.choice([0.0, 0.5])
    return Draw(
        DrawKey(iteration, problem_id, rng.randrange(2), index),
        rng.choice(["plain", "hinted"]),
        rng.randrange(2**63),
        Completion(tuple(range(rng.randrange(30))), text, finish, logprob),
        Score(reward, answer, reason, f"why {reason}", rationale),
    )


@dataclass(frozen=True)
class Folder:
    """Runs, and what is stored in them in this order."""

    root: Path
    draws: list[Stored]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Three runs in a folder of a name that is a pattern; one of them has no problems stored."""
    root = tmp_path_factory.mktemp("view") / "a*b [1] ?"
    rng, stored = random.Random(0), []
    for name in ("pps", "rejection(4)", "star's"):
        run = Run(root / name)
        for iteration, kind in ((0, "eval"), (1, "draws"), (1, "eval"), (2, "draws")):
            problems = [Problem(f"{kind}-{i}", "What?", rng.choice("123")) for i in range(6)]
            if name != "star's" and iteration < 2:
                run.root.mkdir(parents=True, exist_ok=True)
                file = {"draws": "problems", "eval": "eval"}[kind]
                if not (run.root / f"{file}.parquet").exists():
                    save_problems(problems, run.root / f"{file}.parquet")
            known = {p.id: p.answer for p in _problems(run.root, kind)}
            for number in range(2):
                draws = [
                    at_random(rng, iteration, f"{kind}-{3 * number + i}", index)
                    for i in range(3)
                    for index in range(rng.randrange(4))
                ]
                write_draws(run.shard(iteration, kind, number), draws, {"total_s": 0.0})
                stored += [Stored(name, kind, draw, known.get(draw.key.problem_id)) for draw in draws]
    assert len({each.name for each in stored}) == len(stored) > 2 * PAGE
    return Folder(root, stored)


def _problems(root: Path, kind: str) -> list[Problem]:
    path = root / {"draws": "problems.parquet", "eval": "eval.parquet"}[kind]
    return load_problems(path) if path.exists() else []


@pytest.fixture(scope="module")
def store(folder: Folder) -> Iterator[Store]:
    index = Index([folder.root])
    index.refresh()
    yield Store(index)
    index.close()


@pytest.fixture
def look() -> Iterator[Callable[..., TestClient]]:
    """Opens pages over places."""
    opened: list[TestClient] = []

    def open_pages(*places: Path, token: str | None = TOKEN) -> TestClient:
        app = make_app(Index(places), TOKEN)
        cookies = {"femtune-view": token} if token else None
        client = TestClient(app, base_url="http://127.0.0.1:1234", cookies=cookies)
        opened.append(client.__enter__())
        return client

    yield open_pages
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `femtune sample` on the rubric world."""
    place = tmp_path_factory.mktemp("real")
    assert main(["world", "rubric", "--output-dir", str(place / "w"), "--num-train", "8"]) == 0
    asked = ["--task", "judge", "--raters", "named", "--scale", "1,5", "--model", "seedling"]
    drawn = ["--max-new-tokens", "48", "--scheme", "star", "--output-dir", str(place / "run")]
    data = str(place / "w" / "train.jsonl")
    assert main(["sample", data, *asked, *drawn, "--show", "quiet"]) == 0
    return place / "run"


class Page(HTMLParser):
    """The elements of a page, and what a reader sees of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(html)
        self.shown = "".join(self.parts)
        self.spaced = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def links(self, path: str) -> list[str]:
        return [
            a["href"] or "" for t, a in self.tags if t == "a" and (a.get("href") or "").startswith(path)
        ]

    def names(self) -> list[str]:
        """Of the draws in a list, in order."""
        return [dict(parse_qsl(urlsplit(link).query))["name"] for link in self.links("/draw?")]


def page(client: TestClient, path: str, status: int = 200, **query: Any) -> Page:
    answer = client.get(path, params=query or None)
    assert answer.status_code == status, answer.text
    return Page(answer.text)


# --- what is found


def holds(asked: Filter, each: Stored) -> bool:
    """What a filter means, plainly."""
    draw = each.draw
    values = {
        "run": each.run,
        "kind": each.kind,
        "iteration": draw.key.iteration,
        "stage": draw.key.stage,
        "prompt": draw.prompt,
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
            "tokens": signed * len(draw.completion.tokens),
            "stored": 0,
        }[sort.removeprefix("-")]

    return sorted(draws, key=key)


def test_the_stored_order_is_that_of_runs_iterations_and_shards(store: Store, folder: Folder) -> None:
    def order(each: Stored) -> Any:
        return each.run, each.draw.key.iteration, ["draws", "eval"].index(each.kind)

    assert all_pages(store, Filter()) == [each.name for each in sorted(folder.draws, key=order)]


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
        ("page=0", "from 1"),
        ("sort=d.seed;DROP TABLE draws", "sort is one of"),
        ("itration=1", "Did you mean iteration?"),
        ("text=" + "x" * 1001, "at most 1,000"),
        ("answer)=1", "nothing to filter by"),
    ],
)
def test_what_is_no_filter_is_said(
    query: str, said: str, look: Callable[..., TestClient], folder: Folder
) -> None:
    answer = look(folder.root).get(f"/?{query}")
    assert answer.status_code == 400
    assert said in Page(answer.text).shown


# --- pages


@pytest.mark.parametrize("sort", ["stored", "shuffled", "-tokens"])
def test_next_leads_through_all_draws_once(
    sort: str, look: Callable[..., TestClient], folder: Folder
) -> None:
    client, found = look(folder.root), []
    path: str | None = f"/?sort={sort}&kept=no"
    while path:
        shown = page(client, path)
        found += shown.names()
        path = next((a["href"] for _, a in shown.tags if a.get("rel") == "next"), None)
    wanted = [each.name for each in folder.draws if not each.draw.accepted]
    assert len(wanted) > PAGE
    assert sorted(found) == sorted(wanted)


def test_next_and_previous_of_a_draw_follow_the_filter(
    look: Callable[..., TestClient], folder: Folder
) -> None:
    client = look(folder.root)
    first = page(client, "/?run=pps&text=is&sort=-reward")
    names, found = first.names(), []
    path: str | None = first.links("/draw?")[0]
    while path:
        found.append(dict(parse_qsl(urlsplit(path).query))["name"])
        shown = page(client, path)
        path = next((a["href"] for _, a in shown.tags if a.get("rel") == "next"), None)
    assert 1 < len(names) < PAGE
    assert found == names


def test_a_page_shows_all_of_a_draw(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root)
    for each in folder.draws[::7]:
        draw = each.draw
        shown = page(client, "/draw", name=each.name).spaced
        for wanted in (
            " ".join(draw.score.rationale.split()),
            f"seed {draw.seed}",
            f"{len(draw.completion.tokens)} tokens {' '.join(map(str, draw.completion.tokens))}".strip(),
            f"correct answer {'not stored' if each.correct is None else each.correct}",
            f"reward {draw.score.reward:.3f}",
            draw.score.detail if not draw.accepted else "",
        ):
            assert wanted in shown


def test_prompts_are_those_that_the_run_asked(look: Callable[..., TestClient], real: Path) -> None:
    config = yaml.safe_load((real / "config.yaml").read_text())
    prompts = Prompts(config["instruction"], config["hint"])
    client = look(real)
    draws = [draw for chunk, _ in read_draws(real / "iteration-001" / "draws") for draw in chunk]
    assert {draw.prompt for draw in draws} == {"plain", "hinted"}
    for problem in load_problems(real / "problems.parquet"):
        draw = next(draw for draw in draws if draw.key.problem_id == problem.id)
        shown = page(client, "/draw", name=f"run/draws/1/{draw.key.stage}/0/{problem.id}").shown
        assert prompts.plain(problem)[0]["content"] in shown
        assert prompts.hinted(problem)[0]["content"] in shown
        assert draw.completion.text in shown


def test_a_problem_stands_side_by_side(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root)
    id = folder.draws[0].draw.key.problem_id
    wanted = [each for each in folder.draws if each.draw.key.problem_id == id]
    shown = page(client, "/problem", id=id)
    chosen = [a["value"] for tag, a in shown.tags if tag == "input" and a["name"] == "a"]
    assert sorted(map(str, chosen)) == sorted(each.name for each in wanted)
    only = page(client, "/problem", id=id, run="pps")
    chosen = [a["value"] for tag, a in only.tags if tag == "input" and a["name"] == "b"]
    assert sorted(map(str, chosen)) == sorted(each.name for each in wanted if each.run == "pps")
    assert "No problem with draws" in page(client, "/problem", 404, id="none").shown


def test_names_that_are_none_are_refused(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root)
    assert "a draw is named" in page(client, "/draw", 400, name="x").shown
    assert "No draw is named" in page(client, "/draw", 404, name="pps/draws/1/0/0/../etc/passwd").shown
    assert "a draw is named" in page(client, "/draw", 400).shown
    assert "no such page" in page(client, "/nothing", 404).shown
    good = folder.draws[0].name
    assert "No draw is named" in page(client, "/difference", 404, a=good, b=good + "x").shown


@pytest.mark.parametrize("text", ["x/y/1/1/1/a", "r/draws/1/0/0/p/with/slashes", "r/d/1/2/3/"])
def test_a_name_comes_back_from_a_link(text: str) -> None:
    assert str(Name.read(text)) == text


# --- downloads


@pytest.mark.parametrize("query", ["", "kept=yes&iteration=1&sort=shuffled", "text=clear", "run=none"])
def test_an_export_is_what_the_filter_finds(
    query: str, look: Callable[..., TestClient], folder: Folder
) -> None:
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


# --- differences


@given(st.text("ab .\n!é", max_size=60), st.text("ab .\n!é", max_size=60))
def test_a_difference_has_both_texts(first: str, second: str) -> None:
    pieces = difference(first, second)
    assert "".join(piece.text for piece in pieces if piece.kind != "more") == first
    assert "".join(piece.text for piece in pieces if piece.kind != "less") == second
    assert all(piece.text for piece in pieces)
    if first == second:
        assert {piece.kind for piece in pieces} <= {"same"}


def test_words_that_differ_are_found() -> None:
    pieces = difference("It is clear: plus 1. So 3.\nAnswer: 3", "It is clear: plus 0. So 3.\nAnswer: 2")
    changed = [(piece.kind, piece.text) for piece in pieces if piece.kind != "same"]
    assert changed == [("less", "1"), ("more", "0"), ("less", "3"), ("more", "2")]


def test_a_difference_that_takes_too_long_is_coarse() -> None:
    first, second = "a. " * 16_000, "b a. " * 9_000
    pieces = difference(first, second)
    assert "".join(piece.text for piece in pieces if piece.kind != "more") == first


def test_a_page_of_a_difference_marks_it(look: Callable[..., TestClient], tmp_path: Path) -> None:
    draws = [made("It is 1 <b>.\nAnswer: 3"), made("It is 2 <b>.\nAnswer: 3", index=1)]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    names = {"a": "run/draws/1/0/0/p", "b": "run/draws/1/0/1/p"}
    html = look(tmp_path).get("/difference", params=names).text
    assert "It is <del>1</del> &lt;b&gt;." in html
    assert "It is <ins>2</ins> &lt;b&gt;." in html


# --- hostile text

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg/onload=alert(1)>'",
    "</textarea></title></div><style>*{display:none}</style>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "'; DROP TABLE draws; --",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066\u200b\ufeff\U000e0041",
    "&lt;b&gt;&amp;",
    "\x00\x01\r",
    "../../etc/passwd%00",
]
OURS = {
    *("html", "head", "meta", "title", "link", "body", "header", "main", "nav", "section", "article"),
    *(
        "aside",
        "details",
        "summary",
        "div",
        "p",
        "span",
        "a",
        "b",
        "strong",
        "code",
        "br",
        "mark",
        "del",
    ),
    *("ins", "h1", "h2", "h3", "ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption", "table"),
    *("thead", "tbody", "tr", "th", "td", "form", "label", "input", "select", "option", "button", "svg"),
    "rect",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run all of whose texts are hostile."""
    root = tmp_path_factory.mktemp("hostile") / "<script>alert('run')</script>&\""
    draws = [
        Draw(
            DrawKey(1, f"{text}{number}", 0, 0),
            text,
            number,
            Completion((1,), f"{text} {text}\nAnswer: {text}", text, -1.0, text),  # type: ignore[arg-type]
            Score(0.5, text, text, text, f"{text} {text}"),  # type: ignore[arg-type]
        )
        for number, text in enumerate(HOSTILE)
    ]
    write_draws(Run(root).shard(1, "draws", 0), draws, {})
    save_problems(
        [Problem(d.key.problem_id, d.prompt, d.prompt) for d in draws], root / "problems.parquet"
    )
    names = ("scheme", "model", "data", "instruction")
    config = dict.fromkeys(names, "<script>alert(1)</script>\x1b\u202e")
    config["hint"] = "<img src=x onerror=alert(1)>{answer}"
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


STRANGE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


def clean(html: str) -> Page:
    """A page that has no element, attribute or character that is not ours."""
    shown = Page(html)
    assert {tag for tag, _ in shown.tags} <= OURS
    for _, attributes in shown.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")]
        for name in ("href", "action", "src"):
            assert (attributes.get(name) or "/").startswith(("/", "#main"))
    for tag, attributes in shown.tags:
        if tag != "input":  # gives back what was typed, as it was typed
            assert not [value for value in attributes.values() if value and STRANGE.search(value)]
    assert not STRANGE.search(shown.shown)
    return shown


def test_hostile_text_is_text(look: Callable[..., TestClient], hostile: Path) -> None:
    client = look(hostile)
    listed = clean(client.get("/").text)
    assert len(listed.names()) == len(HOSTILE)
    for name, text in zip(listed.names(), HOSTILE, strict=True):
        own = clean(client.get("/draw", params={"name": name}).text)
        seen = "".join(Page(f"<p>{visible(text)}</p>").shown)
        assert own.shown.count(seen) >= 5  # rationale, answer, correct answer, why not, prompts
        id = Name.read(name).problem_id
        assert client.get("/problem", params={"id": id}).status_code == 200
        clean(client.get("/problem", params={"id": id}).text)
        clean(client.get("/difference", params={"a": name, "b": listed.names()[0]}).text)
        for field in ("text", "problem", "answer", "correct", "reason", "prompt", "finish"):
            found = client.get("/", params={field: text})
            assert name in clean(found.text).names()
        clean(client.get("/", params={text: text}).text)
        clean(client.get("/draw", params={"name": text}).text)
        clean(client.get(f"/{quote(text)}").text)


def test_text_of_a_megabyte_is_cut(look: Callable[..., TestClient], tmp_path: Path) -> None:
    long = "A long line <b>. " * 70_000
    draws = [made(f"{long}\nAnswer: 3"), made(f"{long[1:]}\nAnswer: 3", index=1)]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    client, name = look(tmp_path), "run/draws/1/0/0/p"
    for path in ("/", f"/draw?name={name}", "/problem?id=p", f"/difference?a={name}&b={name[:-3]}1/p"):
        answer = client.get(path.replace("0/0/1/p", "0/1/p"))
        assert answer.status_code == 200
        assert len(answer.text) < 400_000
    shown = page(client, "/draw", name=name)
    (more,) = [link for link in shown.links("/draw?") if "whole=1" in link]
    whole = page(client, more)
    assert long.strip() in whole.shown


def test_strange_characters_are_codes() -> None:
    assert "U+202E" in visible("a\u202eb") and "\u202e" not in visible("a\u202eb")
    assert visible("\x00" * 1000) == '<span class="odd">U+0000 ×1,000</span>'
    assert visible("a\tb\r\nc\n") == "a\tb\r\nc\n"  # these are no strange ones
    assert visible("👩\u200d🔬 خوش\u200cحال") == "👩\u200d🔬 خوش\u200cحال"


# --- who may look


def test_nobody_looks_without_the_token(look: Callable[..., TestClient], folder: Folder) -> None:
    paths = ("/", "/draw", "/problem", "/difference", "/export.jsonl", "/style.css", "/icon.svg", "/x")
    for known in (None, "wrong", TOKEN + "x", TOKEN[:-1]):
        client = look(folder.root, token=known)
        for path in (*paths, "/?token=wrong", f"/?token={TOKEN}x", "/?token=", "/?token=é"):
            answer = client.get(path)
            assert answer.status_code == 403
            assert "pps" not in answer.text and TOKEN not in answer.text


def test_the_address_with_the_token_gives_the_cookie(
    look: Callable[..., TestClient], folder: Folder
) -> None:
    client = look(folder.root, token=None)
    answer = client.get(f"/?kept=no&token={TOKEN}&text=a%26b", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?kept=no&text=a%26b")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "domain" not in cookie
    assert client.get("/").status_code == 200
    assert TOKEN not in client.get("/").text
    assert client.get("/?token=wrong").status_code == 403  # whoever says a token says the right one


def test_the_way_on_stays_here(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root, token=None)
    answer = client.get(f"http://127.0.0.1:1234//evil.example/?token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"] == "/evil.example/"
    # a redirect that another site began would come without the cookie
    sent = {"sec-fetch-site": "cross-site"}
    answer = client.get(f"/?text=%22%3E%3Cb%3E&token={TOKEN}", headers=sent, follow_redirects=False)
    assert answer.status_code == 200
    assert {tag for tag, _ in Page(answer.text).tags} == {"html", "meta", "title", "a"}
    assert Page(answer.text).links("/") == ["/?text=%22%3E%3Cb%3E"]


def test_other_names_of_this_machine_are_refused(
    look: Callable[..., TestClient], folder: Folder
) -> None:
    client = look(folder.root)
    for host in ("evil.example", "evil.example:1234", "127.0.0.1.evil.example", "0.0.0.0", ""):
        assert client.get("/", headers={"host": host}).status_code == 400
    for host in ("localhost:80", "127.0.0.1"):
        assert client.get("/", headers={"host": host}).status_code == 200


def test_pages_are_only_read(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/", "/draw", "/export.parquet", "/style.css"):
            assert client.request(method, path).status_code == 405
    assert client.head("/").status_code == 200


def test_each_answer_has_the_headers(look: Callable[..., TestClient], folder: Folder) -> None:
    client = look(folder.root)
    answers = [client.get(path) for path in ("/", "/x", "/?x=1", "/style.css", "/export.jsonl")]
    answers += [client.get("/?token=x"), client.post("/"), client.get("/", headers={"host": "x"})]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith(
            "default-src 'none'; style-src 'self'"
        )
        assert "script" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


# --- a run that goes on


def test_shards_and_runs_appear(look: Callable[..., TestClient], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("iterations: 3\nscheme: pps\n")
    client = look(tmp_path)
    assert "Nothing is drawn yet" in page(client, "/").shown
    assert "not finished: iteration 0 of 3" in page(client, "/").spaced
    write_draws(Run(tmp_path / "b").shard(1, "draws", 0), [made("one <1>", "p")], {})
    assert page(client, "/?text=ONE").names() == ["b/draws/1/0/0/p"]
    one = page(client, "/draw", name="b/draws/1/0/0/p")
    assert "correct answer not stored" in one.spaced
    save_problems(
        [Problem("p", "What?", "42"), Problem("q", "?", "1")], tmp_path / "b" / "problems.parquet"
    )
    write_draws(Run(tmp_path / "b").shard(1, "draws", 1), [made("one more", "q")], {})
    write_draws(Run(tmp_path / "a").shard(1, "draws", 0), [made("one of a", "p")], {})
    found = page(client, "/?text=ONE&sort=tokens")
    assert sorted(found.names()) == ["a/draws/1/0/0/p", "b/draws/1/0/0/p", "b/draws/1/0/0/q"]
    assert page(client, "/").names() == ["a/draws/1/0/0/p", "b/draws/1/0/0/p", "b/draws/1/0/0/q"]
    assert page(client, "/?correct=42").names() == ["b/draws/1/0/0/p"]
    (tmp_path / "b" / "iteration-003").mkdir()
    (tmp_path / "b" / "iteration-003" / "metrics.json").write_text("{}")
    assert "done, 3 iterations" in page(client, "/").spaced


def test_a_shard_in_anothers_place_is_read_again(
    look: Callable[..., TestClient], tmp_path: Path
) -> None:
    place = Run(tmp_path / "run").shard(1, "draws", 0)
    write_draws(place, [made("old", "p"), made("old", "q")], {})
    client = look(tmp_path)
    assert len(page(client, "/?text=old").names()) == 2
    write_draws(place, [made("new", "r")], {})
    assert page(client, "/?text=old").names() == []
    assert page(client, "/").names() == ["run/draws/1/0/0/r"]
    place.unlink()
    assert page(client, "/").names() == []


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all", None])
def test_a_damaged_shard_is_named_and_left_out(
    damage: bytes | None, look: Callable[..., TestClient], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    for number in range(5):
        write_draws(run.shard(1, "draws", number), [made("It is so.", f"p{number}")], {})
    bad = run.shard(1, "draws", 3)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    client = look(tmp_path)
    shown = page(client, "/")
    assert shown.names() == [f"run/draws/1/0/0/p{number}" for number in (0, 1, 2, 4)]
    assert "1 file can’t be read" in shown.shown
    assert "run: iteration-001/draws/00003.parquet" in shown.shown
    assert "/tmp/femtune-view" not in shown.shown
    bad.write_bytes(whole)
    shown = page(client, "/")
    assert len(shown.names()) == 5 and "can’t be read" not in shown.shown


def test_a_shard_that_is_damaged_meanwhile_is_said(
    look: Callable[..., TestClient], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    for number in range(3):
        write_draws(run.shard(1, "draws", number), [made("It is so. " * 50, f"p{number}")], {})
    client = look(tmp_path)
    assert len(page(client, "/").names()) == 3
    bad = run.shard(1, "draws", 1)
    known = bad.stat()
    with bad.open("r+b") as file:  # of the same size and time: not seen before it is read
        file.seek(4)
        file.write(b"\xff" * (known.st_size - 16))
    os.utime(bad, ns=(known.st_atime_ns, known.st_mtime_ns))
    for path in ("/", "/?text=so", "/?sort=tokens", "/problem?id=p0", "/?run=run"):
        shown = page(client, path)
        assert "Traceback" not in shown.shown
    assert "00001.parquet" in shown.shown
    assert shown.names() == ["run/draws/1/0/0/p0", "run/draws/1/0/0/p2"]
    assert len(client.get("/export.jsonl").text.splitlines()) == 2


def test_a_file_that_is_no_shard_of_draws_is_said(
    look: Callable[..., TestClient], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    write_draws(run.shard(1, "draws", 0), [made()], {})
    save_problems([Problem("p", "What?", "1")], run.shard(1, "draws", 1))
    shown = page(look(tmp_path), "/")
    assert len(shown.names()) == 1
    assert "00001.parquet" in shown.shown


def test_nothing_is_written_into_a_run(look: Callable[..., TestClient], folder: Folder) -> None:
    def listing() -> dict[str, tuple[int, int]]:
        stats = {str(path): path.stat() for path in folder.root.rglob("*")}
        return {path: (known.st_mtime_ns, known.st_size) for path, known in stats.items()}

    before, client = listing(), look(folder.root)
    for path in ("/?text=is&sort=tokens", "/export.parquet", f"/draw?name={folder.draws[0].name}"):
        assert client.get(path).status_code == 200
    assert listing() == before


def test_runs_of_one_name_are_told_apart(look: Callable[..., TestClient], tmp_path: Path) -> None:
    for place in ("a/x", "b/x", "y"):
        write_draws(Run(tmp_path / place).shard(1, "draws", 0), [made()], {})
    client = look(tmp_path / "a" / "x", tmp_path / "b", tmp_path / "y")
    names = [Name.read(name).run for name in page(client, "/").names()]
    assert names == ["a:x", "b:x", "y"]


def test_a_shard_is_the_one_that_femtune_reads(folder: Folder) -> None:
    """The shards of these tests hold what run.read_shard gives."""
    path = next(folder.root.rglob("*.parquet"))
    while path.parent.name not in ("draws", "eval"):
        path = next(folder.root.rglob("iteration-001/draws/*.parquet"))
    draws, _ = read_shard(path)
    assert {draw.key for draw in draws} <= {each.draw.key for each in folder.draws}


# --- the command


def start(*argv: str) -> tuple[subprocess.Popen[str], str]:
    """`femtune view`, and the address that it says."""
    command = [sys.executable, "-m", "femtune", "view", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", line)
    assert found, (line, process.stderr and process.stderr.read())
    return process, found[0]


def test_the_command_serves_till_ctrl_c(folder: Folder) -> None:
    process, address = start(str(folder.root))
    try:
        host = urlsplit(address)
        token = dict(parse_qsl(host.query))["token"]
        cookie = f"femtune-view-{host.port}={token}"
        with urlopen(UrlRequest(f"http://127.0.0.1:{host.port}/", headers={"Cookie": cookie})) as answer:
            assert f"{len(folder.draws):,}" in answer.read().decode()
        assert host.port is not None
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(5)
            other.connect(("127.0.0.2", host.port))  # another address of this machine: not served
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert (out, err) == ("", "")  # no log, and so no token in one


def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Folder
) -> None:
    def refusal(*argv: str) -> str:
        assert main(["view", *argv]) == 1
        return " ".join(capsys.readouterr().err.split())

    assert "holds no run" in refusal(str(tmp_path))
    assert "holds no run" in refusal(str(folder.root), str(tmp_path / "none"))
    assert "give the folder of a run" in refusal()
    assert "port must be from 0" in refusal(str(folder.root), "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"port {number} can't be had" in refusal(str(folder.root), "--port", str(number))
    for name in [name for name in sys.modules if name.startswith("femtune.view.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "femtune view needs duckdb: pip install 'femtune[view]'" in refusal(str(folder.root))


def test_links_are_query_strings() -> None:
    assert Filter(text="a&b=c").query() == urlencode({"text": "a&b=c"})
