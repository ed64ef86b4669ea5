"""What docs/findings.md is made of: rows from runs, means over seeds, tables, pictures, the page."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from femtune.comparison.baselines import Reinforced
from femtune.errors import ConfigError, NothingKept, RunError
from femtune.evaluation.bootstrap import half_width
from femtune.reporting.page.drawing import drawn
from femtune.types import Problem

from .made_runs import draw as made_draw
from .made_runs import write_config, write_iteration

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))

from findings import running  # noqa: E402
from findings.experiments import EXPERIMENTS, FIGURES, Experiment, Figure, command  # noqa: E402
from findings.numbers import (  # noqa: E402
    Found,
    at_end,
    budgets,
    difference,
    difference_for_as_much,
    found_of,
    rank_correlation,
    reached,
    within,
)
from findings.pictures import draw, looks, place  # noqa: E402
from findings.tables import NOT_YET, markdown  # noqa: E402

TINY = Experiment("tiny", "rubric", ("rejection:1", "pps", "votes"), seeds=(0, 1), iterations=2)
CURVES = Figure("tiny", "curves", ("tiny",), "About it.", x="generated_tokens", baselines=("votes",))


def stored(
    folder: Path, accuracy: Mapping[tuple[str, int], Sequence[float]], experiment: Experiment = TINY
) -> Found:
    """A CSV in which each iteration took 100 tokens and 2 seconds, read back."""
    rows = []
    for (name, seed), values in accuracy.items():
        kind = "baseline" if name in ("votes", "majority") else "scheme"
        contender, _, value = name.partition("@")
        for number, each in enumerate(values):
            row = {
                "world": "rubric",
                "contender": contender,
                "kind": kind,
                "seed": seed,
                "accuracy": each,
            }
            row |= {"iteration": number, "setting": experiment.setting, "value": value}
            spent = {"generated_tokens": 100 * number, "seconds": 2 * number} if kind == "scheme" else {}
            rows.append(row | spent)
    running.write(experiment, rows, folder / "none", folder)
    figure = replace(CURVES, experiments=(experiment.name,))
    return found_of(figure, folder)[0]


# --- rows of runs


def test_rows_add_up_what_iterations_took(tmp_path: Path) -> None:
    write_config(tmp_path)
    problems = [Problem("a", "1 + 0?", "1"), Problem("b", "0 + 1?", "1")]
    wrong = {"reason": "wrong", "reward": 0.0}
    write_iteration(tmp_path, 0, problems, (), [made_draw("a"), made_draw("b", **wrong)])
    for number in (1, 2, 3):
        drawn_now = [made_draw("a", iteration=number), made_draw("b", iteration=number, **wrong)]
        write_iteration(tmp_path, number, problems, drawn_now, [made_draw("a"), made_draw("b")])
    found = [*running.checkpoints(tmp_path, 2, {"generated_tokens": 0.0, "seconds": 0.0})]
    # 2 draws of 3 tokens; 1.5 s of an E-step (so its shard says), 2 s of an M-step; no iteration 3
    assert [row["generated_tokens"] for row in found] == ["0", "6", "12"]
    assert [row["seconds"] for row in found] == ["0", "3.5", "7"]
    assert [row["accuracy"] for row in found] == ["0.5", "1", "1"]
    assert [row.get("kept_share") for row in found] == [None, "0.5", "0.5"]
    assert not any({"spearman", "sound_steps", "bound"} & row.keys() for row in found)


def test_further_metrics_are_found_where_they_are(tmp_path: Path) -> None:
    posterior = {"bound": -1.25, "ess_share": 1, "leak_share": "none", "leak_logprob": 0.0}
    write_iteration(tmp_path, 1, [], evaluation={"accuracy": 0.5}, posterior=posterior)
    (row,) = running.checkpoints(tmp_path, 1, {})
    expected = {
        "iteration": 1,
        "accuracy": "0.5",
        "bound": "-1.25",
        "ess_share": "1",
        "leak_logprob": "0",
    }
    assert row == expected


def test_kinds_of_a_regression_are_contenders(tmp_path: Path) -> None:
    kinds = {"ls score": {"accuracy": 0.25}, "ls+embedding": {"accuracy": 0.75}}
    e_step = {"generated_tokens": 7, "total_s": 1.0}
    write_iteration(tmp_path, 0, [], evaluations=kinds, evaluation=kinds["ls+embedding"], e_step=e_step)
    found = [*running.checkpoints(tmp_path, 5, {})]
    assert [(row["contender"], row["accuracy"]) for row in found] == [
        ("ls score", "0.25"),
        ("ls+embedding", "0.75"),
    ]
    assert {row["generated_tokens"] for row in found} == {"7"}


# --- what is run


def rows_of(part: running.Part, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (part.folder / f"{name}.jsonl").read_text().splitlines()]


def test_noise_is_in_training_answers_only_and_held_out_ones_are_the_same(tmp_path: Path) -> None:
    noisy = replace(TINY, setting="noise", values=(0.0, 0.5), num_train=60, num_test=40, seeds=(3,))
    clean, wrong = running.parts(noisy, tmp_path)
    for part in (clean, wrong):
        running.write_rows(part)
    shares = [
        [
            sum(str(row["score"]) != row["truth"] for row in rows_of(part, name)) / size
            for part in (clean, wrong)
        ]
        for name, size in (("train", 60), ("test", 40))
    ]
    assert shares[0][0] == 0 and 0.25 < shares[0][1] < 0.75  # 4 sigma = 0.26
    assert shares[1] == [0, 0]
    assert rows_of(clean, "test") == rows_of(wrong, "test")


def test_fewer_problems_are_the_first_of_more(tmp_path: Path) -> None:
    sized = replace(TINY, setting="num_train", values=(10, 30), num_test=20)
    parts = [*running.parts(sized, tmp_path, seeds=[0])]
    for part in parts:
        running.write_rows(part)
    few, many = (rows_of(part, "train") for part in parts)
    assert len(few) == 10 and len(many) == 30 and few == many[:10]
    assert rows_of(parts[0], "test") == rows_of(parts[1], "test")
    other = next(running.parts(replace(sized, num_test=21), tmp_path))
    with pytest.raises(RunError, match="holds other rows than the experiment has now"):
        running.write_rows(other)


def test_a_value_that_varies_reaches_the_settings_of_its_runs(tmp_path: Path) -> None:
    start = replace(TINY, setting="start_from", values=("previous", "base"), seeds=(4,))
    parts = [*running.parts(start, tmp_path)]
    assert [part.settings.start_from for part in parts] == ["previous", "base"]
    assert [part.folder.parent.name for part in parts] == ["start_from-previous", "start_from-base"]
    jobs = parts[1].jobs()
    assert [(job.scheme, job.seed, job.settings.start_from) for job in jobs] == [
        ("votes", 4, "base"),
        ("rejection(1)", 4, "base"),
        ("pps", 4, "base"),
    ]
    models = replace(TINY, setting="model", values=("runs/x/seedling-9", "seedling"), seeds=(0,))
    made = [(part.model, part.folder.parent.name) for part in running.parts(models, tmp_path)]
    assert made == [("runs/x/seedling-9", "model-seedling-9"), ("seedling", "model-seedling")]


def test_reinforcement_has_budgets_of_its_own_and_curves_as_schemes_have(tmp_path: Path) -> None:
    rl = {"rl_tokens": 500, "rl_num_generations": 4, "rl_batch_size": 8}
    mixed = Experiment("rl", "rubric", ("rejection:1", "grpo", "votes"), seeds=(3,), iterations=4, rl=rl)
    (part,) = running.parts(mixed, tmp_path)
    kinds = {job.scheme: running.kind(job) for job in part.jobs()}
    assert kinds == {"rejection(1)": "scheme", "grpo": "rl", "votes": "baseline"}
    (grpo,) = (job for job in part.jobs() if job.scheme == "grpo")
    assert isinstance(grpo.settings, Reinforced) and vars(grpo.settings).items() >= rl.items()
    (plain,) = running.parts(replace(mixed, rl={}), tmp_path)
    assert part.identity() == plain.identity() | {"rl": rl}
    running.write_rows(part)
    for job in part.jobs():
        e_step = {} if job.scheme == "votes" else {"generated_tokens": 300, "total_s": 1.0}
        for number in (0, 1, 2) if job.scheme == "grpo" else (0, 1):
            steps = {"e_step": e_step, "m_step": {"seconds": 2.0}} if number and e_step else {}
            write_iteration(job.output_dir, number, [], evaluation={"accuracy": number / 4}, **steps)
    note = {"iterations": 4, "runs": {job.output_dir.name: "" for job in part.jobs()}}
    (part.folder / "done.json").write_text(json.dumps(note | part.identity()))
    made = running.rows(mixed, tmp_path)
    running.write(mixed, made, tmp_path, tmp_path)
    found = found_of(replace(CURVES, experiments=("rl",)), tmp_path)[0]
    assert found.schemes == ["rejection:1", "grpo"] and found.baselines == ["votes"]
    assert at_end(found, "grpo", None, "accuracy")[0] == 0.5  # its passes are no iterations
    assert at_end(found, "rejection:1", None, "accuracy") is None  # one of four
    assert [row["generated_tokens"] for row in found.of("grpo")] == [0, 300, 600]


def test_where_draws_vary_all_schemes_are_one_part(tmp_path: Path) -> None:
    budget = Experiment("m", "rubric", ("rejection:M",), "M", (1, 4), seeds=(0,))
    (part,) = running.parts(budget, tmp_path)
    assert part.plans == {"rejection:1": ("rejection:M", 1), "rejection:4": ("rejection:M", 4)}
    with pytest.raises(ValueError, match="ends in :M"):
        Experiment("m", "rubric", ("pps",), "M", (1, 4))
    with pytest.raises(ValueError, match="go together"):
        Experiment("m", "rubric", ("pps",), "noise")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_begun(tmp_path: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    for part in running.parts(experiment, tmp_path, seeds=experiment.seeds[:1]):
        part.jobs()  # schemes and settings are known
    assert any(name in figure.experiments for figure in FIGURES.values())


def test_only_what_is_missing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def compare(data: str, model: str, jobs: Sequence[Any], **more: Any) -> dict[Any, Any]:
        asked.append([job.output_dir.name for job in jobs])
        for job in jobs:
            write_iteration(job.output_dir, 0, [], evaluation={"accuracy": 0.5})
        if len(asked) == 1:
            raise NothingKept("nothing")
        return {job: [{"nothing_kept": "no draw"} if job.scheme == "pps" else {}] for job in jobs}

    monkeypatch.setattr(running, "compare", compare)
    small = replace(TINY, num_train=10, num_test=5)

    def run(experiment: Experiment, **more: Any) -> None:
        running.run(experiment, tmp_path, tell=lambda text: None, **more)

    run(small, seeds=[0])
    assert {row["seed"] for row in running.rows(small, tmp_path)} == {0}  # whole seeds alone
    run(small)
    run(small)
    assert len(asked) == 2  # one of each seed
    notes = [json.loads((tmp_path / f"tiny/all/seed{seed}/done.json").read_text()) for seed in (0, 1)]
    assert notes[0]["runs"] == {
        "votes-seed0": "",
        "rejection-1-seed0": "nothing",
        "pps-seed0": "nothing",
    }
    assert notes[1]["runs"] == {"votes-seed1": "", "rejection-1-seed1": "", "pps-seed1": "no draw"}
    more = replace(small, contenders=(*small.contenders, "star"))
    run(more)
    assert len(asked) == 4 and asked[-1][-1] == "star-seed1"
    assert {row["contender"] for row in running.rows(more, tmp_path)} == {*more.contenders}
    run(replace(more, iterations=3))
    assert len(asked) == 6
    with pytest.raises(ConfigError, match=r"scheme.*nosuch"):
        run(replace(small, contenders=("nosuch",)))
    with pytest.raises(ConfigError, match=r"has no seeds \[7\]"):
        run(small, seeds=[1, 7])
    assert len(asked) == 6
    other = replace(small, settings={"learning_rate": 5e-4})
    assert running.rows(small, tmp_path) and running.rows(other, tmp_path) == []  # not of these settings
    assert running.rows(replace(small, num_test=6), tmp_path) == []
    run(other)
    assert len(asked) == 8  # and `compare` says what differs


@pytest.mark.slow
def test_an_experiment_from_its_runs_to_its_tables(tmp_path: Path) -> None:
    small = Experiment(
        "tiny", "rubric", ("rejection:2",), seeds=(0,), iterations=1, num_train=24, num_test=8
    )
    running.run(small, tmp_path / "runs", workers=1, tell=lambda text: None)
    made = running.rows(small, tmp_path / "runs")
    running.write(small, made, tmp_path / "runs", tmp_path)
    base, last = made
    assert base["generated_tokens"] == "0" and int(last["generated_tokens"]) > 24
    assert float(last["seconds"]) > 0 and 0 < float(last["kept_share"]) <= 1
    said = markdown(CURVES, tmp_path)
    assert "24 training and 8 held-out problems, seedling, 1 iterations, 1 seed." in said
    assert f"{int(last['generated_tokens']):,}" in said and "torch" in said


# --- numbers


def test_a_seed_without_a_number_leaves_none(tmp_path: Path) -> None:
    whole = {("pps", 0): [0.4, 0.5, 0.7], ("pps", 1): [0.4, 0.5, 0.9]}
    found = stored(tmp_path, whole | {("star", 0): [0.4, 0.6, 0.8], ("star", 1): [0.4]})
    mean = at_end(found, "pps", None, "accuracy")
    assert mean == pytest.approx((0.8, half_width([0.7, 0.9])))
    assert at_end(found, "star", None, "accuracy") is None  # seed 1 kept nothing
    assert at_end(found, "pps", None, "bound") is None
    assert difference(found, "star", "pps", "accuracy") is None


def test_differences_are_paired(tmp_path: Path) -> None:
    rows = {("pps", 0): [0.4, 0.5, 0.5], ("pps", 1): [0.4, 0.5, 0.75]}
    found = stored(tmp_path, rows | {("star", 0): [0.4, 0.5, 0.625], ("star", 1): [0.4, 0.5, 0.875]})
    assert difference(found, "star", "pps", "accuracy") == (0.125, 0.0)


def test_differences_for_as_much_and_what_a_goal_took(tmp_path: Path) -> None:
    rows = {("pps", 0): [0.4, 0.5, 0.5], ("pps", 1): [0.4, 0.5, 0.75]}
    found = stored(tmp_path, rows | {("star", 0): [0.4, 0.75], ("star", 1): [0.4, 0.5]})
    tokens, short = "generated_tokens", dict(found.about["experiment"], iterations=1)
    found = replace(found, about={"experiment": short})  # star's runs end where pps's have half to go
    assert difference_for_as_much(found, "star", "pps", tokens, "accuracy")[0] == 0.125
    longer = {("pps", 0): [0.4], ("pps", 1): [0.4], ("star", 0): [0.4, 0.5], ("star", 1): [0.4, 0.5]}
    assert reached(found, "star", "accuracy", 0.5, tokens) == (100, 0)
    assert reached(found, "star", "accuracy", 0.7, tokens) is None  # not in seed 1
    found = replace(stored(tmp_path, longer), about={"experiment": short})
    assert difference_for_as_much(found, "star", "pps", tokens, "accuracy") is None  # it had room


def test_within_a_budget(tmp_path: Path) -> None:
    found = stored(tmp_path, {("pps", 0): [0.4, 0.5, 0.7], ("pps", 1): [0.2, 0.3, 0.9]})

    def mean(most: float) -> float | None:
        made = within(found, "pps", "generated_tokens", most, "accuracy")
        return None if made is None else round(made[0], 6)

    assert [mean(0), mean(99), mean(100), mean(199)] == [0.3, 0.3, 0.4, 0.4]
    assert [mean(200), mean(299)] == [0.8, 0.8]
    assert mean(300) is None  # there was room for a third iteration
    assert budgets(found, "generated_tokens") == [50, 100, 200]


def test_correlation_over_checkpoints_counts_the_base_once(tmp_path: Path) -> None:
    rows = {("pps", 0): [0.1, 0.2, 0.3], ("star", 0): [0.1, 0.3, 0.2]}
    found = stored(tmp_path, rows)
    assert rank_correlation(found, "pps", "seconds", "accuracy")[0] == pytest.approx(1)
    assert rank_correlation(found, "star", "seconds", "accuracy")[0] == pytest.approx(0.5)
    # (0, .1), (2, .2), (4, .3), (2, .3), (4, .2): ranks 1, 2.5, 4.5, 2.5, 4.5 and 1, 2.5, 4.5, 4.5, 2.5;
    # less 3: -2, -.5, 1.5, -.5, 1.5 and -2, -.5, 1.5, 1.5, -.5: sums of products 5, of squares 9
    assert rank_correlation(found, None, "seconds", "accuracy")[0] == pytest.approx(5 / 9)
    assert rank_correlation(found, "pps", "bound", "accuracy") is None


# --- tables and pictures


def two_schemes(folder: Path) -> Found:
    rows = {("votes", 0): [0.5], ("votes", 1): [0.5]}
    for seed, last in ((0, 0.75), (1, 0.75)):
        rows |= {("rejection:1", seed): [0.25, 0.5, 0.5], ("pps", seed): [0.25, 0.5, last]}
    return stored(folder, rows)


def test_a_table_is_what_the_rows_say(tmp_path: Path) -> None:
    two_schemes(tmp_path)
    assert (
        markdown(CURVES, tmp_path)
        == """\
