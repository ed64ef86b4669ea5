"""The ladder on the demo model, end to end: each rung alone, resumed, killed, and taken into use."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.demo_runs import JUDGE, SEEDLING, make_world

import femtune
from femtune import run_folder
from femtune._util import interrupts
from femtune.cli.main import main
from femtune.comparison.baselines import baseline_settings, run_baseline
from femtune.comparison.ladder.climb import _prepare, run_ladder
from femtune.comparison.ladder.options import LadderOptions
from femtune.comparison.ladder.result import FILE
from femtune.comparison.ladder.rungs import REGRESSION_DRAWS, RUNGS, measure
from femtune.comparison.ladder.verdict import Entry, decide
from femtune.config import Evaluate, Train
from femtune.data.problems import load_problems
from femtune.errors import ConfigError, DataError, RunError
from femtune.evaluation.paired import PairedDifference
from femtune.mstep.config import Training
from femtune.reporting.page.record import find
from femtune.reporting.page.render import render
from femtune.reporting.terminal import Quiet
from femtune.runs.checkpoints import best_of
from femtune.runs.draws import read_draws
from femtune.runs.run import stored_config
from femtune.workflows.evaluate import run_evaluate
from femtune.workflows.train import run_train

ROOT = Path(__file__).parents[2]
DRAWS = 3
FLAGS = [
    *(*SEEDLING, *JUDGE, "--scheme", "rejection:2", "--iterations", "1", "--chunk-size", "10"),
    *("--learning-rate", "3e-4", "--num-train-epochs", "1", "--use-cpu", "--draws", str(DRAWS)),
]
SETTINGS = Train(
    task="judge",
    raters="named",
    scale="1,5",
    max_new_tokens=48,
    scheme="rejection:2",
    iterations=1,
    chunk_size=10,
    bound_draws=0,
    reader_problems=0,
    training=Training(learning_rate=3e-4, num_train_epochs=1, use_cpu=True),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def command(world: Path, place: Path, *more: str) -> list[str]:
    data = [str(world / "train.jsonl"), "--eval-data", str(world / "test.jsonl")]
    left = [*FLAGS]
    for flag in {*more} & {*left}:  # given anew
        place_of = left.index(flag)
        del left[place_of : place_of + 2]
    return ["ladder", *data, *left, "--output-dir", str(place), *more]


@pytest.fixture(scope="module")
def climbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder with all rungs that suit the demo model."""
    place = tmp_path_factory.mktemp("ladder") / "whole"
    assert main(command(world, place, "--show", "lines")) == 0
    return place


def stored(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / FILE).read_text())
    return found


def by_name(place: Path) -> dict[str, dict[str, Any]]:
    return {rung["name"]: rung for rung in stored(place)["rungs"]}


@pytest.mark.slow
def test_all_rungs_run_but_those_that_do_not_suit(climbed: Path) -> None:
    found = stored(climbed)
    assert [*found["not_run"]] == ["examples"]  # the demo model knows the form
    assert [rung["name"] for rung in found["rungs"]] == [name for name in RUNGS if name != "examples"]
    assert (found["num_train"], found["num_held_out"], found["draws"]) == (24, 12, DRAWS)


@pytest.mark.slow
def test_the_scores_of_a_rung_are_its_accuracy(climbed: Path) -> None:
    for name, rung in by_name(climbed).items():
        scores = json.loads((climbed / "rungs" / f"{name}.json").read_text())["scores"]
        assert len(scores) == 12
        assert rung["accuracy"] == pytest.approx(fmean(scores.values())), name


@pytest.mark.slow
def test_the_verdict_is_that_of_its_own_table(climbed: Path) -> None:
    found = stored(climbed)
    entries = [Entry(r["name"], r["accuracy"], r["passes"]) for r in found["rungs"]]
    pairs = {
        (pair.pop("a"), pair.pop("b")): PairedDifference(**pair) for pair in map(dict, found["pairs"])
    }
    assert len(pairs) == len(entries) * (len(entries) - 1) / 2
    decision = decide(entries, pairs, found["margin"])
    assert decision.chosen == found["chosen"]
    assert {name: list(each) for name, each in decision.beaten.items()} == found["beaten"]
    assert (found["chosen"] == "majority") == ("nothing beats the majority" in found["verdict"])


