"""The pages of `femtune view`, also of a run that goes on."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from femtune.cli.main import main
from femtune.data.problems import load_problems, save_problems
from femtune.data.prompts import Prompts
from femtune.estep.scoring import write_logprobs
from femtune.evaluation.readings import Reading, write_readings
from femtune.reporting.browser.difference import difference
from femtune.reporting.browser.filters import PAGE, Filter
from femtune.reporting.browser.store import Name
from femtune.runs.draws import read_draws, read_shard, write_draws
from femtune.runs.run import Run
from femtune.types import Completion, Problem

from ..views import (
    Folder,
    Look,
    looking,
    made,
    make_folder,
    page,
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
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `femtune sample` on the rubric world."""
    place = tmp_path_factory.mktemp("real")
    assert main(["world", "rubric", "--output-dir", str(place / "w"), "--num-train", "8"]) == 0
    asked = ["--task", "judge", "--raters", "named", "--scale", "1,5", "--model", "seedling"]
    drawn = ["--max-new-tokens", "48", "--scheme", "star", "--output-dir", str(place / "run")]
    data = str(place / "w" / "train.jsonl")
    assert main(["sample", data, *asked, *drawn, "--show", "quiet"]) == 0
    return place / "run"


# --- pages


@pytest.mark.parametrize("sort", ["stored", "shuffled", "-tokens"])
def test_next_leads_through_all_draws_once(sort: str, look: Look, folder: Folder) -> None:
    client, found = look(folder.root), []
    path: str | None = f"/draws?sort={sort}&kept=no"
    while path:
        shown = page(client, path)
        found += shown.names()
        path = next((a["href"] for _, a in shown.tags if a.get("rel") == "next"), None)
    wanted = [each.name for each in folder.draws if not each.draw.accepted]
    assert len(wanted) > PAGE
    assert sorted(found) == sorted(wanted)


def test_next_and_previous_of_a_draw_follow_the_filter(look: Look, folder: Folder) -> None:
    client = look(folder.root)
    first = page(client, "/draws?run=pps&text=is&sort=-reward")
    names, found = first.names(), []
    path: str | None = first.links("/draw?")[0]
    while path:
        found.append(dict(parse_qsl(urlsplit(path).query))["name"])
        shown = page(client, path)
        path = next((a["href"] for _, a in shown.tags if a.get("rel") == "next"), None)
    assert 1 < len(names) < PAGE
    assert found == names


def test_a_page_shows_all_of_a_draw(look: Look, folder: Folder) -> None:
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


def test_by_how_much_a_rationale_helped_is_shown_and_sorted_by_once_it_is_scored(
    look: Look, tmp_path: Path
) -> None:
    run, names = Run(tmp_path / "run"), ["run/eval/1/0/0/p", "run/eval/1/0/0/q", "run/draws/1/0/0/r"]
    draws = [made(problem_id=each) for each in "pq"]
    write_draws(run.shard(1, "eval", 0), draws, {})
    write_draws(run.shard(1, "draws", 0), [made(problem_id="r")], {})
    client = look(tmp_path)
    lacks = page(client, "/draws", sort="-gain").spaced
    assert "not measured here" in lacks and "--reader-problems" in lacks
    assert "not measured here" not in page(client, "/draws").spaced
    assert not any("rationale adds" in page(client, "/draw", name=name).spaced for name in names)

    among = {draws[0].key: (-1.5, -1.0), draws[1].key: (-0.75, -1.0)}
    read = {
        key: Reading(
            *(-2.0, -9.0),
            among_answer=after,
            among_direct=direct,
            is_likeliest=True,
            is_likeliest_direct=True,
        )
        for key, (after, direct) in among.items()
    }
    (run.iteration(1) / "eval_scored").mkdir()
    write_readings(run.shard(1, "eval_scored", 0), read, {})
    assert page(client, "/draws", sort="-gain").names() == [names[1], names[0], names[2]]
    least = page(client, "/draws", sort="gain")
    assert least.names() == names and "not measured here" not in least.spaced
    assert "helps −0.50" in least.spaced and "helps +0.25" in least.spaced
    assert "rationale adds −0.50 nats to the log-probability of the correct answer, by the base" in (
        page(client, "/draw", name=names[0]).spaced
    )
    assert "rationale adds +0.25 nats" in page(client, "/problem", id="q").spaced

    (run.iteration(1) / "scored").mkdir()
    write_logprobs(
        run.shard(1, "scored", 0), [replace(made(problem_id="r"), log_answer=-1.0, log_direct=-3.0)], {}
    )
    assert page(client, "/draws", sort="-gain").names() == [names[2], names[1], names[0]]
    assert "by the model that drew it" in page(client, "/draw", name=names[2]).spaced