**rubric**: 400 training and 200 held-out problems, seedling, 2 iterations, 2 seeds.

| accuracy within | 50 tokens | 100 tokens | 200 tokens |
| --- | --: | --: | --: |
| rejection:1 | .250 ±.000 | .500 ±.000 | .500 ±.000 |
| pps | .250 ±.000 | .500 ±.000 | .750 ±.000 |

| by seed | accuracy at its end less rejection:1's for as many tokens | tokens to accuracy .850 |
| --- | --: | --: |
| rejection:1 | – | – |
| pps | .250 ±.000 | – |

| at the end | accuracy less rejection:1's, by seed | accuracy | tokens |
| --- | --: | --: | --: |
| base |  | .250 ±.000 |  |
| votes | .000 ±.000 | .500 ±.000 | – |
| rejection:1 | – | .500 ±.000 | 200 ±0 |
| pps | .250 ±.000 | .750 ±.000 | 200 ±0 |

Rows: [tiny.csv](../bench/findings/tiny.csv).
"""
    )


def test_a_table_by_setting(tmp_path: Path) -> None:
    noisy = replace(TINY, name="noisy", setting="noise", values=(0.0, 0.5))
    rows = {(f"pps@{value}", seed): [0.25, 0.5, 0.75 - value] for value in (0.0, 0.5) for seed in (0, 1)}
    found = stored(tmp_path, rows, noisy)
    assert found.values == ["0.0", "0.5"]
    figure = replace(CURVES, kind="setting", experiments=("noisy",), x="value")
    assert """