@pytest.mark.slow
def test_tokens_are_those_of_the_stored_draws(climbed: Path) -> None:
    rungs = by_name(climbed)

    def written(folder: str) -> int:
        draws = [draw for chunk, _ in read_draws(climbed / folder) for draw in chunk]
        return sum(len(draw.completion.tokens) for draw in draws)

    assert rungs["majority"]["passes"] == 0
    assert rungs["direct"]["tokens"]["generated"] == 0 < rungs["direct"]["tokens"]["scored"]
    assert rungs["base"]["tokens"]["generated"] == written("base/iteration-000/eval")
    assert rungs["votes"]["use"]["generated"] == written("votes/iteration-000/eval")
    # the same prompts, once greedy, and once for each vote
    assert rungs["votes"]["tokens"]["prompt"] == DRAWS * rungs["base"]["tokens"]["prompt"]
    assert rungs["probabilities"]["use"]["generated"] == rungs["votes"]["use"]["generated"]
    drawn = rungs["regression"]["setup"]
    assert drawn["generated"] == drawn["scored"] == written("regression/iteration-000/draws")
    fem = rungs["fem"]
    assert fem["setup"]["generated"] == written("fem/iteration-001/draws")
    assert fem["use"]["generated"] == written("fem/iteration-001/eval")
    model = json.loads((climbed / "fem/iteration-001/model/m_step.json").read_text())
    assert fem["tokens"]["trained"] == model["trained_tokens"] > 0
    assert rungs["fem-votes"]["setup"] == rungs["fem-probabilities"]["setup"] == fem["setup"]


