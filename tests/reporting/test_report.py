"""The report: its numbers are the run's own, its text is text, and what is not there is left out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from femtune.cli.main import main
from femtune.data.problems import load_problems
from femtune.errors import RunError
from femtune.evaluation.evaluate import as_item
from femtune.reporting.page import predictions, tally
from femtune.reporting.page.contenders import pooled
from femtune.reporting.page.dots import Row, dots
from femtune.reporting.page.drawing import Axis, drawable
from femtune.reporting.page.record import find
from femtune.reporting.page.render import render, report
from femtune.reporting.page.texts import cut, setting, visible
from femtune.runs.draws import read_draws
from femtune.types import Draw, Problem

from ..demo_runs import SHORT_M_STEP
from ..made_runs import HOSTILE, draw, hostile_run, write_config, write_iteration, write_problems

ASKED = ("--max-new-tokens", "48", "--task", "judge", "--raters", "named", "--scale", "1,5")
TRAINED = ("--model", "seedling", "--iterations", "2", "--learning-rate", "1e-3", "--show", "quiet")
TRAINED += (*SHORT_M_STEP, "--bound-draws", "2", "--reader-problems", "10")
SIZE = ("--num-train", "24", "--num-test", "50")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of `train`: star with votes, rejection(2) without."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["world", "rubric", "--output-dir", str(folder / "data"), *SIZE]) == 0
    data = [str(folder / "data" / "train.jsonl"), "--eval-data", str(folder / "data" / "test.jsonl")]
    schemes = {
        "star": ["--scheme", "star", "--eval-draws", "3", "--eval-temperature", "1"],
        "rejection": ["--scheme", "rejection:2"],
    }
    for name, more in schemes.items():
        assert main(["train", *data, *ASKED, *TRAINED, *more, "--output-dir", str(folder / name)]) == 0
    shutil.rmtree(folder / "data")
    return folder


def metrics(run: Path, iteration: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / f"iteration-{iteration:03}" / "metrics.json").read_text())
    return value


class Seen(HTMLParser):
    """Start tags with their attributes, and all text, of a page; in SVG and outside of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.in_svg: set[tuple[str, str]] = set()
        self.values: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.values += [(name, value or "") for name, value in attrs]
        if "svg" in self.inside:
            self.in_svg |= {(tag, name) for name, _ in attrs} | {(tag, "")}
        else:
            self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag not in ("meta", "link", "br"):
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(page: str, start: str, end: str) -> str:
    """The text of a page between two pieces of its source."""
    return Seen(f"<div>{page.split(start, 1)[1].split(end, 1)[0]}</div>").text


# --- the first screen


def test_the_sentence_says_the_metrics_of_the_run(runs: Path) -> None:
    page = render(find([runs / "star"]))
    said = shown(page, '<p class="result">', "</p>")
    base, last = (metrics(runs / "star", number)["evaluation"] for number in (0, 2))
    number = "{:.1%}".format
    assert said == (
        "After 2 iterations, star predicts the human's rating exactly for "
        f"{number(last['accuracy'])} (95% interval "
        f"{number(last['accuracy_ci'][0])} to {number(last['accuracy_ci'][1])}) of 50 held-out items; "
        f"the base for {number(base['accuracy'])} ({number(base['accuracy_ci'][0])} to "
        f"{number(base['accuracy_ci'][1])})."
    )


def test_every_number_of_the_first_figure_is_of_the_metrics(runs: Path) -> None:
    page = render(find([runs]))
    figure = page.split('<div class="on-wide">')[1].split("</div>")[0]
    written = re.findall(r">(\d+\.\d%)<", figure)
    evaluations = [
        metrics(runs / "rejection", 0)["evaluation"],  # the base is that of the first scheme
        metrics(runs / "rejection", 2)["evaluation"],
        metrics(runs / "star", 2)["evaluation"],
    ]
    assert written == [f"{each['accuracy']:.1%}" for each in evaluations]
    facts = shown(page, '<dl class="facts">', "</dl>")
    assert "24 problems of train.jsonl" in facts and "50 problems of test.jsonl" in facts


def test_the_bound_and_what_hints_give_away_are_shown_by_iteration(runs: Path) -> None:
    page = render(find([runs / "star"]))
    numbers = Seen(page).text.split("Every measure by iteration", 1)[1]
    for iteration in range(3):
        found = metrics(runs / "star", iteration)["posterior"]
        assert f"{found['bound']:.3f} (" in numbers and f"{found['leak_logprob']:.3f} (" in numbers
        assert f"{100 * found['ess_share']:.1f}% (" in numbers
    said = Seen(page).text
    assert "bound on the log-likelihood, nats" in said and "what hints give away, nats" in said


