"""Filtering again what a run has stored: as the run itself would have, with those settings."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from femtune.cli.main import main
from femtune.config import Train
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.demos import save_demos
from femtune.data.problems import save_problems
from femtune.data.tasks.load import Options, problems_of
from femtune.engines.fake import FakeEngine
from femtune.errors import ConfigError, DataError, ModelError, NothingKept, RunError
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import write_logprobs
from femtune.loop import Steps
from femtune.mstep.config import Training
from femtune.mstep_schedule import MStepSchedule
from femtune.reporting.terminal import Quiet
from femtune.resolve import make_loop_config, named_scheme, read_inputs
from femtune.rewards.builtin import score
from femtune.run_folder import resolved
from femtune.runs.draws import read_draws, read_shard
from femtune.runs.run import FORMAT, Run
from femtune.schemes.named import reasons, settle, star
from femtune.schemes.serialization import scheme_to_data
from femtune.tools.refilter import Change, open_stored, refilter, replayed
from femtune.tools.refilter_report import notes
from femtune.types import Balance, Completion, Demo, Draw, DrawKey, Reason, Sampling, Score

from ..models import byte_tokenizer, tiny_model

ROWS = [
    {"id": f"r{i}", "prompt": f"Why {i}?", "response": "So. " * (1 + i % 7), "score": 1 + i * i % 5}
    for i in range(40)
]
DATA = problems_of(ROWS, "judge", Options(scale="1,5"), "rows")
TOKENIZER = ChatTokenizer(byte_tokenizer())
TRAINING = Training(num_train_epochs=1, learning_rate=1e-3, use_cpu=True)
SETTINGS = Train(task="judge", scheme="star", max_new_tokens=64, chunk_size=16, training=TRAINING)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tokenizer = byte_tokenizer()
    return tiny_model(folder, "llama", tokenizer=tokenizer, max_position_embeddings=1024)


def rate(prompt: str, seed: int) -> str:
    """Mostly 2 to 4; where it was told, sometimes that, and sometimes it says so."""
    rng = random.Random(seed)
    told = prompt.partition("The correct answer is ")[2][:1]
    answer = rng.choice([2, 3, 3, 4, told or 3])
    thought = "the rating was given" if told and rng.random() < 0.1 else rng.choice(["Clear", "Dull"])
    return f"{thought}.\nAnswer: {answer}" if rng.random() < 0.95 else "Hm."


def made(root: Path, base: Path, iterations: int = 1, **changes: Any) -> Steps:
    """A run's E-steps over `rate`, stored as `train` would store it."""
    asked = read_inputs(DATA, replace(SETTINGS, **changes))
    settings, what = asked.settings, make_loop_config(asked.settings)
    engine = FakeEngine(rate)
    grade = partial(score, prompts=asked.prompts, reward=asked.reward)
    sampling = Sampling(settings.max_new_tokens)
    sampler = Sampler(
        engine,
        engine.tokenizer,
        asked.prompts,
        grade,
        sampling,
        seed=settings.seed,
        chunk_size=settings.chunk_size,
    )
    root.mkdir()
    config = resolved(settings, data="rows", model=str(base), problems="")
    config |= {"format": FORMAT, "scheme_data": scheme_to_data(named_scheme(settings))}
    (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    save_problems(asked.problems, root / "problems.parquet")
    steps = Steps(
        run=Run(root),
        base=base,
        problems=asked.problems,
        eval_problems=[],
        config=what,
        sampler=sampler,
        tokenizer=TOKENIZER,
        progress=Quiet(),
    )
    for iteration in range(1, iterations + 1):
        steps.e_step(iteration)
    return steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Two E-steps of STaR at full reward."""
    root = tmp_path_factory.mktemp("run") / "run"
    made(root, base, iterations=2)
    return root


def examples(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what a run with those settings would have made


def test_without_changes_it_gives_what_was_kept(run: Path, tmp_path: Path) -> None:
    before = listing(run)
    for iteration in (1, 2):
        out = tmp_path / str(iteration)
        report = refilter(run, Change(), iteration=iteration, output_dir=out)
        stored = run / f"iteration-00{iteration}" / "examples.parquet"
        assert examples(out / "examples.parquet") == examples(stored)
        assert report["stored"] == report["refiltered"]
        assert (report["asked_again"], report["left_out"], report["not_asked"]) == (0, 0, 0)
    assert listing(run) == before


LAXER = [
    {"accept_at": 0.75},
    {"accept_at": 0.5},
    {"reward": "number(tol=1)"},
    {"accept_at": 0.75, "balance": "data"},
    {"balance": "uniform"},
]


@pytest.mark.parametrize("changes", LAXER, ids=str)
def test_a_laxer_filter_keeps_what_a_run_with_it_keeps(
    run: Path, base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Draws hang on their keys alone: the run with it would have drawn the same, and stopped sooner."""
    fresh = made(tmp_path / "fresh", base, **changes)
    expected = fresh.e_step(1)
    report = refilter(run, Change(**changes), iteration=1, output_dir=tmp_path / "out")
    stored = tmp_path / "fresh" / "iteration-001" / "examples.parquet"
    assert examples(tmp_path / "out" / "examples.parquet") == examples(stored)
    assert report["asked_again"] == 0
    counted = {name: value for name, value in expected.items() if not name.endswith("_s")}
    assert report["refiltered"].items() >= counted.items()


STRICTER = [{"accept_at": 1.0}, {"reward": "exact"}, {"soft_accept": 0.3}]


@pytest.mark.parametrize("changes", STRICTER, ids=str)
def test_a_stricter_filter_says_whom_it_would_have_asked_again(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made(tmp_path / "lax", base, accept_at=0.5)
    change = Change(**changes)
    report = refilter(tmp_path / "lax", change, output_dir=tmp_path / "out")
    settings = {"accept_at": 0.5, **changes}
    if "soft_accept" in changes:
        settings["accept_at"] = 1.0
    made(tmp_path / "fresh", base, **settings)
    [fresh, kept] = [
        {(row["problem_id"], row["stage"], row["index"]): row for row in examples(path)}
        for path in (
            tmp_path / "fresh" / "iteration-001" / "examples.parquet",
            tmp_path / "out" / "examples.parquet",
        )
    ]
    assert kept.items() <= fresh.items()  # what it can't have, it does not have
    assert len(fresh) - len(kept) <= report["asked_again"]
    draws = [d for chunk, _ in read_draws(tmp_path / "fresh/iteration-001/draws") for d in chunk]
    stored = report["refiltered"]["num_draws"]
    assert report["asked_again"] == len(draws) - stored > 0  # STaR asks once more


def test_the_same_soft_acceptance_keeps_the_same(base: Path, tmp_path: Path) -> None:
    made(tmp_path / "soft", base, soft_accept=1.0)
    refilter(tmp_path / "soft", Change(), output_dir=tmp_path / "out")
    stored = tmp_path / "soft" / "iteration-001" / "examples.parquet"
    assert examples(tmp_path / "out" / "examples.parquet") == examples(stored)


def test_balanced_weights_follow_the_data(run: Path, tmp_path: Path) -> None:
    report = refilter(run, Change(accept_at=0.5, balance="data"), output_dir=tmp_path / "out")
    side = report["refiltered"]
    assert "balance_clipped" not in side
    assert side["weight_by_answer"] == pytest.approx(report["problems_by_answer"])
    rows = examples(tmp_path / "out" / "examples.parquet")
    answers = {problem.id: problem.answer for problem in DATA.problems}
    assert {row["weight"] for row in rows} == {side["balance"][answers[r["problem_id"]]] for r in rows}
    assert sum(row["weight"] for row in rows) == pytest.approx(len(rows))
    assert report["stored"]["num_kept"] < len(rows) == side["num_kept"]


# --- replaying


def draw(stage: int, index: int, reason: Reason) -> Draw:
    completion = Completion((1,), "", "stop", 0.0)
    return Draw(DrawKey(1, "p", stage, index), "plain", 0, completion, Score(1.0, "", reason))


@pytest.mark.parametrize(
    ("reasons", "num_asked", "more"),
    [
        (["", "wrong"], 1, False),
        (["wrong", ""], 2, False),
        (["wrong", "wrong"], 2, False),
        (["wrong"], 1, True),  # the hinted draw was never asked for
    ],
)
def test_a_problem_is_asked_until_it_is_solved(
    reasons: Sequence[Reason], num_asked: int, more: bool
) -> None:
    scoring = [draw(stage, 0, reason) for stage, reason in enumerate(reasons)]
    assert replayed(star(), scoring) == (scoring[:num_asked], more)


def test_weights_that_can_not_be_known_are_alike_on_both_sides(run: Path, tmp_path: Path) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((root / "config.yaml").read_text())
    own = config | {"scheme_data": scheme_to_data(reasons(star()))}
    (root / "config.yaml").write_text(yaml.safe_dump(own))
    plain, alike = refilter(run, Change(accept_at=0.75)), refilter(root, Change(accept_at=0.75))
    assert (plain["alike"], alike["alike"]) == (False, True)
    assert alike["refiltered"]["kept_share"] == plain["refiltered"]["kept_share"]
    # star draws no more once one is right: a problem's one right draw has weight 1 either way
    assert alike["refiltered"]["weight_by_answer"] == plain["refiltered"]["weight_by_answer"]
    assert any("remembered draws" in note for note in notes(alike))
    assert not any("remembered draws" in note for note in notes(plain))


def test_what_kept_rationales_add_is_told_of_those_that_were_scored(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    folder, gains = root / "iteration-001", []
    (folder / "scored").mkdir()
    for place in sorted((folder / "draws").glob("*.parquet")):
        kept = [draw for draw in read_shard(place)[0] if draw.accepted]
        gains += [0.25 * (number % 4) - 0.25 for number, _ in enumerate(kept)]
        own = zip(kept, gains[-len(kept) :], strict=True)
        scored = [replace(draw, log_answer=each - 1, log_direct=-1.0) for draw, each in own]
        write_logprobs(folder / "scored" / place.name, scored, {})
    same = refilter(root, Change(), iteration=1)
    for side in (same["stored"], same["refiltered"]):
        assert side["num_rationales"] == len(gains) == side["num_kept"]
        assert side["rationale_gain"] == pytest.approx(sum(gains) / len(gains))
        assert side["helpful_share"] == pytest.approx(sum(each > 0 for each in gains) / len(gains))
    laxer = refilter(root, Change(accept_at=0.75), iteration=1)
    assert laxer["stored"] == same["stored"]
    assert 0 < laxer["refiltered"]["num_rationales"] < laxer["refiltered"]["num_kept"]
    assert main(["refilter", str(root), "--iteration", "1", "--accept-at", "0.75"]) == 0
    shown = capsys.readouterr().out
    assert "kept rationales that were scored" in shown
    assert f"{same['stored']['rationale_gain']:.3f}" in shown
    assert "num_rationales" not in refilter(run, Change(), iteration=1)["stored"]


# --- the M-step


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_trains_as_the_run_would_have(run: Path, base: Path, tmp_path: Path) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    steps = made(tmp_path / "again", base)  # the same, with its steps at hand
    steps = replace(steps, run=Run(root))
    steps.m_step(1)
    steps.m_step(2)
    before = listing(root)
    for iteration in (1, 2):  # the second from the model of the first
        report = refilter(
            root, Change(), iteration=iteration, output_dir=tmp_path / f"m{iteration}", train=True
        )
        model = root / f"iteration-00{iteration}" / "model"
        assert weights(tmp_path / f"m{iteration}" / "model") == weights(model)
        assert report["m_step"]["num_examples"] == report["stored"]["num_examples"]
    balanced = tmp_path / "balanced"
    refilter(root, Change(balance="uniform"), iteration=1, output_dir=balanced, train=True)
    assert weights(balanced / "model") != weights(tmp_path / "m1" / "model")
    assert listing(root) == before


def test_an_m_step_starts_where_the_iterations_did(run: Path, base: Path) -> None:
    one, two = open_stored(run, 1), open_stored(run)
    assert two.iteration == 2
    assert (one.start(), two.start()) == (base, run / "iteration-001" / "model")
    from_base = replace(two, config={**two.config, "start_from": "base"})
    assert from_base.start() == base
    anew = replace(star(), m_steps=MStepSchedule(restart_every=1))  # whatever it is called
    restarts = replace(two, config={**two.config, "scheme_data": scheme_to_data(anew)})
    assert restarts.start() == base
    own = {**two.config, "scheme_data": scheme_to_data(settle(anew, 1))}
    assert replace(two, config=own).start() == two.start()
    assert two.settings.training == TRAINING


# --- the command


def test_it_shows_both_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refilter", str(run), "--accept-at", "0.75", "--balance", "data"]) == 0
    shown = capsys.readouterr().out
    for part in ("stored", "refiltered", "kept, by answer", "share of the weight", "human score, mean"):
        assert part in shown
    assert "stored draws would not have been asked for" in shown


def test_a_filter_that_keeps_nothing_has_a_table_and_no_examples(run: Path, tmp_path: Path) -> None:
    reward = tmp_path / "never.py"
    reward.write_text("def never(completion, answer):\n    return float('must be' in completion)\n")
    report = refilter(run, Change(reward=f"{reward}:never"))  # the gold answer's own words
    assert report["refiltered"]["num_kept"] == 0
    with pytest.raises(NothingKept, match="kept no draw of 40 problems"):
        refilter(run, Change(reward=f"{reward}:never"), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def no_draws(root: Path) -> None:
    shutil.rmtree(root / "iteration-001")
    shutil.rmtree(root / "iteration-002")


def changed_config(**changes: Any) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        config = yaml.safe_load((root / "config.yaml").read_text())
        (root / "config.yaml").write_text(yaml.safe_dump(config | changes))

    return change


LOST = scheme_to_data(star()) | {"weigh": [{"nowhere.rules:Rare": {"power": 2}}]}


BAD: dict[str, Any] = {
    "no run": (lambda root: (root / "config.yaml").unlink(), {}, RunError, "is no run"),
    "no draws": (no_draws, {}, RunError, "no draws of an E-step"),
    "no problems": (lambda r: (r / "problems.parquet").unlink(), {}, RunError, "no problems.parquet"),
    "no such iteration": (None, {"iteration": 7}, RunError, "iteration 7: choose one of 1, 2"),
    "a rule that is gone": (
        changed_config(scheme_data=LOST),
        {},
        RunError,
        r"run: Rule nowhere.rules:Rare can't be imported \(ModuleNotFoundError: No module named",
    ),
    "no scheme": (changed_config(scheme_data=None), {}, RunError, "has no scheme"),
    "a scheme that was tampered with": (
        changed_config(scheme_data={"name": "star"}),
        {},
        RunError,
        "is not as it was stored: KeyError",
    ),
    "another version": (
        changed_config(format=0),
        {},
        RunError,
        "another version of femtune: its format",
    ),
    "no place": (None, {"train": True}, ConfigError, "give --output-dir"),
    "a threshold of 2": (None, {"change": Change(accept_at=2)}, ConfigError, "at most 1, got 2"),
    "an unknown reward": (None, {"change": Change(reward="exat")}, ConfigError, "Did you mean exact"),
    "a reward that no answer earns": (
        None,
        {"change": Change(reward="ordinal(6,9)")},
        DataError,
        "are not accepted",
    ),
    "a model that is gone": (
        None,
        {"output_dir": Path("out"), "train": True},
        RunError,
        "which iteration 2 started from, does not exist: give --model",
    ),
    "chance and a reward": (
        None,
        {"change": Change(reward="exact", soft_accept=1.0)},
        ConfigError,
        "soft_accept stands in place",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    spoil, options, error, said = BAD[name]
    root = shutil.copytree(run, tmp_path / "run")
    if spoil:
        spoil(root)
    with pytest.raises(error, match=said):
        refilter(root, **{"change": Change(), **options})


def test_a_model_of_other_tokens_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads other tokens"):
        refilter(run, Change(), output_dir=tmp_path / "out", train=True, model="seedling")
    assert not (tmp_path / "out").exists()


def test_a_taken_place_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists already"):
        refilter(run, Change(), output_dir=tmp_path)


def test_balance_is_one_of_three(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: Balance | str = "equal"
    assert main(["refilter", str(run), "--balance", wrong]) == 2
    assert "uniform" in capsys.readouterr().err


# --- what fuzzing found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iterations": "two"}, "iterations is 'two', expected int"),
        ({"accept_at": True}, "accept_at is True, expected float"),
        ({"scale": [1, 5]}, r"scale is \(1, 5\), expected str"),
        ({"columns": [1]}, r"columns is \(1,\)"),
        ({"balance": "none of it"}, "balance is 'none of it'"),
        ({"learning_rate": {}}, "learning_rate is {}"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1"),
    ],
)
def test_a_configuration_that_was_tampered_with(
    run: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(stored | change))
    with pytest.raises(RunError, match=rf"config\.yaml was changed after it was stored: {said}"):
        open_stored(other)


def test_draws_of_problems_that_the_run_does_not_know(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    save_problems(DATA.problems[:20], other / "problems.parquet")
    with pytest.raises(RunError, match=r"has draws of r2\d.*, which are not in its problems\.parquet"):
        refilter(other, Change())


def test_folders_that_only_look_like_iterations(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "iteration-of-mine" / "draws").mkdir(parents=True)
    assert open_stored(other).iteration == 2


@pytest.mark.parametrize("in_prompt", [True, False])
def test_worked_examples_stand_in_the_prompts_where_they_are_part_of_x(
    base: Path, tmp_path: Path, in_prompt: bool
) -> None:
    steps = made(tmp_path / "run", base, demos_in_prompt=in_prompt)
    demos = (Demo("Is it clear?", "3", "It is clear enough.\nAnswer: 3"),)
    save_demos(tmp_path / "run" / "demos.jsonl", demos)
    [first, *_] = steps.problems
    shown = open_stored(tmp_path / "run").trained_prompts(TOKENIZER).plain(first)
    assert ("It is clear enough." in str(shown)) == in_prompt
