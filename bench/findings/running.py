"""An experiment's runs, by femtune.comparison.compare, and the rows of what they measured."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from femtune._util.atomic_files import replacing
from femtune.comparison.compare import Job, compare, jobs
from femtune.comparison.rl import RL_BASELINES
from femtune.config import RL, Train
from femtune.data.worlds import WORLDS, make_rows
from femtune.errors import ConfigError, NothingKept, RunError
from femtune.workflows.keywords import train_settings
from findings.experiments import BASELINES, COMMON, SEEDLINGS, WORLD_SETTINGS, Experiment

# Columns -> where their number is in an iteration's metrics.json; the first place that has one counts.
# A column without any stays empty.
PLACES: dict[str, tuple[str, ...]] = {
    "accuracy": ("evaluation/accuracy",),
    "spearman": ("evaluation/spearman",),
    "sound_steps": ("evaluation/sound_steps",),
    "sound_rationales": ("evaluation/sound_rationales",),
    "kept_share": ("e_step/kept_share",),
    "covered_share": ("e_step/covered_share",),
    "bound": ("posterior/bound",),
    "ess_share": ("posterior/ess_share",),
    "leak_share": ("posterior/leak_share",),
    "leak_logprob": ("posterior/leak_logprob",),
}
KEYS = ("world", "contender", "kind", "setting", "value", "seed", "iteration")
COLUMNS = (*KEYS, "generated_tokens", "seconds", *PLACES)

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Runs that one call of `compare` does: they share problems, model, settings and seed."""

    folder: Path
    given: Mapping[str, Any]  # settings of `femtune train`; scheme and held-out problems are left open
    model: str
    data: Mapping[str, Any]  # of the rows: see `write_rows`
    seed: int
    plans: Mapping[str, tuple[str, Any]]  # scheme or baseline -> contender, value
    baseline_draws: int
    rl: Mapping[str, Any]

    @property
    def settings(self) -> Train:
        """Raises ConfigError where one of them is none."""
        return train_settings(self.given)

    def jobs(self) -> list[Job]:
        """Baselines first. Raises ConfigError for a bad scheme."""
        baselines = [spec for spec in self.plans if spec in (*BASELINES, *RL_BASELINES)]
        schemes = [spec for spec in self.plans if spec not in baselines]
        settings = replace(self.settings, seed=self.seed, eval_data=str(self.folder / "test.jsonl"))
        return jobs(schemes, 1, settings, self.folder, baselines, self.baseline_draws, RL(**self.rl))

    def identity(self) -> dict[str, Any]:
        """What its stored runs hang on, as JSON gives it back; they may go on for more iterations."""
        kept = {name: value for name, value in self.given.items() if name != "iterations"}
        own = {"settings": kept, "model": self.model, "data": dict(self.data)}
        own |= {"baseline_draws": self.baseline_draws, **({"rl": dict(self.rl)} if self.rl else {})}
        made: dict[str, Any] = json.loads(json.dumps(own))
        return made


def parts(experiment: Experiment, runs: Path, seeds: Sequence[int] | None = None) -> Iterator[Part]:
    """Seed by seed, so that an experiment that is stopped has whole seeds."""
    names = ("world", "num_train", "largest", "num_test", "noise", "difficulty")
    of_all = {name: getattr(experiment, name) for name in names}
    fixed = {**COMMON, **WORLD_SETTINGS[experiment.world], **experiment.settings}
    fixed["iterations"] = experiment.iterations
    apart = experiment.setting not in ("", "M")
    for seed in experiment.seeds if seeds is None else seeds:
        for value in experiment.values if apart else ("",):
            own = {experiment.setting: value} if apart else {}
            data = {key: own.pop(key, each) for key, each in of_all.items()}
            model = own.pop("model", experiment.model)
            where = f"{experiment.setting}-{shown(value)}" if apart else "all"
            yield Part(
                runs / experiment.name / where / f"seed{seed}",
                {**fixed, **own},
                model,
                data,
                seed,
                dict(_plans(experiment, shown(value))),
                experiment.baseline_draws,
                experiment.rl,
            )


