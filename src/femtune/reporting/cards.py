"""Cards for a run's results: README.md beside a model, and beside a data set of rationales.

    write_model_card(root, 3)    iteration-003/model/README.md
    write_data_card(root, 1)     iteration-001/README.md, for examples.parquet and draws/

A card contains only facts from the run's own files: config.yaml, environment.json, problems.parquet,
metrics.json. It describes one iteration, so later iterations do not change it. An existing card is
never overwritten: its owner may have edited it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from femtune._util import markdown
from femtune._util.atomic_files import replacing
from femtune._util.parsing import read_value
from femtune.data.answers import Scale
from femtune.data.chat_tokenizer import DATE
from femtune.data.problems import load_problems
from femtune.data.prompts import as_messages
from femtune.data.row_report import NO_ROWS, ROWS, RowReport, read_reports
from femtune.data.tasks.frames import frame, scale_of
from femtune.data.tasks.hub import is_hub_id
from femtune.data.tasks.judge import JUDGE, Wording, write_pair, write_rating
from femtune.data.tasks.summarize import SUMMARIZE
from femtune.engines.model_files import MODELS, load_tokenizer
from femtune.errors import RunError
from femtune.evaluation.item_scores import compare_iterations, describe_difference
from femtune.evaluation.paired import PairedDifference
from femtune.evaluation.rationales import read_rationales
from femtune.metric_types import EStepMetrics, IterationMetrics, Part, interval, measure
from femtune.mstep.examples import EXAMPLES
from femtune.runs.run import stored_config
from femtune.schemes.serialization import describe, schedule_from_data
from femtune.types import Problem

# where the usage examples load from; `femtune push` inserts the repository's name
HERE = 'name = "."  # this folder; on the Hub, the name of the repository'
BESIDE = 'name = "{}"  # this folder, from the one it is in; on the Hub, the name of the repository'

# measures of an evaluation on a card
MEASURES = {
    "accuracy": "accuracy",
    "majority_accuracy": "accuracy of the vote",
    "agreement": "agreement with the human choice",
    "within_one": "within one",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "kendall": "Kendall's tau-b",
    "kappa": "quadratic kappa",
    "mae": "MAE",
    "within_one_percent": "number within 1%",
    "median_relative_error": "median relative error",
    "rmse": "RMSE",
    "ece": "ECE",
    "brier": "Brier",
    "position_consistency": "same choice in both orders",
    "sound_steps": "sound steps",
    "sound_rationales": "rationales sound throughout",
    "answered": "gave an answer",
}
GOALS = {
    "rating": "the ratings that people gave",
    "pair": "the choices that people made between two texts",
    "choice": "the right one of several choices",
    "math": "the right number or expression",
}
COLUMNS = {
    "iteration": "in which it was drawn: an earlier one where the scheme remembers draws",
    "problem_id": "names the problem",
    "stage": "of the scheme, from 0; with the index, it names a problem's draw of an iteration",
    "index": "attempt within the stage, from 0",
    "weight": "what the example counts for in a weighted loss; below 0: it is trained away from",
    "reward": "of its answer, 0 to 1",
    "prompt": "messages: the problem under the plain prompt",
    "completion": "one message: the rationale, then the answer",
    "prompt_tokens": "as the model is fed",
    "completion_tokens": "as they were sampled, end token included",
}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts in a run's files about one of its iterations."""

    config: Mapping[str, Any]
    packages: Mapping[str, str]
    problems: Sequence[Problem]
    base: IterationMetrics  # metrics of iteration 0; {} if it was not measured
    history: Sequence[IterationMetrics]  # metrics of the iterations 1 to this one
    reports: Mapping[str, RowReport]  # of rows: "problems", and "eval" if its data are of their own
    difference: PairedDifference | None  # to the base, of accuracy on the same held-out problems
    teacher: Mapping[str, Any] | None  # what teacher.json says, with tokens and seconds

    @property
    def metrics(self) -> IterationMetrics:
        return self.history[-1]


