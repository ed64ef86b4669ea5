"""The loop: K iterations, and a run that is killed anywhere ends where one does that was not."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from femtune._util.safetensors_header import stored_dtype
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import WORLDS, make_splits, sums
from femtune.engines.fake import FakeEngine
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.weight_check import ROUNDING, read_check
from femtune.errors import EngineError, ModelError, NothingKept, RunError
from femtune.estep.scoring import read_logprobs
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.mstep_schedule import MStepSchedule
from femtune.reporting.terminal import Quiet
from femtune.runs import manifest
from femtune.runs.checkpoints import best_model, describe_best
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.schemes.named import star
from femtune.types import Sampling

from .models import byte_tokenizer, tiny_model
from .oracle import sampler

# 10 problems in chunks of 4: three chunks, the last one short
TRAIN, TEST = make_splits(WORLDS["sums"], 10, 5, seed=0, difficulty=(1, 1))
_, OTHERS = make_splits(WORLDS["sums"], 1, 4, seed=1, difficulty=(1, 1))
DEV = [replace(problem, id=f"dev-{n}") for n, problem in enumerate(OTHERS)]
BY_PROMPT = {problem.prompt: problem for problem in (*TRAIN, *TEST, *DEV)}
TOKENIZER = ChatTokenizer(byte_tokenizer())
TRAINING = Training(num_train_epochs=1, learning_rate=1e-3, use_cpu=True)


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@dataclass
class Fuse(Quiet):
    """Ends the run at event number `left` from now: whatever progress is told, and loading."""

    left: float = float("inf")
    phases: list[tuple[str, int]] = field(default_factory=list)

    def burn(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def phase(self, name: str, iteration: int, total: int) -> None:
        self.phases.append((name, iteration))
        self.burn()

    def draws(self, draws: Any) -> None:
        self.burn()

    def measured(self, iteration: int, metrics: dict[str, Any]) -> None:
        self.burn()


class Adder(FakeEngine):
    """Adds right or wrong, as seed and weights decide: other weights, other draws."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__(self.add, room=3)
        self.fuse = fuse

    def load(self, weights: Path) -> None:
        self.fuse.burn()
        super().load(weights)
        self.weights = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """The loaded model's own, as the loop asks for after a load."""
        return TransformersEngine(self.loaded[-1]).logprob(pairs)

    def add(self, prompt: str, seed: int) -> str:
        rng = random.Random(f"{self.weights} {seed}")
        slips = {0: rng.choice([0, 0, 1, 2])}
        return sums.write_completion(BY_PROMPT[prompt.split("\n")[0]], slips)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base", "llama", tokenizer=byte_tokenizer())


FROM_BASE = replace(star(), m_steps=MStepSchedule(start="base"))


def steps(root: Path, base: Path, fuse: Fuse, **changes: Any) -> Steps:
    """A run of two iterations, as a new process would begin or go on with it."""
    engine = Adder(fuse)
    made = replace(sampler(engine, seed=7, chunk_size=4), sampling=Sampling(64))
    plan = replace(
        LoopConfig(scheme=star(), training=TRAINING, evaluation=Evaluation(), iterations=2), **changes
    )
    return Steps(
        run=Run(root),
        base=base,
        problems=TRAIN,
        eval_problems=TEST,
        dev_problems=DEV,
        config=plan,
        sampler=made,
        tokenizer=TOKENIZER,
        progress=fuse,
    )


def state(root: Path) -> dict[str, Any]:
    """All that a run has made, seconds left out."""
    made: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and path.name in ("draws", "dev", "eval", "memory"):
            made[name] = [chunk for chunk, _ in read_draws(path)]
        elif path.parent.name in ("recalled", "scored") and path.suffix == ".parquet":
            made[name] = read_logprobs(path)
        elif path.name == "examples.parquet":
            made[name] = pq.read_table(path).to_pylist()
        elif path.name == "model.safetensors":
            made[name] = path.read_bytes()
    return made


