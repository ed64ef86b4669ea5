"""What rationales are worth to the base is what enumeration gives; runs store it once, for one load."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from femtune.cli.main import main
from femtune.data.answer_format import parse_format
from femtune.data.tasks.frames import Frame
from femtune.data.worlds import SEEDLING as SEEDLING_FOLDER
from femtune.evaluation.copying import copied
from femtune.evaluation.rationales import (
    FILE,
    KIND,
    asked_text,
    rationale_metrics,
    read_all,
    read_rationales,
)
from femtune.evaluation.readings import Reading, read_readings, write_readings
from femtune.loop import Evaluation, LoopConfig
from femtune.model_info import ModelInfo, write_info
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import read_draws, write_draws
from femtune.runs.run import Run
from femtune.schemes.named import rejection
from femtune.types import Capabilities, Completion, Draw, DrawKey, Problem, Score

from ..demo_runs import JUDGE, make_world, train_command
from ..oracle import PROMPTS, EndingsEngine, EndingsWorld, TableSteps
from ..schemes.test_answer_rules import Loose
from ..test_loop import timeless


def a_world(seed: int, ends: Sequence[float] = (0.2, 0.5, 0.3, 0.0)) -> EndingsWorld:
    """Make a law in which each rationale z0 or z1, or none, may be followed by the cue."""
    rng = torch.Generator().manual_seed(seed)
    shares = torch.tensor([ends, ends], dtype=torch.float64)
    parts = [replace(Loose.random(rng, 2), ends=shares) for _ in range(3)]
    return EndingsWorld(*parts, Problem("p", "x0", "y1"))


class Swapped(EndingsEngine):
    """Serves the law of the weights that are loaded, and counts loads."""

    def __init__(self, worlds: Sequence[EndingsWorld]) -> None:
        self.engines = [world.engine() for world in worlds]
        super().__init__({})
        self.prompts = self.engines[0].prompts
        self.thetas = [*worlds]

    def load(self, weights: Path) -> None:
        super().load(weights)
        new = self.engines[int(weights.name)]
        self.laws, self._next, self._known = new.laws, new._next, new._known


def steps(root: Path, worlds: Sequence[EndingsWorld], num: int = 40) -> TableSteps:
    """Evaluate the base and a model after it on problems that are alike, in chunks of 16."""
    problems = [replace(worlds[0].problem, id=f"{number:02}") for number in range(num)]
    made = replace(worlds[0].sampler(), engine=Swapped(worlds), chunk_size=16)
    plan = LoopConfig(
        scheme=rejection(1),
        training=Training(),
        evaluation=Evaluation(draws=2, temperature=1.0),
        force="never",
    )
    root.mkdir(exist_ok=True)
    tokenizer: Any = made.tokenizer
    return TableSteps(
        run=Run(root),
        base=Path("tables/0"),
        problems=[],
        eval_problems=problems,
        config=plan,
        sampler=made,
        tokenizer=tokenizer,
        progress=Quiet(),
    )


def exact_gain(draw: Draw, world: EndingsWorld) -> float:
    """Sum over the base's law: log pi(y1 | x, z) - log pi(y1 | x)."""
    law = world.plain
    assert isinstance(law, Loose)
    if draw.score.rationale == "":
        return 0.0
    after = law.after(int(draw.score.rationale[1]))
    return math.log(after[1]) - math.log(law.direct[1])