def read_told(root: Path, iteration: int) -> RunFacts:
    """Read the facts about a completed iteration of the run in `root`."""

    def metrics(number: int) -> IterationMetrics:
        folder = root / f"iteration-{number:03}"
        path = folder / "metrics.json"
        found: IterationMetrics = json.loads(path.read_text()) if path.exists() else {}
        found["rationales"] = read_rationales(folder)
        return found

    return RunFacts(
        config=stored_config(root),
        packages=json.loads((root / "environment.json").read_text()).get("packages", {}),
        problems=load_problems(root / "problems.parquet"),
        base=metrics(0),
        history=[metrics(number) for number in range(1, iteration + 1)],
        reports=read_reports(root / ROWS),
        difference=compare_iterations(root, iteration),
        teacher=read_teacher(root, metrics(1).get("e_step", {})),
    )


def read_teacher(root: Path, first: EStepMetrics) -> dict[str, Any] | None:
    """Return the teacher of a run with its tokens and seconds in iteration 1, None without one."""
    path = root / "teacher.json"
    if not path.exists() or "teacher_tokens" not in first:
        return None
    about = json.loads(path.read_text())
    own = {"model": shown_name(str(about["model"])), "license": str(about["license"])}
    return own | {"tokens": first["teacher_tokens"], "seconds": first["total_s"]}


def write_model_card(root: Path, iteration: int) -> Path:
    """Write README.md of an iteration's model, unless it has a femtune card; return its path.

    PEFT's own card beside an adapter is replaced: it contains only paths.
    """
    path = root / f"iteration-{iteration:03}" / "model" / "README.md"
    if not _is_ours(path, ModelCard):
        _save(path, str(model_card(read_told(root, iteration), path.parent)))
    return path


def write_data_card(root: Path, iteration: int) -> Path:
    """Write README.md of an iteration's examples and draws, unless there is one; return its path."""
    path = root / f"iteration-{iteration:03}" / "README.md"
    if not path.exists():
        _save(path, str(data_card(read_told(root, iteration), path.parent)))
    return path


def _is_ours(path: Path, kind: type[ModelCard]) -> bool:
    return path.exists() and "femtune" in (kind.load(path, ignore_metadata_errors=True).data.tags or ())


def _save(path: Path, card: str) -> None:
    with replacing(path) as part:
        part.write_text(card, encoding="utf-8")


# --- of a model


def model_card(told: RunFacts, folder: Path) -> ModelCard:
    """Return the card of the model in `folder`, in the Hub's format."""
    config = told.config
    chosen = "num_candidates" in told.metrics["m_step"]  # examples, and no weights of its own
    adapter = json.loads(found.read_text()) if (found := folder / "adapter_config.json").exists() else {}
    base, data = hub_model(config["model"]), config["data"]
    head = ModelCardData(
        base_model=base,
        datasets=[data] if is_hub_id(data) else None,
        library_name="femtune" if chosen else "peft" if adapter else "transformers",
        model_name=f"{shown_name(config['model'])} on {shown_name(data)}",
        pipeline_tag="text-generation",
        tags=["femtune", "reasoning", "expectation-maximization", *(["lora"] if adapter else [])],
        eval_results=_results(told) or None,
    )
    template = _templates().get_template("examples.md.j2" if chosen else "model.md.j2")
    own = {"lora": adapter, "base_id": base}
    schedule = schedule_from_data(config["scheme_data"])
    own |= {"restarts": schedule.restart_every > 0, "settles": schedule.settles}
    own |= {"scheme_text": describe(config["scheme_data"])}
    body = template.render(_about(told) | ({} if chosen else _use(told, folder)) | own)
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}")


def _results(told: RunFacts) -> list[EvalResult]:
    """Return the evaluation's numbers for the Hub's index, as in metrics.json."""
    evaluation = told.metrics.get("evaluation", {})
    data = held_out_data(told.config)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data if is_hub_id(data) else "local",
            dataset_name=shown_name(data),
            dataset_split=told.config["eval_split"],
            metric_type=name,
            metric_name=f"{MEASURES[name]}, of {evaluation['num_problems']} held-out problems",
            metric_value=value,
        )
        for name in MEASURES
        if (value := measure(evaluation, name)) is not None
    ]