def timeless(metrics: Any) -> Any:
    """Metrics without seconds."""
    if not isinstance(metrics, dict):
        return metrics
    return {
        name: timeless(value)
        for name, value in metrics.items()
        if name != "seconds" and not name.endswith("_s")
    }


@dataclass(frozen=True)
class Whole:
    """A run that nobody interrupted."""

    root: Path
    history: list[dict[str, Any]]
    engine: Any
    phases: list[tuple[str, int]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    made = steps(root, base, fuse := Fuse())
    return Whole(root, made.iterate(), made.sampler.engine, fuse.phases)


def test_a_run_is_evaluation_then_e_m_development_and_evaluation(whole: Whole, base: Path) -> None:
    each = ["E-step", "M-step", "development", "evaluation"]
    expected = [("evaluation", 0), *((name, i) for i in (1, 2) for name in each)]
    assert whole.phases == expected
    assert [metrics["iteration"] for metrics in whole.history] == [0, 1, 2]
    assert "e_step" not in whole.history[0]


def test_draws_come_from_the_weights_before_and_evaluations_from_those_after(
    whole: Whole, base: Path
) -> None:
    models = [base, *(whole.root / f"iteration-00{i}" / "model" for i in (1, 2))]
    assert whole.engine.loaded == models  # each once: what evaluated k draws for k + 1
    assert len({(model / "model.safetensors").read_bytes() for model in models}) == 3


def test_what_is_trained_on_is_what_was_accepted(whole: Whole) -> None:
    for iteration in (1, 2):
        folder = whole.root / f"iteration-00{iteration}"
        draws = [draw for chunk, _ in read_draws(folder / "draws") for draw in chunk]
        rows = pq.read_table(folder / "examples.parquet").to_pylist()
        assert [(row["problem_id"], tuple(row["completion_tokens"])) for row in rows] == [
            (draw.key.problem_id, draw.completion.tokens) for draw in draws if draw.accepted
        ]
        metrics = whole.history[iteration]
        assert metrics["e_step"]["num_problems"] == len(TRAIN)
        assert metrics["e_step"]["num_kept"] == metrics["m_step"]["num_examples"] == len(rows) > 0


def test_a_run_that_is_killed_at_every_event_ends_like_one_that_is_not(
    whole: Whole, base: Path, tmp_path: Path
) -> None:
    """Killed at its first event, begun again, killed at its second, and so on: every step is cut."""
    kills = 0
    while True:
        try:
            history = steps(tmp_path, base, Fuse(kills)).iterate()
            break
        except Killed:
            kills += 1
    assert kills > 10  # draws are redone only from the last stored chunk on
    assert [timeless(metrics) for metrics in history] == [timeless(m) for m in whole.history]
    assert state(tmp_path) == state(whole.root)


LOSABLE = ["draws/00001.parquet", "examples.parquet", "model", "metrics.json"]
LOSABLE += ["eval/00000.parquet", "dev/00000.parquet"]


@pytest.mark.parametrize("lost", LOSABLE)
def test_what_is_missing_is_made_again_and_the_same(
    whole: Whole, base: Path, tmp_path: Path, lost: str
) -> None:
    """metrics.json, which is written last, is missing with each."""
    root = shutil.copytree(whole.root, tmp_path / "run", symlinks=True)
    path = root / "iteration-002" / lost
    (root / "iteration-002" / "metrics.json").unlink()
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    again = steps(root, base, Fuse())
    history = again.iterate()
    assert [timeless(metrics) for metrics in history] == [timeless(m) for m in whole.history]
    assert state(root) == state(whole.root)
    weights = {"draws/00001.parquet": "iteration-001"}
    weights |= dict.fromkeys(("eval/00000.parquet", "dev/00000.parquet"), "iteration-002")
    loaded = [root / weights[lost] / "model"] if lost in weights else []
    assert again.sampler.engine.loaded == loaded  # and nothing is loaded for what is there


def test_a_finished_run_does_nothing_again(
    whole: Whole, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "femtune")
    again = steps(whole.root, base, fuse := Fuse())
    assert again.iterate() == whole.history
    assert f"{whole.root} was done before" in caplog.text
    assert (again.sampler.engine.loaded, again.sampler.engine.asked, fuse.phases) == ([], [], [])


@pytest.mark.parametrize("link", ["best", "last"])
def test_a_finished_run_with_a_changed_model_is_refused(
    whole: Whole, base: Path, tmp_path: Path, link: str
) -> None:
    root = shutil.copytree(whole.root, tmp_path / "run", symlinks=True)
    with (root / link / "model.safetensors").open("r+b") as weights:
        weights.seek(-8, 2)
        end = weights.read(8)
        weights.seek(-8, 2)
        weights.write(bytes(255 - byte for byte in end))  # the size stays
    with pytest.raises(RunError, match=r"model\.safetensors \(other bytes than were stored\)"):
        steps(root, base, Fuse()).iterate()


def test_a_finished_run_without_its_last_model_is_refused(
    whole: Whole, base: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(whole.root, tmp_path / "run", symlinks=True)
    shutil.rmtree((root / "last").resolve())
    with pytest.raises(RunError, match=r"last model, is missing"):
        steps(root, base, Fuse()).iterate()


def test_more_iterations_may_be_asked_for_later(whole: Whole, base: Path, tmp_path: Path) -> None:
    steps(tmp_path, base, Fuse(), iterations=1).iterate()
    steps(tmp_path, base, Fuse()).iterate()
    assert state(tmp_path) == state(whole.root)


class Peaking(Adder):
    """Adds training problems right; held-out ones by the base and the first iteration alone."""

    def add(self, prompt: str, seed: int) -> str:
        asked = prompt.split("\n")[0]
        is_late = self.loaded[-1].parent.name in ("iteration-002", "iteration-003")
        is_trained = asked in {problem.prompt for problem in TRAIN[:4]}
        return sums.write_completion(BY_PROMPT[asked], {0: int(is_late and not is_trained)})


def peaking(root: Path, base: Path, **changes: Any) -> Steps:
    made = steps(root, base, fuse := Fuse(), **changes)
    made.sampler = replace(made.sampler, engine=Peaking(fuse))
    made.problems = TRAIN[:4]
    return made


def test_the_best_model_is_that_of_the_development_part_and_both_are_measured_on_held_out_problems(
    base: Path, tmp_path: Path
) -> None:
    """By hand: iteration 1 answers all development problems, iteration 2 none; no E-step asks it."""
    made = peaking(tmp_path, base, scheme=star())
    history = made.iterate()
    assert [each.get("development", {}).get("accuracy") for each in history] == [None, 1.0, 0.0]
    assert [each["evaluation"]["accuracy"] for each in history[1:]] == [1.0, 0.0]
    assert [each["development"]["num_problems"] for each in history[1:]] == [len(DEV)] * 2
    links = {name: (tmp_path / name).readlink().parts[0] for name in ("best", "last")}
    assert links == {"best": "iteration-001", "last": "iteration-002"}
    assert describe_best(history) == "iteration 1, accuracy 1.000 on 4 development problems"
    assert best_model(tmp_path) is None  # without config.yaml it is no run


def test_patience_ends_a_run_and_more_of_it_goes_on(base: Path, tmp_path: Path) -> None:
    for _ in range(2):  # again, it ends at the same place, and nothing is done
        history = peaking(tmp_path, base, scheme=star(), iterations=4, patience=1).iterate()
        assert [each["iteration"] for each in history] == [0, 1, 2]
    for patience in (2, 1):  # less of it takes back nothing that is done
        history = peaking(tmp_path, base, scheme=star(), iterations=4, patience=patience).iterate()
        assert [each["iteration"] for each in history] == [0, 1, 2, 3]
        assert (tmp_path / "last").readlink().parts[0] == "iteration-003"


def test_an_m_step_starts_from_the_previous_weights_or_from_the_base(
    whole: Whole, base: Path, tmp_path: Path
) -> None:
    folder = Run(tmp_path).iteration(2)
    folder.mkdir()
    shutil.copy(whole.root / "iteration-002" / "examples.parquet", folder)
    with pytest.raises(ModelError):  # those of iteration 1 are not there
        steps(tmp_path, base, Fuse()).m_step(2)
    steps(tmp_path, base, Fuse(), scheme=FROM_BASE).m_step(2)
    assert (folder / "model" / "model.safetensors").exists()


def test_an_e_step_that_keeps_nothing_says_why_and_asks_no_second_time(
    base: Path, tmp_path: Path
) -> None:
    for asked in (20, 0):  # 10 problems, plain and hinted; then they are stored
        made = steps(tmp_path, base, Fuse())
        made.sampler.engine.write = lambda prompt, seed: "Hm.\nAnswer: none"
        with pytest.raises(NothingKept) as error:
            made.e_step(1)
        assert len(made.sampler.engine.asked) == asked
        assert "iteration 1 kept no draw of 10 problems" in str(error.value)
        assert "(10 plain draws: wrong; 10 hinted draws: wrong)" in str(error.value)
        assert not (tmp_path / "iteration-001" / "examples.parquet").exists()


@pytest.mark.parametrize(
    ("every", "measured"),
    [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5]), (0, [])],
)
def test_the_base_and_the_last_are_measured_and_every_nth_between(
    base: Path, tmp_path: Path, every: int, measured: list[int]
) -> None:
    made = steps(tmp_path, base, Fuse(), iterations=5, evaluation=Evaluation(every=every))
    assert [i for i in range(6) if made.is_measured(i)] == measured
    assert not any(replace(made, eval_problems=[]).is_measured(i) for i in range(6))