def test_the_gain_is_the_enumerated_one_of_the_base_not_of_the_model_that_wrote(tmp_path: Path) -> None:
    base, trained = a_world(1), a_world(2)
    made = steps(tmp_path, [base, trained])
    made.evaluate(0)
    made.evaluate(1)
    loads = len(made.sampler.engine.loaded)  # type: ignore[union-attr]  # an engine of the oracle
    found = read_all(made, 30)
    assert len(made.sampler.engine.loaded) == loads + 1  # type: ignore[union-attr]  # an engine of the oracle
    for iteration in (0, 1):
        folder = made.run.iteration(iteration)
        draws = {d.key: d for part, _ in read_draws(folder / "eval") for d in part}
        readings = {
            key: reading
            for place in sorted((folder / KIND).iterdir())
            for key, reading in read_readings(place)[0].items()
        }
        assert len(readings) == 30 and {key.index for key in readings} == {0}
        expected = [exact_gain(draws[key], base) for key in readings]
        assert [reading.gain for reading in readings.values()] == pytest.approx(expected, abs=1e-9)
        assert any(expected) and len({round(each, 9) for each in expected}) == 3
        got = found[iteration]
        assert got["rationale_gain"] == pytest.approx(math.fsum(expected) / 30)
        assert got["helpful_share"] == pytest.approx(sum(each > 1e-9 for each in expected) / 30)
        assert got["rationale_gain_ci"][0] < got["rationale_gain"] < got["rationale_gain_ci"][1]
        assert got["log_direct"] == pytest.approx(math.log(base.plain.direct[1]))  # type: ignore[attr-defined]  # a world of the oracle
        assert (got["num_problems"], got["num_rationales"]) == (30, 30)
        assert got == json.loads((folder / FILE).read_text())


def test_among_the_answers_of_a_closed_set_only_what_speaks_for_one_of_them_counts(
    tmp_path: Path,
) -> None:
    """The base answers at once in a fifth of all cases; among y0 and y1 that has no part."""
    base, trained = a_world(3), a_world(4)
    scale = {"frame": Frame(form="rating", scale=("y0", "y1")).column()}
    base = replace(base, problem=replace(base.problem, columns=scale))
    made = steps(tmp_path, [base, trained])
    made.evaluate(1)
    found = read_all(made, 40)[1]
    law = base.plain
    assert isinstance(law, Loose)
    draws = {d.key: d for part, _ in read_draws(made.run.iteration(1) / "eval") for d in part}
    expected, right = [], []
    for key in draws:
        if key.index == 0:
            said = draws[key].score.rationale
            y0, y1, _ = law.after(int(said[1])) if said else (*law.direct, 0)
            expected.append(math.log(y1 / (y0 + y1)) - math.log(law.direct[1] / sum(law.direct)))
            right.append(y1 >= y0)
    assert len(set(expected)) == 3 and len(expected) == found["num_rationales"] == 40
    assert found["choice_gain"] == pytest.approx(math.fsum(expected) / 40)
    assert found["helpful_share"] == pytest.approx(sum(each > 1e-9 for each in expected) / 40)
    assert found["read_accuracy"] == pytest.approx(sum(right) / 40)
    assert found["direct_accuracy"] == (law.direct[1] >= law.direct[0])
    assert found["rationale_gain"] != pytest.approx(found["choice_gain"], abs=1e-3)


def test_what_is_stored_is_not_scored_again_and_a_killed_run_scores_the_rest(tmp_path: Path) -> None:
    worlds = [a_world(1), a_world(2)]
    made = steps(tmp_path, worlds)
    made.evaluate(0)
    made.evaluate(1)
    found = read_all(made, 30)
    again = steps(tmp_path, worlds)
    assert read_all(again, 30) == found and not again.sampler.engine.loaded  # type: ignore[union-attr]  # an engine of the oracle
    folder = made.run.iteration(1)
    (folder / FILE).unlink()
    (folder / KIND / "00001.parquet").unlink()
    third = steps(tmp_path, worlds)
    assert timeless(read_all(third, 30)[1]) == timeless(found[1])
    assert len(third.sampler.engine.loaded) == 1 and not third.sampler.engine.asked  # type: ignore[union-attr]  # an engine of the oracle


def test_an_answer_of_probability_0_leaves_the_mean_undefined_and_says_so(tmp_path: Path) -> None:
    worlds = [a_world(1), a_world(2, (0.0, 0.2, 0.2, 0.6))]  # the base never goes on so long
    made = steps(tmp_path, worlds)
    made.evaluate(1)
    got = read_all(made, 40)[1]
    assert got["rationale_gain"] is None
    assert got["undefined"]["rationale_gain"] == "an answer has probability 0"
    assert 0 < got["helpful_share"] < 1 and json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("lacks", ["scores", "cue"])
