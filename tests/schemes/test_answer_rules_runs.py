"""Real runs of schemes that weigh by the probability of the answer: the rubric world, the seedling."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from femtune.cli.main import main
from femtune.engines.fake import FakeEngine
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.model_files import local_model
from femtune.estep.answer_scoring import prefix_of, sampled_prefix, written
from femtune.estep.scoring import read_logprobs
from femtune.runs.draws import read_draws
from femtune.tools.refilter import Change, refilter
from femtune.tools.replay import name_of, replay
from femtune.tools.stored_run import open_stored

from ..demo_runs import make_world, train_command
from ..oracle import LINE_CUT, sampler

SHORT = ("--eval-every", "0", "--show", "quiet")
SPECS = ["rejection:2+expected", "pps:2+importance+expected", "star+reasons"]


@pytest.fixture(scope="module", params=SPECS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("run")
    argv = train_command(
        make_world(folder, 12, 2), folder / "run", "--scheme", request.param, *SHORT, iterations=1
    )
    assert main(argv) == 0
    return folder / "run", argv


def test_a_killed_run_goes_on_with_the_same_examples(made: tuple[Path, list[str]]) -> None:
    run, argv = made
    examples = run / "iteration-001/examples.parquet"
    rows, metrics = pq.read_table(examples).to_pylist(), run / "iteration-001/metrics.json"
    before = json.loads(metrics.read_text())["e_step"]
    assert rows and all(row["reward"] == 1 for row in rows)
    for path in (examples, metrics, run / "iteration-001/scored/00000.parquet"):
        path.unlink()
    shutil.rmtree(run / "iteration-001/model")
    assert main(argv) == 0
    assert pq.read_table(examples).to_pylist() == rows
    after = json.loads(metrics.read_text())["e_step"]
    names = ("expected_right", "cued_share", "reasons_share", "reasons_logprob", "num_kept")
    assert {name: after.get(name) for name in names} == {name: before.get(name) for name in names}


def test_stored_scores_are_those_of_the_base(made: tuple[Path, list[str]]) -> None:
    run, _ = made
    stored = open_stored(run, 1)
    engine = TransformersEngine(local_model("seedling"))
    cut = replace(LINE_CUT, tokenizer=engine.tokenizer)
    made_for = replace(sampler(FakeEngine(lambda prompt, seed: "")), tokenizer=engine.tokenizer, cut=cut)
    assert stored.settings.answer_format == "line"
    draws = {draw.key: draw for chunk, _ in read_draws(stored.draws) for draw in chunk}
    found = {
        key: logprobs
        for path in sorted((run / "iteration-001/scored").iterdir())
        for key, logprobs in read_logprobs(path).items()
    }
    assert found
    for key, logprobs in list(found.items())[:6]:
        problem = stored.problems[key.problem_id]
        prompt = engine.tokenizer.encode_prompt(stored.prompts().render("plain", problem))
        made_of = draws[key].completion
        before = sampled_prefix(made_of, made_for) or prefix_of(made_of, made_for)[0]
        spaced = engine.tokenizer.decode(before).endswith(" ")
        [ways] = written([problem.answer], made_for, closed=True, spaced=spaced).ways
        after = engine.logprob([((*prompt, *before), way) for way in ways])
        assert logprobs[3] == pytest.approx(math.log(sum(map(math.exp, after))), abs=1e-3)
        if logprobs[4] is not None:
            cue = engine.tokenizer.encode_text("\nAnswer:")
            [ways] = written([problem.answer], made_for, closed=True).ways
            direct = engine.logprob([((*prompt, *cue), way) for way in ways])
            assert logprobs[4] == pytest.approx(math.log(sum(map(math.exp, direct))), abs=1e-3)


def test_draws_are_drawn_again_and_another_filter_weighs_alike(made: tuple[Path, list[str]]) -> None:
    run, _ = made
    draw = next(draw for chunk, _ in read_draws(run / "iteration-001/draws") for draw in chunk)
    [again] = replay(run, name_of(draw))
    assert again.same
    report = refilter(run, Change())
    assert report["alike"] and report["stored"]["num_kept"] == report["refiltered"]["num_kept"] > 0