def test_held_out_problems_are_asked_as_the_evaluation_says(base: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(draws=3, temperature=0.5)
    made = steps(tmp_path, base, Fuse(), evaluation=evaluation)
    samplings: list[Sampling] = []
    generate = made.sampler.engine.generate
    made.sampler.engine.generate = lambda pull, sampling: (
        samplings.append(sampling) or generate(pull, sampling)
    )
    metrics = made.evaluate(0)
    assert set(samplings) == {Sampling(64, temperature=0.5)}
    assert metrics["num_draws"] == 3 * len(TEST)
    draws = [draw for chunk, _ in read_draws(tmp_path / "iteration-000" / "eval") for draw in chunk]
    assert {draw.prompt_kind for draw in draws} == {"plain"}


class Stale(Adder):
    """Says that it has loaded new weights, and serves the old."""

    def load(self, weights: Path) -> None:
        if not self.loaded:
            super().load(weights)


def test_an_engine_that_serves_old_weights_stops_the_run_before_it_draws(
    tmp_path: Path, base: Path
) -> None:
    made = steps(tmp_path, base, fuse := Fuse())
    made.sampler = replace(made.sampler, engine=Stale(fuse))
    with pytest.raises(EngineError, match="still serves the weights from before"):
        made.iterate()
    assert (tmp_path / "iteration-001/model").exists()
    assert not list((tmp_path / "iteration-001").glob("eval/*"))


def test_the_engine_gives_its_memory_back_for_the_m_step(tmp_path: Path, base: Path) -> None:
    made = steps(tmp_path, base, Fuse(), iterations=1)
    released: list[bool] = []
    made.sampler.engine.release = lambda: released.append((tmp_path / "iteration-001/model").exists())
    made.iterate()
    assert released == [False]


def test_a_bfloat16_base_keeps_its_dtype_and_the_newest_float32_weights(tmp_path: Path) -> None:
    """Also where the newest model is lost: it is rounded again from them, to the same bytes."""
    base = tiny_model(tmp_path / "base", "llama", tokenizer=byte_tokenizer(), dtype=torch.bfloat16)
    root = tmp_path / "run"

    def made() -> Steps:
        one = steps(root, base, Fuse(), evaluation=Evaluation(every=0))
        one.sampler = replace(one.sampler, rounding=ROUNDING["bfloat16"])
        return one

    history = made().iterate()
    models = [root / f"iteration-00{k}/model" for k in (1, 2)]
    assert [stored_dtype(model) for model in models] == ["bfloat16"] * 2
    masters = [path.parent.name for path in root.glob("iteration-*/master")]
    assert masters == ["iteration-002"] and stored_dtype(root / "iteration-002/master") == "float32"
    assert all(entry["m_step"]["exported_gain_share"] is not None for entry in history[1:])
    assert check_manifest(root) == []
    wanted = (models[1] / "model.safetensors").read_bytes()
    manifest.record_removed(root, models[1])
    shutil.rmtree(models[1])
    (root / "iteration-002/metrics.json").unlink()
    manifest.record_removed(root, root / "iteration-002/metrics.json")
    assert made().iterate()[2]["m_step"] == history[2]["m_step"]
    assert (models[1] / "model.safetensors").read_bytes() == wanted


def test_averaged_weights_are_drawn_from_and_kept_beside_those_that_go_on(tmp_path: Path) -> None:
    """A model that is lost is made again of both; with float32 weights alone, too."""
    base = tiny_model(tmp_path / "base", "llama", tokenizer=byte_tokenizer())
    root = tmp_path / "run"

    def made() -> Steps:
        return steps(root, base, Fuse(), evaluation=Evaluation(every=0), average_weights=True)

    history = made().iterate()
    assert [entry["m_step"]["averaged_share"] for entry in history[1:]] == [None, 0.666667]
    assert [path.parent.name for path in root.glob("iteration-*/master")] == ["iteration-002"]
    assert check_manifest(root) == []
    first, model, master = (
        root / each for each in ("iteration-001/model", "iteration-002/model", "iteration-002/master")
    )
    one, mean, two = (load_file(each / "model.safetensors") for each in (first, model, master))
    assert all(torch.allclose(mean[name], (one[name] + 2 * two[name]) / 3, atol=1e-6) for name in one)
    wanted = (model / "model.safetensors").read_bytes()
    for lost in (model, root / "iteration-002/metrics.json"):
        manifest.record_removed(root, lost)
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert made().iterate()[2]["m_step"] == history[2]["m_step"]
    assert (model / "model.safetensors").read_bytes() == wanted


def check_manifest(root: Path) -> list[str]:
    """What is damaged of a run's files, or in no manifest."""
    found = [manifest.damage(root, entry) for entry in manifest.recorded(root).values()]
    return [*filter(None, found), *map(str, manifest.unrecorded(root))]


def test_no_float32_weights_are_kept_where_m_steps_start_from_the_base(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "llama", tokenizer=byte_tokenizer(), dtype=torch.bfloat16)
    plan = {"iterations": 1, "scheme": FROM_BASE, "evaluation": Evaluation(every=0)}
    one = steps(tmp_path / "run", base, Fuse(), **plan)
    one.iterate()
    assert stored_dtype(tmp_path / "run/iteration-001/model") == "bfloat16"
    assert not (tmp_path / "run/iteration-001/master").exists()


@pytest.mark.slow
def test_m_steps_in_processes_of_their_own_go_back_to_the_engine(
    tmp_path: Path, base: Path, whole: Whole
) -> None:
    """Two processes with half the batch take the optimizer steps of one."""
    half = replace(TRAINING, per_device_train_batch_size=16)
    launch = "torchrun --standalone --nproc-per-node 2"
    history = steps(tmp_path, base, Fuse(), iterations=1, launch=launch, training=half).iterate()
    assert history[1]["m_step"]["num_examples"] == whole.history[1]["m_step"]["num_examples"]
    assert read_check(tmp_path / "iteration-001/model") is not None
    assert (tmp_path / "iteration-001/eval/00000.parquet").exists()