def _about(told: RunFacts) -> dict[str, Any]:
    """Return the facts on both cards: the data, the settings, the E-steps."""
    config, first = told.config, told.problems[0]
    known = frame(first)
    return {
        "config": config,
        "packages": told.packages,
        "base": shown_name(config["model"]),
        "data": shown_name(config["data"]),
        "held_out": shown_name(held_out_data(config)),
        "goal": GOALS[known.form] if known else "the correct answers",
        "is_judge": known is not None and known.form in ("rating", "pair"),
        "num_problems": len(told.problems),
        "rows": told.reports.get("problems", NO_ROWS),
        "eval_rows": told.reports.get("eval", NO_ROWS),
        "iterations": len(told.history),
        "e_step": told.metrics["e_step"],
        "m_step": told.metrics.get("m_step"),  # a data card has none
        "any_hinted": any("hinted" in each["e_step"]["reasons"] for each in told.history),
        "covered_share": covered_share(told.metrics["e_step"]),
        "num_draws": sum(each["e_step"]["num_draws"] for each in told.history),
        "teacher": told.teacher,
        "num_tokens": sum(each["e_step"]["generated_tokens"] for each in told.history),
        "evaluation": told.metrics.get("evaluation"),
        "measures": compared(told),
        "difference": told.difference and describe_difference(told.difference),
        "is_apart": told.difference is not None and told.difference.p_value < 0.05,
        "development": told.metrics.get("development"),
        "worth": compared(told, "rationales", WORTH),
        "read": told.metrics.get("rationales", {}),
        "leaked": told.metrics.get("posterior", {}).get("leak_share"),
        "is_world": "sound_steps" in told.metrics["e_step"],
        "by_answer": told.metrics["e_step"].get("kept_by", {}).get("answer", {}),
    }


def covered_share(e_step: EStepMetrics) -> float:
    """Return the share of problems with a right draw, including remembered draws if there are any."""
    known = e_step.get("covered_share")
    return (e_step["kept_share"] or 0.0) if known is None else known


def compared(
    told: RunFacts,
    part: Part = "evaluation",
    measures: Mapping[str, str] = MEASURES,
) -> list[dict[str, Any]]:
    """Return each measure of the base and of this model, with its interval."""
    before, after = told.base.get(part, {}), told.metrics.get(part, {})
    rows = []
    for name, title in measures.items():
        if (value := measure(after, name)) is None:
            continue
        old, new = interval(before, name), interval(after, name)
        rows.append(
            {
                "title": title,
                "before": _number(measure(before, name), old),
                "after": _number(value, new),
            }
        )
    return rows


# measures of rationales.json on a card
WORTH = {
    "rationale_gain": "what a rationale adds to the base's log-probability of the correct answer, nats",
    "choice_gain": "the same among the possible answers, nats",
    "helpful_share": "rationales that help",
    "read_accuracy": "base right after the rationale",
    "direct_accuracy": "base right without one",
    "copied_share": "words of a rationale in passages copied from the prompt",
    "copied_density": "mean length of these passages, words",
}


def _number(value: Any, interval: Sequence[float] | None) -> str:
    if not isinstance(value, float):
        return ""
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _use(told: RunFacts, folder: Path) -> dict[str, Any]:
    """Return what the usage examples need."""
    tokenizer = load_tokenizer(folder)
    ends = json.loads(path.read_text()) if (path := folder / "generation_config.json").exists() else {}
    eos = ends.get("eos_token_id")
    end = tokenizer.end_token_id
    return {
        "here": HERE,
        "question": example_question(told.problems[0], told.config),
        "roles": [message["role"] for message in as_messages(told.problems[0].prompt)],
        "has_template": bool(tokenizer.tokenizer.chat_template),
        "template_args": {
            name: read_value(value)
            for name, _, value in (item.partition("=") for item in told.config["template_args"])
            if name != DATE  # a function there
        },
        "end": None if end in (eos if isinstance(eos, list) else [eos]) else end,
    }