def test_scores_that_can_not_be_read_are_named_and_their_draws_stay(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    write_draws(run.shard(1, "eval", 0), [made()], {})
    place = run.shard(1, "eval_scored", 0)
    place.parent.mkdir()
    place.write_bytes(b"no Parquet")
    client = look(tmp_path)
    shown = page(client, "/draws", sort="gain")
    assert shown.names() == ["run/eval/1/0/0/p"]
    assert "run: iteration-001/eval_scored/00000.parquet" in shown.spaced
    write_readings(place, {made().key: Reading(-1.0, -3.0)}, {})
    shown = page(client, "/draws", sort="gain")
    assert "helps +2.00" in shown.spaced and "eval_scored/00000" not in shown.spaced


def test_a_page_shows_what_a_draw_was_drawn_under(look: Look, tmp_path: Path) -> None:
    text = "Because.\nAnswer: 3\n"
    free = Completion((1, 2, 3, 4), text, "answered", -2.5)
    forced = replace(free, logprob=math.nan, num_forced=2)
    draws = [
        made(text, completion=free),
        made(text, index=1, completion=forced, demos="a1b2c3", temperature=0.7),
    ]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    client = look(tmp_path)
    one, other = (page(client, "/draw", name=f"run/draws/1/0/{i}/p").spaced for i in (0, 1))
    assert "ended by its closed answer temperature 1.00 seed" in one
    assert "log-probability −2.50 nats" in one and "log-probability – nats" in other
    told = "forced the last 2 tokens: the cue and the answer after it worked examples a1b2c3"
    assert f"ended by its closed answer {told} temperature 0.70 seed" in other
    assert len(page(client, "/draws", finish="answered").names()) == 2


def test_prompts_are_those_that_the_run_asked(look: Look, real: Path) -> None:
    config = yaml.safe_load((real / "config.yaml").read_text())
    prompts = Prompts(instruction=config["instruction"], hint=config["hint"])
    client = look(real)
    draws = [draw for chunk, _ in read_draws(real / "iteration-001" / "draws") for draw in chunk]
    assert {draw.prompt_kind for draw in draws} == {"plain", "hinted"}
    for problem in load_problems(real / "problems.parquet"):
        draw = next(draw for draw in draws if draw.key.problem_id == problem.id)
        shown = page(client, "/draw", name=f"run/draws/1/{draw.key.stage}/0/{problem.id}").shown
        assert prompts.plain(problem)[0]["content"] in shown
        assert prompts.hinted(problem)[0]["content"] in shown
        assert draw.completion.text in shown


def test_a_problem_stands_side_by_side(look: Look, folder: Folder) -> None:
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


def test_of_many_draws_a_problem_shows_the_first_and_the_last(look: Look, tmp_path: Path) -> None:
    draws = [made(f"Try {i}.\nAnswer: 3", index=i) for i in range(20)]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    client = look(tmp_path)
    shown = page(client, "/problem", id="p")
    assert re.findall(r"Try (\d+)", shown.shown) == ["0", "1", "2", "3", "4", "5", "6", "19"]
    (more,) = [link for link in shown.links("/draws?") if "problem=p" in link]
    assert len(page(client, more).names()) == 20


def test_names_that_are_none_are_refused(look: Look, folder: Folder) -> None:
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


def test_a_page_of_a_difference_marks_it(look: Look, tmp_path: Path) -> None:
    draws = [made("It is 1 <b>.\nAnswer: 3"), made("It is 2 <b>.\nAnswer: 3", index=1)]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    names = {"a": "run/draws/1/0/0/p", "b": "run/draws/1/0/1/p"}
    html = look(tmp_path).get("/difference", params=names).text
    assert "It is <del>1</del> &lt;b&gt;." in html
    assert "It is <ins>2</ins> &lt;b&gt;." in html


# --- the runs, and what their draws are about


def test_the_first_page_lists_the_runs_with_their_results(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "judge")
    for iteration, accuracy in ((0, 0.5), (1, 0.55), (2, 0.625)):
        write_draws(run.shard(iteration, "eval", 0), [made(iteration=iteration)], {})
        metrics = {"evaluation": {"accuracy": accuracy}, "e_step": {"kept_share": 0.75}}
        (run.iteration(iteration) / "metrics.json").write_text(json.dumps(metrics))
    run.root.joinpath("config.yaml").write_text("iterations: 2\nscheme: star\nmodel: m\n")
    client = look(tmp_path)
    shown = page(client, "/")
    for wanted in ("1 run", "scheme star", "done, 2 iterations", "accuracy 62.5% base 50.0%", "75.0%"):
        assert wanted in shown.spaced
    links = shown.links("/draws?run=judge&iteration=2")
    assert len(links) == 4 and len(page(client, links[0]).names()) == 1


def test_a_baseline_is_done_when_it_is_measured(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "votes")
    write_draws(run.shard(0, "eval", 0), [made()], {})
    (run.iteration(0) / "metrics.json").write_text(json.dumps({"evaluation": {"accuracy": 0.5}}))
    run.root.joinpath("config.yaml").write_text("iterations: 3\nscheme: votes\nmodel: m\n")
    shown = page(look(tmp_path), "/").spaced
    assert "accuracy 50.0%" in shown and "not finished" not in shown


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"evaluation": 3}', '{"evaluation": {"accuracy": "x"}}']
)
def test_the_first_page_bears_any_metrics(text: str, look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    write_draws(run.shard(1, "draws", 0), [made()], {})
    (run.iteration(1) / "metrics.json").write_text(text)
    assert "accuracy not measured" in page(look(tmp_path), "/").spaced


def test_a_list_of_draws_begins_with_the_last_iteration(look: Look, tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        write_draws(Run(tmp_path / "r").shard(iteration, "draws", 0), [made(iteration=iteration)], {})
    names = page(look(tmp_path), "/draws").names()
    assert names == [f"r/draws/{iteration}/0/0/p" for iteration in (3, 2, 1)]


def test_what_is_judged_stands_above_each_rationale(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    write_draws(run.shard(1, "draws", 0), [made(problem_id=id) for id in "pqrs"], {})
    texts = {"p": "It is short.", "q": "It is wrong.", "r": "word " * 200 + "the end"}
    prompts: dict[str, Any] = {
        id: f"Rate it from 1 to 5.\nResponse:\n{text}" for id, text in texts.items()
    }
    save_problems(
        [Problem(id, prompt, "3") for id, prompt in prompts.items()], run.root / "problems.parquet"
    )
    shown = page(look(tmp_path), "/draws")
    assert "about It is short." in shown.spaced and "about It is wrong." in shown.spaced
    assert "Rate it" not in shown.shown  # all have it
    assert "word …" in shown.spaced and "the end" in shown.spaced and len(shown.spaced) < 3000
    assert shown.shown.count("about") == 3  # s is not stored


# --- a run that goes on


def test_shards_and_runs_appear(look: Look, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("iterations: 3\nscheme: pps\n")
    client = look(tmp_path)
    assert "Nothing is drawn yet" in page(client, "/draws").shown
    assert "not finished: iteration 0 of 3" in page(client, "/").spaced
    write_draws(Run(tmp_path / "b").shard(1, "draws", 0), [made("one <1>", "p")], {})
    assert page(client, "/draws?text=ONE").names() == ["b/draws/1/0/0/p"]
    one = page(client, "/draw", name="b/draws/1/0/0/p")
    assert "correct answer not stored" in one.spaced
    save_problems(
        [Problem("p", "What?", "42"), Problem("q", "?", "1")], tmp_path / "b" / "problems.parquet"
    )
    write_draws(Run(tmp_path / "b").shard(1, "draws", 1), [made("one more", "q")], {})
    write_draws(Run(tmp_path / "a").shard(1, "draws", 0), [made("one of a", "p")], {})
    found = page(client, "/draws?text=ONE&sort=tokens")
    assert sorted(found.names()) == ["a/draws/1/0/0/p", "b/draws/1/0/0/p", "b/draws/1/0/0/q"]
    assert page(client, "/draws").names() == ["a/draws/1/0/0/p", "b/draws/1/0/0/p", "b/draws/1/0/0/q"]
    assert page(client, "/draws?correct=42").names() == ["b/draws/1/0/0/p"]
    (tmp_path / "b" / "iteration-003").mkdir()
    (tmp_path / "b" / "iteration-003" / "metrics.json").write_text("{}")
    assert "done, 3 iterations" in page(client, "/").spaced


def test_a_shard_in_anothers_place_is_read_again(look: Look, tmp_path: Path) -> None:
    place = Run(tmp_path / "run").shard(1, "draws", 0)
    write_draws(place, [made("old", "p"), made("old", "q")], {})
    client = look(tmp_path)
    assert len(page(client, "/draws?text=old").names()) == 2
    write_draws(place, [made("new", "r")], {})
    assert page(client, "/draws?text=old").names() == []
    assert page(client, "/draws").names() == ["run/draws/1/0/0/r"]
    place.unlink()
    assert page(client, "/draws").names() == []


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all", None])
def test_a_damaged_shard_is_named_and_left_out(damage: bytes | None, look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for number in range(5):
        write_draws(run.shard(1, "draws", number), [made("It is so.", f"p{number}")], {})
    bad = run.shard(1, "draws", 3)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    client = look(tmp_path)
    shown = page(client, "/draws")
    assert shown.names() == [f"run/draws/1/0/0/p{number}" for number in (0, 1, 2, 4)]
    assert "1 file can’t be read" in shown.shown
    assert "run: iteration-001/draws/00003.parquet" in shown.shown
    assert "/tmp/femtune-view" not in shown.shown
    bad.write_bytes(whole)
    shown = page(client, "/draws")
    assert len(shown.names()) == 5 and "can’t be read" not in shown.shown


def test_a_shard_that_is_damaged_meanwhile_is_said(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for number in range(3):
        write_draws(run.shard(1, "draws", number), [made("It is so. " * 50, f"p{number}")], {})
    client = look(tmp_path)
    assert len(page(client, "/draws").names()) == 3
    bad = run.shard(1, "draws", 1)
    known = bad.stat()
    with bad.open("r+b") as file:  # of the same size and time: not seen before it is read
        file.seek(4)
        file.write(b"\xff" * (known.st_size - 16))
    os.utime(bad, ns=(known.st_atime_ns, known.st_mtime_ns))
    for path in ("/", "/draws?text=so", "/draws?sort=tokens", "/problem?id=p0", "/draws?run=run"):
        shown = page(client, path)
        assert "Traceback" not in shown.shown
    assert "00001.parquet" in shown.shown
    assert shown.names() == ["run/draws/1/0/0/p0", "run/draws/1/0/0/p2"]
    assert len(client.get("/export.jsonl").text.splitlines()) == 2


def test_a_file_that_is_no_shard_of_draws_is_said(look: Look, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    write_draws(run.shard(1, "draws", 0), [made()], {})
    save_problems([Problem("p", "What?", "1")], run.shard(1, "draws", 1))
    shown = page(look(tmp_path), "/draws")
    assert len(shown.names()) == 1
    assert "00001.parquet" in shown.shown


def test_nothing_is_written_into_a_run(look: Look, folder: Folder) -> None:
    def listing() -> dict[str, tuple[int, int]]:
        stats = {str(path): path.stat() for path in folder.root.rglob("*")}
        return {path: (known.st_mtime_ns, known.st_size) for path, known in stats.items()}

    before, client = listing(), look(folder.root)
    for path in ("/draws?text=is&sort=tokens", "/export.parquet", f"/draw?name={folder.draws[0].name}"):
        assert client.get(path).status_code == 200
    assert listing() == before


def test_runs_of_one_name_are_told_apart(look: Look, tmp_path: Path) -> None:
    for place in ("a/x", "b/x", "y"):
        write_draws(Run(tmp_path / place).shard(1, "draws", 0), [made()], {})
    client = look(tmp_path / "a" / "x", tmp_path / "b", tmp_path / "y")
    names = [Name.read(name).run for name in page(client, "/draws").names()]
    assert names == ["a:x", "b:x", "y"]


def test_a_shard_is_the_one_that_femtune_reads(folder: Folder) -> None:
    """The shards of these tests hold what run.read_shard gives."""
    path = next(folder.root.rglob("*.parquet"))
    while path.parent.name not in ("draws", "eval"):
        path = next(folder.root.rglob("iteration-001/draws/*.parquet"))
    draws, _ = read_shard(path)
    assert {draw.key for draw in draws} <= {each.draw.key for each in folder.draws}


def test_links_are_query_strings() -> None:
    assert Filter(text="a&b=c").query() == urlencode({"text": "a&b=c"})
