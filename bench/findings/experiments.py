"""The experiments and the figures of docs/findings.md. Contenders, seeds and values are edited here.

A contender is a scheme as `--scheme` takes it, or a baseline. After an edit the same command runs only
what is not stored, and writes the CSV anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from femtune.comparison.rl import RL_BASELINES
from femtune.schemes.named import AUTO

FOLDER = Path(__file__).parent  # of the CSV files
RUNS = Path("runs/findings")  # scratch: runs of experiments, and the weaker seedlings

BASELINES = ("majority", "votes", "answer-only", "regression")

# As in recipes/*.yaml. Every run takes these; what an experiment says itself stands over them.
COMMON = {
    "learning_rate": 1e-3,  # rejection(4), the best of the paper's on rubric, does better than at 3e-4
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "bound_draws": 0,
}
WORLD_SETTINGS: dict[str, dict[str, Any]] = {
    "rubric": {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": 64},
    "tldr": {"task": "summarize", "raters": "named", "max_new_tokens": 96},
    "sums": {"task": "math", "max_new_tokens": 128, "learning_rate": 3e-4},
}


@dataclass(frozen=True)
class Experiment:
    """Contenders on one world, for each seed and each value of the setting that varies.

    Each seed has problems of its own, for all contenders the same, so that an interval over seeds holds
    what problems, draws and training do. Those of a seed are held out alike for every value, and fewer
    training problems are the first of more. Label noise is in the training answers only.
    """

    name: str
    world: str
    contenders: tuple[str, ...]
    setting: str = ""  # noise, num_train, difficulty, model, M, or a setting of `femtune train`
    values: tuple[Any, ...] = ()  # M stands in contenders: rejection:M
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    iterations: int = 12
    num_train: int = 400
    num_test: int = 200
    noise: float = 0.0
    difficulty: tuple[int, int] | None = None
    model: str = "seedling"
    baseline_draws: int = 16  # of votes and regression, for each problem
    settings: Mapping[str, Any] = field(default_factory=dict)
    rl: Mapping[str, Any] = field(default_factory=dict)  # of baselines by reinforcement learning

    def __post_init__(self) -> None:
        if bool(self.setting) != bool(self.values):
            raise ValueError(
                f"{self.name}: setting {self.setting!r} and values {self.values} go together."
            )
        if self.setting == "M" and not all(name.endswith(":M") for name in self.contenders):
            raise ValueError(f"{self.name}: where M varies, each contender is a scheme that ends in :M.")

    @property
    def largest(self) -> int:
        """The most training problems of any value."""
        return max(self.values) if self.setting == "num_train" else self.num_train


@dataclass(frozen=True)
class Figure:
    """A picture and its tables, of one experiment or of several worlds' side by side.

    curves    measures along `x`, a column that grows with the iterations
    setting   measures of the last iteration along the setting's values
    scatter   accuracy over `x`, a column, one mark a checkpoint
    """

    name: str
    kind: Literal["curves", "setting", "scatter"]
    experiments: tuple[str, ...]
    about: str  # for who can't see it
    x: str = "value"  # or a column
    x_title: str = ""
    scale: Literal["linear", "log", "names"] = "linear"
    measures: tuple[str, ...] = ("accuracy", "sound_steps")
    also: tuple[str, ...] = ()  # columns that only the table has
    baselines: tuple[str, ...] = ()  # drawn as dashed lines; the table has them all


# --- experiments

PAPER = ("rejection:4", "star", "pps")
# A third of the problems in each iteration; and with more weight for those that took many attempts.
FRUGAL = ("rejection:8+chain+every:3+restart", "rejection:8+chain+every:3+hard+restart")
FEW = ("rejection:4", AUTO)
RESTARTED = "rejection:4+restart"  # and never settled

# Weaker bases: steps of the seedling's one course of lessons, of 7,000 and a second course of 3,500.
# `run` makes those that are not there, 0.15 s a step on one core.
SEEDLINGS = {RUNS / f"seedlings/seedling-{steps}": steps for steps in (1000, 2000, 4000)}
BASES = (*map(str, SEEDLINGS), "seedling")

LAST: dict[str, Any] = {"settings": {"eval_every": 100}}  # measured are the base and the last iteration

# As many tokens as rejection(4) takes; rate and batch were chosen on another seed (bench/RESULTS.md).
REINFORCED = {"rl_tokens": 100_000, "rl_learning_rate": 3e-4, "rl_batch_size": 32}

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment("schemes-rubric", "rubric", (*PAPER, AUTO, RESTARTED, *FRUGAL, "star+restart")),
        Experiment("schemes-tldr", "tldr", (*PAPER, AUTO, RESTARTED, FRUGAL[1]), iterations=8),
        Experiment("schemes-sums", "sums", (*PAPER, AUTO, RESTARTED), difficulty=(1, 3), iterations=5),
        Experiment("rl-rubric", "rubric", ("rejection:4", *RL_BASELINES), rl=REINFORCED),
        Experiment(
            "noise-rubric",
            "rubric",
            (*FEW, RESTARTED),
            "noise",
            (0.0, 0.1, 0.2, 0.3),
            iterations=24,
            **LAST,
        ),
        Experiment(
            "bound-rubric",
            "rubric",
            FEW,
            seeds=(0, 1),
            iterations=8,
            settings={"bound_draws": 8},
        ),
        Experiment("size-rubric", "rubric", (*FEW, RESTARTED), "num_train", (50, 100, 200, 400), **LAST),
        Experiment("draws-rubric", "rubric", ("rejection:M",), "M", (1, 2, 4, 8), **LAST),
        Experiment("base-rubric", "rubric", FEW, "model", BASES, (0, 1, 2), **LAST),
    )
}

# --- figures

WORLDS = ("schemes-rubric", "schemes-tldr", "schemes-sums")

FIGURES: dict[str, Figure] = {
    each.name: each
    for each in (
        Figure(
            "tokens",
            "curves",
            WORLDS,
            "Held-out accuracy and the share of sound steps against tokens generated in training, by "
            "scheme, a column of panels for each world.",
            x="generated_tokens",
            also=("spearman", "sound_rationales", "kept_share", "covered_share"),
            baselines=("votes", "answer-only"),
        ),
        Figure(
            "seconds",
            "curves",
            WORLDS,
            "Held-out accuracy and the share of sound steps against seconds of drawing and training, by "
            "scheme, a column of panels for each world.",
            x="seconds",
            baselines=("votes", "answer-only"),
        ),
        Figure(
            "rl",
            "curves",
            ("rl-rubric",),
            "Held-out accuracy and the share of sound steps against tokens generated in training, of "
            "rejection(4) and of reinforcement learning.",
            x="generated_tokens",
            also=("spearman", "sound_rationales"),
        ),
        Figure(
            "noise",
            "setting",
            ("noise-rubric",),
            "Accuracy on clean held-out labels and the share of sound steps against the share of wrong "
            "training labels, by scheme.",
            x_title="share of wrong training labels",
            also=("kept_share",),
        ),
        Figure(
            "size",
            "setting",
            ("size-rubric",),
            "Held-out accuracy and the share of sound steps against the number of training problems, by "
            "scheme.",
            x_title="training problems",
            scale="log",
        ),
        Figure(
            "draws",
            "setting",
            ("draws-rubric",),
            "Held-out accuracy and the share of sound steps against the most draws for each problem.",
            x_title="most draws for each problem, M",
            scale="log",
            also=("kept_share", "generated_tokens", "seconds"),
        ),
        Figure(
            "base",
            "setting",
            ("base-rubric",),
            "Held-out accuracy and the share of sound steps after training, by the base that it began "
            "with and by scheme.",
            x_title="base",
            scale="names",
        ),
        Figure(
            "bound",
            "scatter",
            ("bound-rubric",),
            "Held-out accuracy against the bound on the log-likelihood of the answers, one mark for "
            "each checkpoint.",
            x="bound",
            measures=("accuracy",),
        ),
    )
}


def command(figure: Figure) -> str:
    """What makes the figure again.

    >>> command(FIGURES["noise"])
    'python bench/findings.py run noise-rubric'
    """
    return f"python bench/findings.py run {' '.join(figure.experiments)}"