def test_the_best_scheme_leads_and_is_said_to_be_the_best_of_several(runs: Path) -> None:
    said = shown(render(find([runs])), '<p class="result">', "</p>")
    last = {name: metrics(runs / name, 2)["evaluation"]["accuracy"] for name in ("star", "rejection")}
    name = max(last, key=lambda each: last[each])
    label = {"star": "star", "rejection": "rejection(2)"}[name]
    assert said.startswith(f"After 2 iterations, {label}, the best of 2 schemes, ")
    assert f"{last[name]:.1%}" in said


def test_several_seeds_give_their_mean_and_students_interval() -> None:
    made = [{"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}, {"accuracy": 0.6}, {"accuracy": 0.7}]
    estimate = pooled(made, "accuracy")
    # sd 0.1, 3 seeds: 4.303 x 0.1 / sqrt 3
    assert estimate is not None and estimate.value == pytest.approx(0.6)
    assert estimate.ci == pytest.approx((0.6 - 0.24843, 0.6 + 0.24843), abs=1e-4)
    assert pooled(made[:1], "accuracy").ci == (0.4, 0.6)  # type: ignore[union-attr]  # not None, as all runs have it
    assert pooled([*made, {}], "accuracy") is None  # a mean of the others would flatter
    wide = pooled([{"accuracy": 0.2}, {"accuracy": 0.9}], "accuracy")
    assert wide is not None and wide.ci == (0.0, 1.0)  # a share is never more than all


# --- what is counted


def test_tallies_are_what_the_metrics_say(runs: Path) -> None:
    for name in ("star", "rejection"):
        for number in (1, 2):
            folder = runs / name / f"iteration-{number:03}" / "draws"
            own, e_step = tally.tally(folder, number, []), metrics(runs / name, number)["e_step"]
            reasons: dict[str, Counter[str]] = {}
            for (_, _, prompt, reason), count in own.counts.items():
                reasons.setdefault(prompt, Counter())[reason or "kept"] += count
            assert reasons == e_step["reasons"]
            assert own.num_draws == e_step["num_draws"]
            assert own.problems.num_rows == e_step["num_problems"]
            assert sum(own.problems["kept"].to_pylist()) == e_step["num_kept"]
            tokens = sum(int(held @ range(len(held))) for held in own.lengths.values())
            assert tokens == e_step["generated_tokens"]


def test_lengths_and_difficulty_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "BATCH", 2)  # a problem's draws in several batches
    wrong = {"reason": "wrong", "reward": 0.0}
    first = [
        draw("easy", tokens=[1] * 5),
        *(draw("middling", index=i, tokens=[1] * n, **own) for i, n, own in ((0, 7, wrong), (1, 9, {}))),
        *(draw("hard", index=i, tokens=[1] * 20, **wrong) for i in range(2)),
        draw("hinted only", prompt_kind="hinted", stage=1),
    ]
    later = [draw("easy"), draw("middling", **wrong), draw("hard"), draw("hinted only"), draw("new")]
    problems = [Problem(name, "x", "1") for name in ("easy", "middling", "hard", "hinted only", "new")]
    for number, rows in ((1, first), (2, later)):
        write_iteration(tmp_path, number, problems, rows)
    made = [tally.tally(tmp_path / f"iteration-00{n}" / "draws", n, []) for n in (1, 2)]
    assert made[0].quantile(True, 0.5) == 5 and made[0].quantile(False, 0.5) == 20  # 7, 20, 20
    assert made[0].mean_length(True) == pytest.approx((5 + 9 + 3) / 3)
    found = tally.by_difficulty(made[0].problems, made[1].problems)
    assert found == {"never": (1, 1), "up to half": (0, 1), "always": (1, 1)}


def test_the_sample_is_of_the_smallest_seeds_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        draw(f"p{n}", f"text {n}", reason=("", "wrong")[n % 2], seed=n * 37 % 101) for n in range(100)
    ]
    write_iteration(tmp_path, 1, [Problem(f"p{n}", "x", "1") for n in range(100)], rows)
    wanted = {
        reason: [r["text"] for r in sorted(rows, key=lambda r: r["seed"]) if r["reason"] == reason][:3]
        for reason in ("", "wrong")
    }
    for batch in (7, 1 << 14):
        monkeypatch.setattr(tally, "BATCH", batch)
        sampler = tally.DrawPicker(3)
        tally.tally(tmp_path / "iteration-001" / "draws", 1, [], sampler)
        picks = sampler.picks([])
        assert {r: [p.text for p in picks if p.reason == r] for r in wanted} == wanted