@pytest.mark.slow
def test_each_rung_that_draws_from_the_base_is_the_same_alone(
    climbed: Path, world: Path, tmp_path: Path
) -> None:
    rungs = by_name(climbed)
    data, eval_data = str(world / "train.jsonl"), str(world / "test.jsonl")
    settings = replace(SETTINGS, eval_data=eval_data)
    for name, draws in (("majority", 1), ("direct", 1), ("votes", DRAWS)):
        own = baseline_settings(name, settings, draws)
        history = run_baseline(data, "seedling", own, tmp_path / name)
        assert history[-1]["evaluation"]["accuracy"] == rungs[name]["accuracy"], name
    own = baseline_settings("regression", settings, REGRESSION_DRAWS)
    history = run_baseline(data, "seedling", own, tmp_path / "regression")
    row = rungs["regression"]["detail"]["row"]
    assert history[-1]["evaluations"][row]["accuracy"] == rungs["regression"]["accuracy"]
    asked: dict[str, Any] = {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": 48}
    greedy = run_evaluate(eval_data, "seedling", Evaluate(**asked), tmp_path / "base", Quiet())
    assert greedy.accuracy == rungs["base"]["accuracy"]
    several = Evaluate(**asked, draws=DRAWS, temperature=1.0)
    both = run_evaluate(eval_data, "seedling", several, tmp_path / "several", Quiet()).metrics
    assert both["by_votes"]["accuracy"] == rungs["votes"]["accuracy"]
    assert both["by_probabilities"]["accuracy"] == rungs["probabilities"]["accuracy"]


@pytest.mark.slow
def test_each_rung_that_trains_is_the_same_alone(climbed: Path, world: Path, tmp_path: Path) -> None:
    rungs, data = by_name(climbed), str(world / "train.jsonl")
    settings = replace(SETTINGS, eval_data=str(world / "test.jsonl"))
    done = run_train(data, "seedling", settings, tmp_path / "fem", Quiet())
    assert done.history[-1]["evaluation"]["accuracy"] == rungs["fem"]["accuracy"]
    own = baseline_settings("answer-only", settings, 1)
    history = run_baseline(data, "seedling", own, tmp_path / "answer-only")
    assert history[-1]["evaluation"]["accuracy"] == rungs["answer-only"]["accuracy"]
    several = Evaluate(draws=DRAWS, temperature=1.0)
    model = str(done.best)
    both = run_evaluate(settings.eval_data or "", model, several, tmp_path / "several", Quiet()).metrics
    assert both["by_votes"]["accuracy"] == rungs["fem-votes"]["accuracy"]
    assert both["by_probabilities"]["accuracy"] == rungs["fem-probabilities"]["accuracy"]


@pytest.mark.slow
def test_fem_chooses_by_a_development_part_that_other_rungs_learn_from(
    world: Path, tmp_path: Path
) -> None:
    data = tmp_path / "all.jsonl"
    data.write_text((world / "train.jsonl").read_text() + (world / "test.jsonl").read_text())
    settings = replace(SETTINGS, eval_share=0.3, dev_share=0.25, iterations=2)
    place = tmp_path / "ladder"
    ground = _prepare(str(data), "seedling", settings, place, LadderOptions(draws=2), None)
    made = {name: measure(name, ground, Quiet()) for name in ("majority", "answer-only", "fem")}
    held = {name: load_problems(place / name / "eval.parquet") for name in made}
    assert held["majority"] == held["answer-only"] == held["fem"] == ground.test
    trained, dev = (load_problems(place / "fem" / f"{part}.parquet") for part in ("problems", "dev"))
    assert dev and {p.id for p in ground.train} == {p.id for p in [*trained, *dev]}
    examples = pq.read_table(place / "answer-only/iteration-001/examples.parquet")
    assert examples.num_rows == len(ground.train)
    history = [json.loads(path.read_text()) for path in sorted(place.glob("fem/*/metrics.json"))]
    best = best_of(history)
    assert made["fem"].detail == {"model": str(place / "fem/best"), "iteration": best}
    assert made["fem"].metrics == history[best]["evaluation"]
    kinds = ("iteration-001/draws", "iteration-002/draws", "iteration-001/dev", "iteration-002/dev")
    written = sum(
        len(draw.completion.tokens)
        for kind in kinds
        for chunk, _ in read_draws(place / "fem" / kind)
        for draw in chunk
    )
    assert made["fem"].setup.generated == written


def test_all_rungs_have_the_date_of_the_first_day(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "writes_date", lambda folder, args: not args)
    settings = replace(SETTINGS, eval_data=str(world / "test.jsonl"))
    options = LadderOptions(up_to="majority", draws=2)
    given = (str(world / "train.jsonl"), "seedling", settings, tmp_path)
    first = run_ladder(*given, "quiet", options)

    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date.today() + timedelta(days=1)

    monkeypatch.setattr(run_folder, "date", Tomorrow)
    assert run_ladder(*given, "quiet", options).table == first.table
    ground = _prepare(*given, options, None)
    pinned = stored_config(tmp_path / "majority")["template_args"]
    assert [*ground.settings.template_args] == [*ground.builder.settings.template_args] == pinned
    assert run_folder.dated((), Path("any"), ()) != pinned  # what a new run would have


@pytest.mark.slow
def test_the_same_command_reads_what_is_stored_and_says_the_same(
    climbed: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, spent = stored(climbed), (climbed / "spent.json").read_text()
    assert main(command(world, climbed, "--show", "json")) == 0
    assert json.loads(capsys.readouterr().out) == before == stored(climbed)
    assert (climbed / "spent.json").read_text() == spent


@pytest.mark.slow
def test_other_settings_are_refused_by_name(
    climbed: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(world, climbed, "--iterations", "2")) == 1
    assert "holds a ladder of other settings (iterations 1 -> 2)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "votes", "probabilities", "answer-only", "fem-votes"])
def test_the_command_of_a_rung_answers_as_the_rung_did(
    climbed: Path, world: Path, tmp_path: Path, name: str
) -> None:
    from femtune.comparison.ladder.store import read_rung
    from femtune.comparison.ladder.use import command as command_of

    rung = read_rung(climbed, name)
    assert rung is not None
    said = command_of(rung, "seedling", replace(SETTINGS, scale=None), "1,5", DRAWS)
    words = shlex.split(said)
    words[words.index("NEW.jsonl")] = str(world / "test.jsonl")
    words[words.index("answers.jsonl")] = output = str(tmp_path / "answers.jsonl")
    assert words[0] == "femtune" and main(words[1:]) == 0
    rows = map(json.loads, Path(output).read_text().splitlines())
    answers = {row["id"]: row["answer"] for row in rows}
    problems = load_problems(climbed / "fem" / "eval.parquet")
    right = {problem.id: float(answers[problem.id] == problem.answer) for problem in problems}
    assert right == rung.scores


@pytest.mark.slow
@pytest.mark.parametrize("name", ["majority", "direct", "regression", "probabilities", "fem"])
def test_new_items_are_answered_as_the_rung_did(
    climbed: Path, world: Path, tmp_path: Path, name: str
) -> None:
    from femtune.comparison.ladder.answer import answer_like
    from femtune.comparison.ladder.store import read_rung
    from femtune.comparison.ladder.use import command as command_of

    rung = read_rung(climbed, name)
    assert rung is not None
    settings = replace(SETTINGS, scale=None, eval_data=str(world / "test.jsonl"))
    options = LadderOptions(draws=DRAWS)
    ground = _prepare(str(world / "train.jsonl"), "seedling", settings, climbed, options, None)
    output = tmp_path / "answers.jsonl"
    counts = answer_like(rung, ground, str(world / "test.jsonl"), output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert counts.items == counts.answered == 12 and all("response" in row for row in rows)
    problems = {problem.id: problem.answer for problem in ground.test}
    assert {row["id"]: float(row["answer"] == problems[row["id"]]) for row in rows} == rung.scores
    has_command = name not in ("majority", "direct", "regression")
    assert bool(command_of(rung, "seedling", SETTINGS, None, DRAWS)) == has_command


@pytest.mark.slow
def test_the_report_has_the_rungs_and_the_verdict(climbed: Path) -> None:
    page = render(find([climbed]))
    found = stored(climbed)
    assert "Should you train seedling on train.jsonl?" in page
    assert found["verdict"].replace("'", "&#39;") in page
    assert "The rungs in numbers" in page and "Accuracy over cost: majority" in page
    for number, rung in enumerate(found["rungs"], 1):
        assert f"{number} {rung['name']}" in page
    found["not_run"] = {"votes": "no time", "fem": "no time", "examples": "no need"}
    left_out = render(replace(find([climbed]), ladder=found))
    assert "Not run: votes, fem (no time)." in left_out and "Not run: examples (no need)." in left_out
    found["verdict"] = "<script>alert(1)</script>"
    found["rungs"][1]["name"] = "<i>\x1b[31m"
    hostile = render(replace(find([climbed]), ladder=found))
    assert "<script>" not in hostile and "<i>" not in hostile and "\x1b" not in hostile


# --- parts of a ladder


@pytest.mark.slow
def test_a_ladder_ends_where_it_is_told_to_and_names_the_rest(world: Path, tmp_path: Path) -> None:
    options = LadderOptions(up_to="base", draws=DRAWS)
    settings = replace(SETTINGS, eval_data=str(world / "test.jsonl"))
    result = run_ladder(str(world / "train.jsonl"), "seedling", settings, tmp_path, "quiet", options)
    assert [*result.table] == ["majority", "direct", "base"]
    assert result.not_run["votes"] == "after --up-to base" and "fem" in result.not_run
    assert "Of what was run, nothing beats the majority." in result.verdict or "So far" in result.verdict
    rest = ", ".join(name for name in RUNGS if name not in result.table)
    assert f"Not run: {rest} (after --up-to base)" in repr(result)
    # more of it later, by the same folder
    told = LadderOptions(up_to="votes", budget="5 tokens", draws=DRAWS)
    more = run_ladder(str(world / "train.jsonl"), "seedling", settings, tmp_path, "quiet", told)
    assert [*more.table] == ["majority", "direct", "base"]
    assert more.not_run["regression"] == more.not_run["votes"] == "the budget is spent"


@pytest.mark.slow
def test_a_budget_ends_a_rung_whose_draws_are_kept(world: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, eval_data=str(world / "test.jsonl"))
    data = str(world / "train.jsonl")
    little = LadderOptions(up_to="base", budget="30 tokens")
    result = run_ladder(data, "seedling", settings, tmp_path, "quiet", little)
    assert result.not_run["base"] == "the budget ended in it; what it has is stored"
    assert not interrupts.stop_requested()
    kept = [*(tmp_path / "base").rglob("*.open.jsonl"), *(tmp_path / "base").rglob("*.parquet")]
    assert kept
    again = run_ladder(data, "seedling", settings, tmp_path, "quiet", little)
    assert again.not_run["base"] == "the budget is spent"  # by the draws of the stopped rung
    result = run_ladder(data, "seedling", settings, tmp_path, "quiet", replace(little, budget=None))
    assert "base" in result.table


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--up-to", "vote"), "up_to is 'vote', no rung. Did you mean votes?"),
        (("--draws", "1"), "draws must be at least 2, got 1"),
        (("--margin", "2"), "margin must be from 0 to 1, got 2"),
        (("--budget", "soon"), "budget is 'soon'"),
        (("--price-prompt", "-1"), "price_prompt must be at least 0"),
        (("--answer", "new.jsonl"), "give both or none"),
        (("--eval-draws", "4", "--eval-temperature", "1"), "leave out eval_draws"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(command(world, tmp_path / "none", *more)) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()


def test_a_ladder_needs_held_out_problems(world: Path) -> None:
    with pytest.raises(DataError, match="a ladder needs held-out problems"):
        femtune.ladder(
            world / "train.jsonl",
            "seedling",
            eval_share=0.0,
            task="judge",
            scale="1,5",
            raters="named",
            progress="quiet",
        )


def test_damaged_rungs_are_named(world: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, eval_data=str(world / "test.jsonl"))
    options = LadderOptions(up_to="majority")
    data = str(world / "train.jsonl")
    run_ladder(data, "seedling", settings, tmp_path, "quiet", options)
    (tmp_path / "rungs" / "majority.json").write_text('{"name": "maj')
    with pytest.raises(RunError, match=r"majority\.json can't be read"):
        run_ladder(data, "seedling", settings, tmp_path, "quiet", options)


def test_word_problems_have_a_majority_and_no_closed_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n} + {n % 3}?", "answer": str(n + n % 3)} for n in range(60)]
    result = femtune.ladder(
        rows[:40],
        "seedling",
        eval_data=rows[40:],
        up_to="base",
        max_new_tokens=24,
        output_dir=tmp_path / "open",
        progress="quiet",
        answer=[{"prompt": "What is 1 + 1?"}, {"prompt": "What is 2 + 0?"}],
        output=tmp_path / "answers.csv",
    )
    assert result.answers == tmp_path / "answers.csv"
    written = result.answers.read_text().splitlines()
    most = result.table["majority"]["detail"]["answer"]
    assert len(written) == 3 and written[1].split(",")[2] == most
    assert [*result.table] == ["majority", "base"]
    assert result.not_run["direct"] == "the answers are no closed set"
    assert "nothing beats the majority" in result.verdict and result.command == ""
    assert result.chosen == "majority" and result.folder == tmp_path / "open"


@pytest.mark.slow
def test_a_ladder_that_is_killed_on_each_rung_ends_with_the_same_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ladder_kills", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "11 kills, 0 wrong; the table is the same"


def test_unknown_settings_are_refused() -> None:
    mistyped: Any = {"upto": "votes"}
    with pytest.raises(ConfigError, match="no setting"):
        femtune.ladder("nowhere.jsonl", "seedling", **mistyped)