def example_question(problem: Problem, config: Mapping[str, Any]) -> str:
    """Return a question in the form of the run's problems, with placeholder texts.

    From the data it takes only the names of columns, and the attribute asked for.
    """
    known = frame(problem)
    wording = SUMMARIZE if config["task"] == "summarize" else JUDGE
    if known is None or known.form == "math":
        return "What is 17 + 25?" if known else "Your question, as the data has them."
    if known.form == "choice":
        lines = [f"{label}. the choice {label}" for label in known.scale]
        return "\n".join(["Your question?", "", *lines])
    row = _made_up(problem, wording)
    rater = "NAME" if config["raters"] == "named" else ""
    scale = scale_of(problem) or Scale(known.scale)
    if known.form == "rating":
        return write_rating(row, scale, wording, rater)
    return write_pair(row, wording, rater, tie="tie" in known.scale)


def _made_up(problem: Problem, wording: Wording) -> dict[str, str]:
    thing, text = wording.thing, str(problem.prompt)
    given = {column: f"The {head.lower()}." for head, column in wording.given if f"{head}:\n" in text}
    texts = {name: f"The {name}." for name in ("criterion", "reference") if name in problem.columns}
    judged = {f"{thing}{side}": f"The {thing}{side.replace('_', ' ')}." for side in ("", "_a", "_b")}
    return given | texts | judged | {"attribute": str(problem.columns.get("attribute") or "")}


# --- of rationales


def data_card(told: RunFacts, folder: Path) -> DatasetCard:
    """Return the card of an iteration's examples, with its draws as a second configuration.

    Raises RunError for a run of before, some of whose prompts hold the correct answer.
    """
    table = pq.read_table(folder / "examples.parquet")
    num, known = table.num_rows, table.column_names
    if "trained_under" in known and "hinted" in table["trained_under"].to_pylist():
        raise RunError(
            f"{folder}: some examples have the correct answer in their prompts (+wake, since removed). "
            "Commit 65a0ab4 can push them with a card that says so."
        )
    num_negative = pc.sum(pc.less(table["weight"], 0)).as_py() or 0
    files = {"examples": "examples.parquet", "draws": "draws/*.parquet"}
    head = DatasetCardData(
        pretty_name=f"Rationales for {shown_name(told.config['data'])}",
        size_categories=next(name for most, name in _SIZES if num < most),
        source_datasets=[data] if is_hub_id(data := told.config["data"]) else None,
        task_categories=["text-generation"],
        annotations_creators=["machine-generated"],
        tags=["femtune", "reasoning", "rationales", "synthetic"],
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": place}]}
            | ({"default": True} if name == "examples" else {})
            for name, place in files.items()
        ],
    )
    columns = {name: COLUMNS[name] for name in EXAMPLES.names if name in known}
    about = _about(told) | {"here": BESIDE.format(folder.name), "columns": columns, "num": num}
    about["num_negative"] = num_negative
    about["has_tokens"] = "completion_tokens" in known
    body = _templates().get_template("data.md.j2").render(about)
    return DatasetCard(f"---\n{head.to_yaml()}\n---\n\n{body}")


_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (float("inf"), "n>10M"),
)


# --- names


def shown_name(name: str) -> str:
    """Return a name to show on one line; only the last part of a path, as the rest is private.

    >>> shown_name("/home/me/secret/train.jsonl"), shown_name("Qwen/Qwen3-1.7B")
    ('train.jsonl', 'Qwen/Qwen3-1.7B')
    """
    return name if is_hub_id(name) else markdown.on_a_line(Path(name).name or name)


def hub_model(name: str) -> str | None:
    """Return the id of a model on the Hub; None for a folder or a model of the package."""
    is_local = name in MODELS or Path(name).expanduser().is_dir()
    return None if is_local or not (is_hub_id(name) or re.fullmatch(r"[\w.-]+", name)) else name


def held_out_data(config: Mapping[str, Any]) -> str:
    """Return the data that a run was evaluated on, as the user named it."""
    return str(config.get("eval_data") or config["data"])


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("femtune", "assets/cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown is escaped by the filters below
    )
    filters = {"text": markdown.text, "code": markdown.code, "literal": markdown.literal}
    made.filters |= filters
    return made