| accuracy | noise 0.0 | noise 0.5 |
| --- | --: | --: |
| base | .250 ±.000 | .250 ±.000 |
| pps | .750 ±.000 | .250 ±.000 |
""" in markdown(figure, tmp_path)


def texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_picture_is_drawn_from_the_csv_alone(tmp_path: Path) -> None:
    two_schemes(tmp_path)
    path = draw(CURVES, tmp_path, tmp_path)
    shown = texts(path)
    assert {"rubric", "rejection:1", "pps", "votes", "accuracy", "tokens"} <= {*shown}
    assert "sound steps" not in shown  # nothing of it is stored
    svg = path.read_text()
    assert 'aria-label="About it."' in svg and "prefers-color-scheme: dark" in svg
    assert not re.search(r"<script|href|<image|\bon\w+=|url\(", svg)
    used = {*re.findall(r"var\((--\w+)\)", svg)}
    for scheme in re.findall(r"\.finding \{([^}]*)\}", svg):  # light, dark
        assert used <= {*re.findall(r"(--\w+):", scheme)}
    assert draw(CURVES, tmp_path, tmp_path).read_text() == svg


@pytest.mark.parametrize("kind", ["setting", "scatter"])
def test_other_kinds_of_pictures(tmp_path: Path, kind: Any) -> None:
    noisy = replace(TINY, name="noisy", setting="noise", values=(0.0, 0.5))
    rows = {(f"pps@{value}", seed): [0.25, 0.5, 0.75 - value] for value in (0.0, 0.5) for seed in (0, 1)}
    stored(tmp_path, rows, noisy)
    x = {"setting": "value", "scatter": "seconds"}[kind]
    figure = replace(CURVES, kind=kind, experiments=("noisy",), x=x, x_title="noise")
    shown = texts(draw(figure, tmp_path, tmp_path))
    assert {"pps", "accuracy"} <= {*shown} and NOT_YET not in shown


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert markdown(CURVES, tmp_path) == f"{NOT_YET}\n"
    assert texts(draw(CURVES, tmp_path, tmp_path)) == [NOT_YET]
    two_schemes(tmp_path)
    bound = replace(CURVES, kind="scatter", x="bound", measures=("accuracy",))
    assert "No run had bound, nats in its metrics." in markdown(bound, tmp_path)
    assert NOT_YET in texts(draw(bound, tmp_path, tmp_path))


def test_schemes_look_the_same_in_every_figure_and_unlike_each_other(tmp_path: Path) -> None:
    assert looks(["pps", "star"]) == looks(["star", "pps"])[::-1]
    known = list(dict.fromkeys(name for each in EXPERIMENTS.values() for name in each.contenders))
    names = [*known[:3], *(f"new:{number}" for number in range(5))]
    assert len({colour for colour, _ in looks(names)}) == len(names) == 8
    stored(tmp_path, {(f"scheme{number}", 0): [0.1, 0.2, 0.3] for number in range(9)})
    with pytest.raises(ValueError, match="has 9 schemes, at most 8"):
        draw(CURVES, tmp_path, tmp_path)


def test_digits_of_texts_stay() -> None:
    mark = {"type": "text", "text": "v0.98765"}
    svg = drawn({"data": {"values": [{}]}, "mark": mark, "encoding": {}}, "about", 99, 50)
    assert ">v0.98765<" in svg


# --- the page


def test_the_page_has_every_figure_with_its_command() -> None:
    page = (ROOT / "docs" / "findings.md").read_text()
    for figure in FIGURES.values():
        alone = f"![{figure.about}](pictures/{place(figure).name})\n\n<!-- tables: {figure.name} -->\n\n"
        assert f"{alone}    {command(figure)}\n" in page
        assert place(figure).exists()
    assert page.count("<!-- tables:") == page.count("](pictures/findings-") == len(FIGURES)
    said = re.findall(r"^    python bench/findings\.py run (.*)$", page, re.MULTILINE)
    assert len(said) == len(FIGURES) and {name for names in said for name in names.split()} <= {
        *EXPERIMENTS
    }


def test_pictures_are_of_the_numbers_that_are_stored() -> None:
    for figure in FIGURES.values():
        found = found_of(figure, ROOT / "bench" / "findings")
        shown = texts(place(figure))
        column = figure.x if figure.kind == "scatter" else "accuracy"
        if not any(each.has(column) for each in found):
            assert shown == [NOT_YET] or NOT_YET in shown
            continue
        schemes = {name for each in found for name in each.schemes}
        assert schemes <= {*shown}, f"python bench/findings.py draw {figure.name}"


def test_half_widths_of_one_seed_are_left_out(tmp_path: Path) -> None:
    found = stored(tmp_path, {("pps", 0): [0.25, 0.5, 0.75]})
    assert math.isnan(at_end(found, "pps", None, "accuracy")[1])
    assert "| pps | – | .750 | 200 |" in markdown(CURVES, tmp_path)
    assert {"pps", "accuracy"} <= {*texts(draw(CURVES, tmp_path, tmp_path))}
