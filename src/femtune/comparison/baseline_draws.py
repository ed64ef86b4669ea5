"""What baselines share: how they are asked, and how their answers are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from femtune.config import Train
from femtune.data.prompts import write_completion
from femtune.estep.scheduler import Sampler
from femtune.evaluation.evaluate import ask_into, estep_metrics, evaluation_metrics
from femtune.evaluation.item_scores import FILE as SCORES
from femtune.evaluation.item_scores import item_scores
from femtune.loop import Progress
from femtune.metric_types import EStepMetrics, EvaluationMetrics
from femtune.resolve import TaskInputs
from femtune.rewards.builtin import score
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.sampler import SamplerBuilder
from femtune.types import Completion, Draw, DrawKey, Problem, Sampling


@dataclass(frozen=True)
class Baseline(Train):
    """Settings of a baseline's run: those of the comparison, with the baseline's name as `scheme`."""

    draws: int = 1
    """Draws per problem, for votes and regression."""


def answered(
    problems: Sequence[Problem], answers: Sequence[str], asked: TaskInputs[Train]
) -> list[Draw]:
    """Return draws with given answers, one per problem, graded like a model's."""
    form = asked.prompts.format
    texts = [write_completion(form, "", answer).strip() for answer in answers]
    completions = [Completion((), text, "stop", 0.0) for text in texts]
    scores = score(
        problems,
        completions,
        [False] * len(problems),
        prompts=replace(asked.prompts, require_rationale=False),
        reward=asked.reward,
        timeout_s=asked.settings.reward_timeout,
        on_error=asked.settings.on_reward_error,
    )
    return [
        Draw(DrawKey(0, problem.id, 0, 0), "plain", 0, completion, graded)
        for problem, completion, graded in zip(problems, completions, scores, strict=True)
    ]


def judged(problems: Sequence[Problem], draws: Sequence[Draw]) -> EvaluationMetrics:
    """Return the evaluation of answers without rationales."""
    by_id = {problem.id: problem for problem in problems}
    return without_soundness(evaluation_metrics(by_id, [(draws, NO_TIME)]))


def store_scores(run: Run, problems: Sequence[Problem], rows: Mapping[str, Sequence[Draw]]) -> None:
    """Store the score of each problem by row, for rows whose answers are no stored draws."""
    by_id = {problem.id: problem for problem in problems}
    scores = {name: item_scores(draws, by_id) for name, draws in rows.items()}
    run.write_json(run.iteration(0) / SCORES, scores)


def draw_all(
    run: Run,
    builder: SamplerBuilder,
    settings: Baseline,
    groups: Mapping[str, Sequence[Problem]],
    progress: Progress,
) -> None:
    """Draw for all groups; the engine and its model are freed at the end."""
    with builder.sampler(Sampling(settings.max_new_tokens, temperature=1.0)) as sampler:
        for kind, problems in groups.items():
            progress.phase("evaluation" if kind == "eval" else "E-step", 0, len(problems))
            draw_one(run, kind, problems, sampler, settings.draws, progress)


def base_metrics(run: Run, kind: str, problems: Sequence[Problem]) -> EStepMetrics:
    """Return the cost metrics of the base's draws."""
    stored = read_draws(run.iteration(0) / kind)
    metrics = estep_metrics({problem.id: problem for problem in problems}, stored)
    return {
        "answered": metrics["answered"],
        "num_draws": metrics["num_draws"],
        "generated_tokens": metrics["generated_tokens"],
        "tokens_per_draw": metrics["tokens_per_draw"],
        "engine_s": metrics["engine_s"],
        "total_s": metrics["total_s"],
    }


def best_device(device: str | None) -> str:
    """Return the given device, else a GPU if there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


NO_TIME = {"engine_s": 0.0, "total_s": 0.0}


def without_soundness(metrics: EvaluationMetrics) -> EvaluationMetrics:
    """Remove step accuracy, as answers without rationales have no steps."""
    made = metrics.copy()
    made.pop("sound_steps", None)
    made.pop("sound_rationales", None)
    return made


def draw_one(
    run: Run,
    kind: str,
    problems: Sequence[Problem],
    sampler: Sampler,
    draws: int,
    progress: Progress,
) -> None:
    """Draw from the base under the plain prompt and store the draws by chunk in iteration 0."""
    ask_into(run, kind, problems, sampler, draws=draws, on_draws=progress.draws)