def test_confusion_and_reliability_agree_with_the_evaluation(runs: Path) -> None:
    record = find([runs / "star"]).runs[0]
    problems = predictions.eval_problems(record, [])
    items = predictions.items(record, 2, problems, [])
    scale = predictions.one_scale(problems)
    evaluation = metrics(runs / "star", 2)["evaluation"]
    confusion = predictions.confusion(items, scale)
    diagonal = sum(row[at] for at, row in enumerate(confusion.counts))
    bins = predictions.reliability(items, scale)
    error = sum(b.num_items * abs(b.confidence - b.right) for b in bins) / sum(b.num_items for b in bins)
    assert error == pytest.approx(evaluation["ece"])
    voted = [(item.truth, [vote for vote in item.votes if vote]) for item in items if any(item.votes)]
    assert diagonal == sum(
        truth == max(votes, key=votes.count) for truth, votes in voted
    )  # first of ties
    by_id = {p.id: p for p in load_problems(runs / "star" / "eval.parquet")}
    stored = [d for draws, _ in read_draws(runs / "star" / "iteration-002" / "eval") for d in draws]
    first = next(iter(by_id))
    own = [d for d in stored if d.key.problem_id == first]
    assert as_item(by_id[first], own) in items


def first_draws(folder: Path) -> dict[str, Draw]:
    return {draw.key.problem_id: draw for draws, _ in read_draws(folder) for draw in draws}


def test_before_and_after_are_what_is_stored(runs: Path) -> None:
    record = find([runs / "rejection"]).runs[0]
    problems = predictions.eval_problems(record, [])
    changes = predictions.changes(record, [("r", record)], problems, 4, [])
    draws = [first_draws(runs / "rejection" / f"iteration-{number:03}" / "eval") for number in (0, 2)]
    right = [{name: d.score.reward >= 1 for name, d in each.items()} for each in draws]
    counts = Counter((right[0][name], right[1][name]) for name in problems)
    keys = ((False, True), (True, False), (False, False), (True, True))
    assert [c.num_problems for c in changes] == [counts[key] for key in keys if counts[key]]
    for change in changes:
        for exhibit in change.exhibits:
            own = [each[exhibit.problem_id] for each in draws]
            assert [t.text for t in exhibit.takes] == [d.completion.text for d in own]
            assert [t.right for t in exhibit.takes] == [each[exhibit.problem_id] for each in right]


# --- text is text


OURS = {
    *("html", "head", "meta", "title", "link", "style", "body", "a", "header", "footer", "main"),
    *("section", "nav", "h1", "h2", "h3", "p", "span", "strong", "b", "bdi", "br", "div"),
    *("figure", "figcaption", "svg", "dl", "dt", "dd", "ul", "li", "details", "summary", "article"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}
DRAWN = {"g", "path", "line", "rect", "text", "tspan"}


def check_page(page: str) -> Seen:
    """That a page holds our elements and attributes alone, and nothing that loads, runs or hides."""
    seen = Seen(page)
    assert {tag for tag, _ in seen.tags} <= OURS
    assert {tag for tag, _ in seen.in_svg} <= DRAWN
    assert seen.inside == []
    for name, value in seen.values:
        assert not name.startswith("on") and name not in ("src", "srcset", "xlink:href", "srcdoc")
        assert name != "href" or value.startswith("#") or value == "data:,"
        assert name != "style" or re.fullmatch(r"--share: [\d.]+|color: var\(--\w+\)", value)
        assert "url(" not in value
    assert page == visible(page)
    assert "default-src 'none'" in page.split("<style>")[0]
    assert "script" not in {tag for tag, _ in seen.tags}
    return seen


def test_hostile_text_makes_no_element_and_no_attribute(tmp_path: Path) -> None:
    """The same run of harmless texts that are as long gives the same elements, in the same order."""
    pages = []
    for name, texts in (
        ("hostile", HOSTILE),
        ("harmless", [re.sub(r"\S", "x", text) for text in HOSTILE]),
    ):
        run = hostile_run(tmp_path / name, texts)
        pages.append(check_page(render(find([run]))))
    assert pages[0].tags == pages[1].tags
    text = pages[0].text
    assert "<script>window.pwned = 1; alert(1)</script>" in text
    assert "\\x1b[31m" in text and "\\u202egnp.exe" in text
    assert "997,000 more characters are in the run" in text


@settings(max_examples=40)
@example(labels=["000000000000<K" + "\x1f" * 6 + "\x1e\x08\x08\U00010000\ufff9"])  # cut within a pair
@example(labels=["if", "datum"])  # words of Vega's own
@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=3))
def test_any_label_can_be_drawn(labels: list[str]) -> None:
    """Characters that XML forbids would end the process; others must not become elements."""
    rows = [Row(label, 0.5, (0.4, 0.6), "var(--c0)") for label in labels]
    for width in (340, 760):
        svg = dots(rows, Axis("accuracy", "%"), "; ".join(labels), width=width)
        root = ElementTree.fromstring(svg)
        assert {e.tag for e in root.iter()} <= {"svg", *DRAWN}
        text = "".join(root.itertext())
        for label in labels:
            for word in drawable(label).split()[:1]:
                assert word[:8] in text


