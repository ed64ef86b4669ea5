"""The commands of the CLI as Python functions, with settings as keywords.

train(data, model)      filtered EM: E-step, M-step, evaluation, K times
sample(data, model)     one E-step: a data set of rationales
fit(examples, model)    one M-step
evaluate(data, model)   metrics on held-out problems
predict(data, model)    answers to new items, with their confidence
calibrate(data, model)  a map of votes or probabilities to calibrated ones
compare(data, model)    schemes and baselines side by side
check(data, model)      data, prompts and some completions, before any training

`data` is the path of a file, the id of a data set on the Hub, a list of dicts or of `Problem`, or a
table: `datasets.Dataset`, a DataFrame of pandas or polars, `pyarrow.Table`. So is `eval_data`.
`progress` is a value of `--show`: "auto" (bars in a terminal, else lines), "lines", "json", "quiet", or
an object with the methods of `loop.Progress`. Omitted settings have the defaults of the command.
An unknown name raises ConfigError, as does a value of a wrong type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from femtune.comparison.experiment import CompareResult, run_compare
from femtune.comparison.ladder.climb import run_ladder
from femtune.comparison.ladder.options import LadderOptions
from femtune.comparison.ladder.result import LadderResult
from femtune.config import RL, Calibrate, Evaluate, Predict, Sample
from femtune.data.objects import Table
from femtune.evaluation.aggregate import Prediction
from femtune.loop import Progress
from femtune.mstep.config import Training
from femtune.reporting.terminal import Show
from femtune.resolve import Data
from femtune.tools.check_run import CheckResult, run_check
from femtune.types import Scheme
from femtune.workflows.arguments import (
    Model,
    Reward,
    divided,
    names_given,
    reward_function,
    scheme_object,
    show_name,
    shown_by,
    with_rows,
)
from femtune.workflows.calibrate import CalibrateResult, run_calibrate
from femtune.workflows.evaluate import EvaluateResult, run_evaluate
from femtune.workflows.fit import FitResult, run_fit
from femtune.workflows.keywords import (
    AskSettings,
    CalibrateSettings,
    CompareSettings,
    EvaluateSettings,
    LadderSettings,
    PredictSettings,
    SampleSettings,
    TrainingSettings,
    TrainSettings,
    make_settings,
    take_settings,
    train_settings,
)
from femtune.workflows.predict import PredictResult, predict_into, predictions
from femtune.workflows.sample import SampleResult, run_sample
from femtune.workflows.train import TrainResult, run_train
from femtune.workflows.trained_model import TrainedModel

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = [
    "AskSettings",
    "CalibrateResult",
    "CalibrateSettings",
    "CheckResult",
    "CompareResult",
    "CompareSettings",
    "EvaluateResult",
    "EvaluateSettings",
    "FitResult",
    "LadderResult",
    "LadderSettings",
    "PredictResult",
    "PredictSettings",
    "Prediction",
    "SampleResult",
    "SampleSettings",
    "TrainResult",
    "TrainSettings",
    "TrainedModel",
    "TrainingSettings",
    "calibrate",
    "check",
    "compare",
    "evaluate",
    "fit",
    "ladder",
    "predict",
    "sample",
    "train",
]


def train(
    data: Data | Table,
    model: Model,
    *,
    scheme: str | Scheme = "auto",
    eval_data: Data | Table | None = None,
    reward: Reward | None = None,
    output_dir: str | Path | None = None,
    progress: Show | Progress = "auto",
    **settings: Unpack[TrainSettings],
) -> TrainResult:
    """Train a model to reason its way to the answers, by filtered EM.

        result = train("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge", scale="1,5")
        result.best  # the folder of the model, for transformers and vLLM
        result.best.predict(rows)  # by what it was trained with: task, scale, instruction
        result.history[-1]["evaluation"]["accuracy"]

    `scheme` is a name such as "rejection:4", or an object such as `star()`; `reward` is a name such as
    "ordinal(1, 5)", or a function. The same call resumes a stopped run. Raises DataError, ConfigError or
    ModelError before the model is loaded, and RunError if `output_dir` holds another
    run.
    """
    rows, named = divided(data, eval_data)
    chosen = train_settings({**settings, **named, **names_given(scheme, reward)})
    with shown_by(progress) as shown:
        return run_train(
            rows,
            str(model),
            chosen,
            output_dir,
            shown,
            scheme=scheme_object(scheme),
            reward=reward_function(reward),
        )


def sample(
    data: Data | Table,
    model: Model,
    *,
    scheme: str | Scheme = "auto",
    reward: Reward | None = None,
    output_dir: str | Path | None = None,
    progress: Show | Progress = "auto",
    **settings: Unpack[SampleSettings],
) -> SampleResult:
    """Draw rationales that lead to the correct answers, as a data set for any trainer: one E-step.

        result = sample("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge", scheme="rejection:4")
        result.examples  # Parquet with prompt, completion and weight
        result.num_kept  # problems with a draw that was kept

    Raises NothingKept if no draw is kept; the draws are still stored.
    """
    chosen = make_settings(Sample, {**settings, **names_given(scheme, reward)})
    with shown_by(progress) as shown:
        return run_sample(
            with_rows(data),
            str(model),
            chosen,
            output_dir,
            shown,
            scheme=scheme_object(scheme),
            reward=reward_function(reward),
        )


def fit(
    examples: str | Path,
    model: Model,
    *,
    output_dir: str | Path,
    seed: int = 0,
    progress: Show | Progress = "auto",
    **settings: Unpack[TrainingSettings],
) -> FitResult:
    """Fine-tune a model on a file of examples, .parquet or .jsonl: one M-step.

        fit(result.examples, "Qwen/Qwen3-1.7B", output_dir="fitted").metrics["loss"]

    Raises RunError if `output_dir` exists already: a checkpoint is never overwritten.
    """
    training = make_settings(Training, settings)
    with shown_by(progress) as shown:
        return run_fit(Path(examples), str(model), training, Path(output_dir), seed, shown)


def evaluate(
    data: Data | Table,
    model: Model,
    *,
    reward: Reward | None = None,
    reader_problems: int = 0,
    output: str | Path | None = None,
    output_dir: str | Path | None = None,
    progress: Show | Progress = "auto",
    **settings: Unpack[EvaluateSettings],
) -> EvaluateResult:
    """Measure how well a model answers problems that it was not trained on.

        result = evaluate("test.jsonl", "runs/judge/best")
        result.accuracy, result.accuracy_ci
        result.metrics["spearman"]

    Unset settings come from the model's femtune.json: its task, scale, instruction, and so on.
    With `reader_problems`, the base reads the rationales of so many problems, and
    `result.metrics["rationales"]` measures how much they help it. With `output`, a .jsonl, .parquet or
    .csv file, the prediction of each item is written there beside its input row and correct answer.
    """
    chosen = make_settings(Evaluate, {**settings, **names_given(None, reward)})
    with shown_by(progress) as shown:
        return run_evaluate(
            with_rows(data),
            str(model),
            chosen,
            output_dir,
            shown,
            reward=reward_function(reward),
            reader_problems=reader_problems,
            output=None if output is None else Path(output),
        )


@overload
def predict(
    data: Data | Table,
    model: Model,
    *,
    reward: str | None = ...,
    output: None = ...,
    **settings: Unpack[PredictSettings],
) -> Iterator[Prediction]: ...


@overload
def predict(
    data: Data | Table,
    model: Model,
    *,
    reward: str | None = ...,
    output: str | Path,
    **settings: Unpack[PredictSettings],
) -> PredictResult: ...


def predict(
    data: Data | Table,
    model: Model,
    *,
    reward: str | None = None,
    output: str | Path | None = None,
    **settings: Unpack[PredictSettings],
) -> Iterator[Prediction] | PredictResult:
    """Answer new items from several rationales each, with a confidence for each answer.

        for item in predict("new.jsonl", "runs/judge/best"):
            print(item["id"], item["answer"], item["confidence"])

    Items need no answers; "-" reads JSON lines from standard input. With `output`, a .jsonl, .parquet or
    .csv file, predictions are written there, and the draws beside it; the same call resumes a stopped
    one. Unset settings come from the model's femtune.json. Nothing is graded: `reward` exists only so
    that the settings of a run work here too. Each item has the columns of its input row, which
    `input_columns=False` leaves out; one that is called as a field is `input_answer`, for example. Then

    id              the id of the item or pair
    answer          the likeliest one under `distribution`; the first one on a tie of votes; or None
    confidence      its share in `distribution`, or of the votes; None without a vote
    abstained       True if that is below `abstain_below`
    no_answer       why `answer` is None: "abstained", or "unreadable" if no draw could be read
    num_answered    draws with an answer (on the scale, if there is one); for a pair, in both orders
    votes           answers and the number of their draws, the most frequent first
    aggregate       "probabilities" or "votes": the source of `answer` and `distribution`
    probabilities   for ratings, pairs and choices: the mean over the draws of pi(y | x, z), normalized
                    over the scale; for a pair, the mean of both orders. None without scoring
    distribution    for ratings, pairs and choices: `probabilities` or shares of votes, calibrated if a
                    calibration is given
    expected        the mean of ratings, under `distribution`, or of answers that are all numbers
    consistent      for a pair, True if the same one wins in both orders; None if one has no vote
    rationale       the likeliest by token of the draws that gave `answer`; if none did, the one after
                    which it is likeliest; for a pair, in its own order

    Raises ConfigError, DataError or ModelError at once, except for errors in a later line of a stream
    or while the model is loaded.
    """
    chosen = make_settings(Predict, {**settings, **names_given(None, reward)})
    if output is None:
        return predictions(with_rows(data), str(model), chosen)
    return predict_into(with_rows(data), str(model), chosen, Path(output))


def calibrate(
    data: Data | Table,
    model: Model,
    *,
    output: str | Path | None = None,
    reward: Reward | None = None,
    output_dir: str | Path | None = None,
    progress: Show | Progress = "auto",
    **settings: Unpack[CalibrateSettings],
) -> CalibrateResult:
    """Fit a map of votes or probabilities to calibrated ones, on a validation split.

        fitted = calibrate("validation.jsonl", "runs/judge/best")
        fitted.metrics["ece_after"]
        predict("new.jsonl", "runs/judge/best")  # calibrated

    The map is stored in the model's folder, or as `output` to be named by the setting `calibration`.
    Raises ConfigError if the answers are not on one scale, DataError if there are too few.
    """
    chosen = make_settings(Calibrate, {**settings, **names_given(None, reward)})
    with shown_by(progress) as shown:
        return run_calibrate(
            with_rows(data),
            str(model),
            chosen,
            None if output is None else Path(output),
            output_dir,
            shown,
            reward=reward_function(reward),
        )


def compare(
    data: Data | Table,
    model: Model,
    *,
    schemes: Sequence[str | Scheme] = ("rejection:1", "rejection:4", "star", "pps"),
    seeds: int = 1,
    baselines: Sequence[str] | None = None,
    baseline_draws: int = 16,
    workers: int | None = None,
    eval_data: Data | Table | None = None,
    reward: str | None = None,
    output_dir: str | Path | None = None,
    progress: Show = "auto",
    **settings: Unpack[CompareSettings],
) -> CompareResult:
    """Run schemes and baselines on the same problems with the same settings; return one table.

        result = compare("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge", schemes=["star", "pps"])
        print(result)  # the table
        result.table["star"]["accuracy"]

    Schemes are names or objects. By default, all baselines that suit the task run; () runs none. Runs
    are separate processes: in a script, call this below `if __name__ == "__main__":`.
    """
    rl, others = take_settings(RL, settings)
    rows, named = divided(data, eval_data)
    return run_compare(
        rows,
        str(model),
        schemes,
        seeds,
        train_settings({**others, **named, **names_given(None, reward)}),
        output_dir,
        show_name(progress),
        baselines=baselines,
        draws=baseline_draws,
        rl=rl,
        workers=workers,
    )


def ladder(
    data: Data | Table,
    model: Model,
    *,
    answer: Data | Table | None = None,
    output: str | Path | None = None,
    scheme: str = "auto",
    eval_data: Data | Table | None = None,
    reward: Reward | None = None,
    output_dir: str | Path | None = None,
    progress: Show = "auto",
    **settings: Unpack[LadderSettings],
) -> LadderResult:
    """Run cheap ways to answer first and training last, on the same held-out problems; choose one.

        result = ladder("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge", up_to="votes")
        result.chosen, result.verdict

    Takes the settings of `train`. The same call resumes a stopped ladder; with `answer`, it answers new
    items like the chosen rung. Raises what `train` raises, and DataError if no problem is held out.
    """
    options, others = take_settings(LadderOptions, settings)
    rows, named = divided(data, eval_data)
    return run_ladder(
        rows,
        str(model),
        train_settings({**others, **named, **names_given(scheme, reward)}),
        output_dir,
        show_name(progress),
        options,
        reward=reward_function(reward),
        answer=None if answer is None else with_rows(answer),
        output=None if output is None else Path(output),
    )


def check(
    data: Data | Table,
    model: Model,
    *,
    row: int = 1,
    draws: int = 32,
    try_: bool = True,
    scheme: str | Scheme = "auto",
    eval_data: Data | Table | None = None,
    reward: str | None = None,
    progress: Show = "auto",
    **settings: Unpack[TrainSettings],
) -> CheckResult:
    """Check data and prompts, draw some completions from the model, and suggest settings to change.

        result = check("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge")
        result.warnings  # likely problems, and what to do
        result.changes  # settings to try, such as {"max-new-tokens": "96"}

    Takes the settings of `train`, and raises what it would raise. `try_=False` does not load the model.
    """
    rows, named = divided(data, eval_data)
    chosen = train_settings({**settings, **named, **names_given(scheme, reward)})
    return run_check(
        rows,
        str(model),
        chosen,
        row=row,
        num_draws=draws,
        try_=try_,
        show=show_name(progress),
        scheme=scheme_object(scheme),
    )