def _plans(experiment: Experiment, value: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    for contender in experiment.contenders:
        if experiment.setting != "M":
            yield contender, (contender, value)
            continue
        for number in experiment.values:
            yield contender.removesuffix("M") + str(number), (contender, number)


def shown(value: Any) -> str:
    """A value as the CSV and folders have it; of a model's folder the name.

    >>> shown(0.1), shown((1, 3)), shown("runs/seedlings/seedling-1000")
    ('0.1', '1-3', 'seedling-1000')
    """
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return Path(value).name if isinstance(value, str) else str(value)


# --- running


def run(
    experiment: Experiment,
    runs: Path,
    *,
    workers: int | None = None,
    seeds: Sequence[int] | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Do what is not stored. Raises what `compare` raises; a scheme that keeps nothing is noted."""
    if others := {*(seeds or ())} - {*experiment.seeds}:
        raise ConfigError(
            f"{experiment.name} has no seeds {sorted(others)}: add them to its definition."
        )
    todo = [*parts(experiment, runs, seeds)]
    for part in todo:
        part.jobs()  # a scheme that is misspelt is refused at once
    for model in {part.model for part in todo}:
        _make_seedling(Path(model), tell)
    for number, part in enumerate(todo, 1):
        own = part.jobs()
        names = [job.output_dir.name for job in own]
        if not _is_done(part, names, experiment.iterations):
            tell(f"{experiment.name}, {number} of {len(todo)}: {part.folder}: {', '.join(names)}")
            write_rows(part)
            stored = _compared(part, own, workers)
            note = {"iterations": experiment.iterations, "runs": stored, **part.identity()}
            with replacing(part.folder / "done.json") as file:
                file.write_text(json.dumps(note, indent=1) + "\n")


def _compared(part: Part, own: Sequence[Job], workers: int | None) -> dict[str, str]:
    """Run them; by folder, why a run kept nothing, else ""."""
    try:
        done = compare(str(part.folder / "train.jsonl"), part.model, own, workers=workers)
    except NothingKept as error:  # of every scheme
        return {job.output_dir.name: "" if job.is_baseline else str(error) for job in own}
    return {job.output_dir.name: history[-1].get("nothing_kept", "") for job, history in done.items()}


def _is_done(part: Part, names: Sequence[str], iterations: int) -> bool:
    """Whether all runs are stored, with the settings of now: older ones are no evidence for these."""
    path = part.folder / "done.json"
    if not path.exists():
        return False
    note = json.loads(path.read_text())
    same = all(note.get(name) == value for name, value in part.identity().items())
    return same and note["iterations"] >= iterations and {*names} <= {*note["runs"]}


def write_rows(part: Part) -> None:
    """train.jsonl and test.jsonl: held out are the same for every number of training problems.

    Raises RunError where other rows are there.
    """
    data = dict(part.data)
    num_train, world = data.pop("num_train"), WORLDS[data.pop("world")]
    train, test = make_rows(world, data.pop("largest"), data.pop("num_test"), seed=part.seed, **data)
    part.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train[:num_train]), ("test", test)):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        path = part.folder / f"{name}.jsonl"
        if path.exists() and path.read_text() != text:
            raise RunError(f"{path} holds other rows than the experiment has now: remove {part.folder}.")
        with replacing(path) as file:
            file.write_text(text)


def _make_seedling(folder: Path, tell: Callable[[str], None]) -> None:
    """One of SEEDLINGS that is not there yet; others are left to `compare`."""
    if folder in SEEDLINGS and not folder.exists():
        tell(f"making {folder}: {SEEDLINGS[folder]} steps")
        folder.parent.mkdir(parents=True, exist_ok=True)
        argv = [
            sys.executable,
            str(Path(__file__).parents[2] / "scripts/train_demo_model.py"),
            "--out",
            str(folder),
            "--threads",
            "1",
        ]
        argv += ["--steps", str(SEEDLINGS[folder]), "--more-steps", "0"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


# --- what they measured


def rows(experiment: Experiment, runs: Path) -> list[Row]:
    """A row for each checkpoint of each run, of the seeds that are done."""
    made: list[Row] = []
    for part in parts(experiment, runs):
        own = part.jobs()
        if not _is_done(part, [job.output_dir.name for job in own], experiment.iterations):
            continue
        for job in sorted(own, key=lambda job: kind(job) == "rl"):  # the first scheme is compared with
            contender, value = part.plans[job.scheme if job.is_baseline else job.settings.scheme]
            keys = {"world": experiment.world, "contender": contender, "seed": part.seed}
            keys |= {"kind": kind(job), "setting": experiment.setting, "value": value}
            begun = {} if keys["kind"] == "baseline" else {"generated_tokens": 0.0, "seconds": 0.0}
            made += [keys | row for row in checkpoints(job.output_dir, experiment.iterations, begun)]
    return made


def kind(job: Job) -> str:
    """A scheme, rl, or a baseline that has no iterations."""
    if job.is_baseline:
        return "rl" if job.scheme in RL_BASELINES else "baseline"
    return "scheme"


def checkpoints(root: Path, iterations: int, begun: Mapping[str, float]) -> Iterator[Row]:
    """Of a run: iteration, tokens and seconds up to it, and what was measured of it.

    A regression gives several, each a contender of its own. Tokens are the E-steps', seconds theirs and
    the M-steps', from what is `begun` with; a baseline that has neither step has neither number.
    """
    spent = dict(begun)
    for path in sorted(root.glob("iteration-*/metrics.json")):
        metrics = json.loads(path.read_text())
        if metrics["iteration"] > iterations:
            return
        for name, number in _costs(metrics).items():
            spent[name] = spent.get(name, 0) + number
        kinds = metrics.get("evaluations")
        if kinds is None and "evaluation" not in metrics:
            continue
        for name, own in (kinds or {"": metrics["evaluation"]}).items():
            row: Row = {"iteration": metrics["iteration"]} | ({"contender": name} if name else {})
            numbers = spent | _measured(metrics | {"evaluation": own})
            yield row | {key: f"{each:.6g}" for key, each in numbers.items()}


def _costs(metrics: Mapping[str, Any]) -> dict[str, float]:
    costs: dict[str, float] = {}
    if "e_step" in metrics:
        costs["generated_tokens"] = metrics["e_step"].get("generated_tokens", 0)
        costs["seconds"] = metrics["e_step"].get("total_s", 0.0)
    if "m_step" in metrics:
        costs["seconds"] = costs.get("seconds", 0.0) + metrics["m_step"]["seconds"]
    return costs


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {name: [number(metrics, place) for place in places] for name, places in PLACES.items()}
    return {
        name: next(each for each in numbers if each is not None)
        for name, numbers in found.items()
        if any(each is not None for each in numbers)
    }


def number(metrics: Mapping[str, Any], place: str) -> float | None:
    """What stands at a place, None where there is no number.

    >>> number({"evaluation": {"accuracy": 0.5}}, "evaluation/accuracy")
    0.5
    """
    value: Any = metrics
    for name in place.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def write(experiment: Experiment, made: Sequence[Row], runs: Path, folder: Path) -> Path:
    """NAME.csv, and NAME.json: the experiment as it was run, and with what.

    Raises ConfigError where no seed is done.
    """
    if not made:
        raise ConfigError(f"{experiment.name}: no seed of it is done in {runs}: run it first.")
    path = folder / f"{experiment.name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
    about = {"experiment": asdict(experiment), "made_with": _made_with(runs / experiment.name)}
    with replacing(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(about, indent=1) + "\n")
    return path


def _made_with(folder: Path) -> dict[str, Any]:
    """Versions and hardware, of a run; no paths or names of a machine."""
    stored = sorted(folder.rglob("environment.json"))
    if not stored:
        return {}
    all_of_it = json.loads(stored[0].read_text())
    packages = all_of_it.get("packages", {})
    return {
        **{name: all_of_it[name] for name in ("python", "processor", "cpus") if name in all_of_it},
        **{name: packages[name] for name in ("femtune", "torch", "transformers") if name in packages},
        "commit": all_of_it.get("git", {}).get("femtune", {}).get("commit", "")[:12],
    }