@given(st.text(st.characters()))
def test_visible_text_hides_nothing(text: str) -> None:
    found = visible(text)
    assert visible(found) == found
    found.encode()  # no half of a pair
    assert not set(found) & set(
        map(chr, [*range(9), *range(14, 32), 0x7F, 0x200B, 0x202E, 0x2066, 0xFEFF])
    )


def test_the_joiners_of_scripts_and_emoji_stay() -> None:
    assert visible("\u0646\u200c\u0645 👩\u200d🔬 हिन्दी é") == "\u0646\u200c\u0645 👩\u200d🔬 हिन्दी é"


def test_a_text_is_cut_and_told_by_how_much() -> None:
    assert cut("a" * 3007) == ("a" * 3000, 7)


def test_no_login_is_shown() -> None:
    assert setting("http://me:secret@host:8000/v1") == "http://…@host:8000/v1"


# --- what is not there


def one_problem() -> list[Problem]:
    return [Problem("p", "What is it?", "1")]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_config(tmp_path / "run")
    seen = check_page(render(find([tmp_path / "run"])))
    assert "Nothing is measured yet" in seen.text
    assert "run has measured nothing yet" in seen.text


def test_an_unfinished_run_says_so(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "star", tmp_path / "cut", symlinks=True)
    (tmp_path / "cut" / "iteration-002" / "metrics.json").unlink()
    seen = check_page(render(find([tmp_path / "cut"])))
    assert "cut is not finished: 1 of 2 iterations done" in seen.text
    assert "After 1 iteration, star" in seen.text