def test_where_nothing_can_be_scored_it_is_said_and_the_run_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    made = steps(tmp_path, [a_world(1)])
    made.evaluate(0)
    if lacks == "scores":
        made.sampler.engine.capabilities = Capabilities(scores=False)  # type: ignore[misc]  # the protocol's is read-only
    else:
        form = parse_format("regex:(y\\d)")
        made.sampler = replace(made.sampler, prompts=replace(made.sampler.prompts, format=form))
    with caplog.at_level(logging.WARNING, "femtune"):
        assert read_all(made, 30) == {}
    [record] = caplog.records
    assert record.message.startswith("what the rationales are worth to the base is not measured: ")
    assert not (tmp_path / "iteration-000" / KIND).exists()


def test_copying_is_of_words_of_the_plain_prompt_over_rationales_that_have_any(tmp_path: Path) -> None:
    said = ["It skips the last part, so 2.", "", "Unlike anything."]
    problems = [Problem(f"{n}", "Rate it. It skips the last part.", "2") for n in range(3)]
    draws = [
        Draw(
            DrawKey(0, f"{n}", 0, 0),
            "plain",
            0,
            Completion((1,), text, "stop", -1.0),
            Score(1.0, "2", rationale=text),
        )
        for n, text in enumerate(said)
    ]
    folder, by_id = tmp_path / "iteration-000", {problem.id: problem for problem in problems}
    write_draws(folder / "eval" / "00000.parquet", draws, {})
    read = {draw.key: Reading(-1.0, -2.0) for draw in draws}
    (folder / KIND).mkdir()
    write_readings(folder / KIND / "00000.parquet", read, {"total_s": 1.5, "tokens": 3})
    prompts = replace(PROMPTS, instruction="End with an answer: say so.")
    text = asked_text(prompts, problems[0])
    assert "skips the last part" in text and "End with" in text and "correct" not in text
    parts = [copied(each, text) for each in (said[0], said[2])]
    assert parts == [((5 + 1) / 7, (5**2 + 1) / 7), (0, 0)]
    got = rationale_metrics(by_id, folder, prompts)
    assert got["copied_share"] == pytest.approx(6 / 7 / 2)
    assert got["copied_density"] == pytest.approx(26 / 7 / 2)
    assert (got["rationale_gain"], got["helpful_share"]) == (1, 1)
    assert (got["scored_tokens"], got["total_s"]) == (3, 1.5)


# --- by the command line


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_run_stores_it_and_evaluate_of_its_model_finds_the_same(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, most = tmp_path / "run", ("--reader-problems", "8")
    command = train_command(world, run, "--scheme", "rejection:1", "--show", "quiet", *most)
    assert main(command) == 0
    found = [read_rationales(run / f"iteration-00{number}") for number in range(3)]
    assert [each["num_rationales"] for each in found] == [8] * 3
    assert all(math.isfinite(each["rationale_gain"]) for each in found)
    capsys.readouterr()

    gains = [f"{each['rationale_gain']:.3f}" for each in found]
    text = (run / "report.html").read_text()
    section = text[text.index('id="worth"') :]
    assert all(gain in section for gain in gains)
    share = f"{100 * found[2]['helpful_share']:.1f}% of the rationales help it"
    assert share in " ".join(section.split())
    card = (run / "iteration-002/model/README.md").read_text()
    assert f"the correct answer, nats | {gains[0]} (" in card and f"| {gains[2]} (" in card
    assert "read 8 held-out rationales of each" in card

    model = str(run / "iteration-002" / "model")
    data = [str(world / "test.jsonl"), "--model", model, *JUDGE, *most, "--chunk-size", "10"]
    assert main(["evaluate", *data, "--output-dir", str(tmp_path / "e"), "--show", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rationales"]
    names = ("rationale_gain", "choice_gain", "read_accuracy", "log_direct", "copied_density")
    assert [shown[name] for name in names] == pytest.approx([found[2][name] for name in names], abs=1e-4)


def test_evaluate_refuses_a_base_that_is_another_by_now(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(SEEDLING_FOLDER, tmp_path / "model")
    write_info(model, ModelInfo(base="seedling", base_sha256="other"))
    data = [str(world / "test.jsonl"), "--model", str(model), *JUDGE, "--reader-problems", "4"]
    assert main(["evaluate", *data, "--output-dir", str(tmp_path / "e")]) == 1
    assert "the weights of seedling are not those that" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "e" / "iteration-000").exists()