def test_without_evaluation_the_kept_share_leads(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_problems(tmp_path, one_problem())
    write_iteration(tmp_path, 1, one_problem(), [draw("p")])
    seen = check_page(render(find([tmp_path])))
    assert (
        "Nothing was held out to measure it on; in its last E-step star kept a rationale of 100.0%"
        in seen.text
    )


def test_what_is_remembered_has_its_own_course(tmp_path: Path) -> None:
    """And an iteration that asked nothing leaves a gap in what was kept."""
    problems = [Problem(name, "What?", "1") for name in ("a", "b")]
    write_config(tmp_path, scheme="rejection:2+chain+every:2", iterations=3)
    write_problems(tmp_path, problems)
    asked = write_iteration(tmp_path, 1, problems, [draw("a"), draw("b", reason="wrong")])
    for number, kept, covered in ((1, 0.5, 0.5), (2, None, 0.5), (3, 0.5, 1.0)):
        more = {"kept_share": kept, "covered_share": covered, "num_problems": 2}
        more |= {"num_problems": 0, "num_kept": 0, "kept_by": {}} if kept is None else {}
        write_iteration(tmp_path, number, problems, e_step={**asked["e_step"], **more})
    page = check_page(render(find([tmp_path]))).text
    for said in ("rejection(2)+chain+every(2)", "right rationale, remembered ones included"):
        assert said in page
    shutil.rmtree(tmp_path / "iteration-003")
    assert (
        "rejection(2)+chain+every(2)" in check_page(render(find([tmp_path]))).text
    )  # its last one asked nothing


def test_problems_that_are_asked_in_turn_are_compared_with_their_own_first_draws(tmp_path: Path) -> None:
    problems = [Problem(name, "What?", "1") for name in ("a", "b")]
    write_config(tmp_path, scheme="rejection:2+chain+every:2", iterations=3)
    write_problems(tmp_path, problems)
    for number, name in ((1, "a"), (2, "b")):
        write_iteration(tmp_path, number, problems, [draw(name, iteration=number)])
    text = check_page(render(find([tmp_path]))).text
    assert "Kept shares by difficulty take two iterations" in text  # of the same problems
    write_iteration(tmp_path, 3, problems, [draw("a", iteration=3)])
    text = check_page(render(find([tmp_path]))).text
    assert "Problems kept in the last iteration that asked them" in text and "100.0% of 1" in text
    assert "2 problems of " in text  # trained on, though each iteration asked one


def test_a_run_that_kept_nothing(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_problems(tmp_path, one_problem())
    rows = [draw("p", reason="truncated", reward=0.0, answer="")]
    write_iteration(tmp_path, 0, one_problem(), evaluated=rows)
    write_iteration(tmp_path, 1, one_problem(), rows)
    (tmp_path / "iteration-001" / "metrics.json").unlink()  # NothingKept is raised before it is written
    text = check_page(render(find([tmp_path]))).text
    assert "0 of 1 (0.0%) draws were accepted; refused: 1 truncated" in text


def test_an_evaluation_alone(tmp_path: Path) -> None:
    write_config(tmp_path, scheme=None, iterations=None)
    write_iteration(tmp_path, 0, one_problem(), evaluated=[draw("p", iteration=0)])
    text = check_page(render(find([tmp_path]))).text
    assert "The model as it is gets 100.0% of 1 held-out problems right" in text


def test_what_is_left_out_is_told(runs: Path, tmp_path: Path) -> None:
    text = check_page(render(find([runs / "rejection"]))).text
    assert "How reliable its votes are is left out" in text
    hinted = shutil.copytree(runs / "rejection", tmp_path / "hinted", symlinks=True)
    for shard in hinted.glob("iteration-*/draws/*.parquet"):
        table = pq.read_table(shard)
        column = pa.array(["hinted"] * table.num_rows)
        pq.write_table(
            table.set_column(table.schema.get_field_index("prompt_kind"), "prompt_kind", column), shard
        )
    assert "Kept shares by difficulty are left out" in check_page(render(find([hinted]))).text


def test_damage_is_told_and_left_out(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "star", tmp_path / "hurt", symlinks=True)
    shard = run / "iteration-001" / "draws" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    (run / "iteration-000" / "metrics.json").write_text('{"iteration": 0, "evalua')
    (run / "environment.json").write_text("[]")
    text = check_page(render(find([run]))).text
    assert "00000.parquet can't be read, and its draws are left out" in text
    assert "metrics.json can't be read, and is left out" in text


def test_the_same_files_give_the_same_page(runs: Path) -> None:
    assert render(find([runs])) == render(find([runs]))


# --- the command


def test_report_writes_one_file_and_tells_where(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a render.html"
    assert main(["report", str(runs / "star"), str(runs / "rejection"), "--output", str(place)]) == 0
    assert capsys.readouterr().out == f"report: {place}\n"
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    check_page(place.read_text())
    place.write_text("old")
    report([runs], place)
    assert place.read_text().startswith("<!doctype html>")


def test_train_leaves_a_report_and_quiet_says_nothing(runs: Path) -> None:
    assert (runs / "star" / "report.html").read_text() == render(find([runs / "star"]))


def test_a_report_that_fails_is_a_warning(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from femtune.cli import train
    from femtune.reporting.page import render

    def fails(runs: Any, output: Any = None) -> Path:
        raise ValueError("no ink")

    monkeypatch.setattr(render, "report", fails)
    main(["--version"])  # sets up how warnings are shown
    train.write_report(runs / "star", "auto")
    assert "the report could not be written: no ink" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "said"),
    [("nothing", "does not exist"), ("empty", "holds no run"), ("bad", "no names and values")],
)
def test_what_is_no_run_is_refused(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text(yaml.safe_dump([1]))
    with pytest.raises(RunError, match=said):
        report([tmp_path / place])


def test_an_output_that_is_a_directory_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a directory"):
        report([runs], tmp_path)


def test_a_report_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from femtune.reporting.page.render import report; "
        f"report([Path({str(runs)!r})], Path({str(runs / 'x.html')!r})); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
