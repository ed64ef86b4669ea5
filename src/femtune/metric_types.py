"""The measures that a run stores, by name: metrics.json of an iteration, and rationales.json beside it.

    {"iteration": 3, "e_step": {"num_kept": 70, ...}, "m_step": {...}, "evaluation": {...}, ...}

The functions that make them say what each is: `evaluate.estep_metrics`, `evaluate.evaluation_metrics`,
`likelihood_bound.posterior_metrics`, `rationales.rationale_metrics`, `selection_bias`. A measure `m` may
have its interval `m_ci`. None is a measure that is undefined; where it is not applicable, it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

Interval = list[float]  # low, high


@dataclass(frozen=True, kw_only=True)
class Served:
    """Describe a completion of text by what its server says: the model, and all requests' tokens.

    Counts are None where the server does not give them.
    """

    model: str = ""  # the model that answered, by its own name
    fingerprint: str = ""  # of the server's configuration, where it gives one
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    requests: int = 1
    # how an answer was forced: by a prefill that the model continues, or by a turn that asks for it
    forced_by: Literal["", "prefill", "turn"] = ""


class DrawMetrics(TypedDict, total=False):
    """Counts, shares and seconds that every set of draws has."""

    num_problems: int
    num_draws: int
    answered: float
    answered_unforced: float
    forced_share: float
    truncated_share: float
    generated_tokens: int
    tokens_per_draw: float
    engine_s: float
    total_s: float
    sound_steps: float  # in a synthetic task
    sound_rationales: float


class KeptShare(TypedDict):
    """The share of a group of problems that was kept."""

    kept_share: float
    kept_share_ci: Interval
    num_problems: int


KeptBy = dict[str, dict[str, KeptShare]]  # by kind of group and group


class KeptScores(TypedDict, total=False):
    """Human scores of all problems and of kept ones."""

    mode: str
    mode_share: float
    score_mean: float
    score_sd: float
    kept_mode_share: float | None
    kept_score_mean: float | None
    kept_score_sd: float | None
    mean_shift: float | None
    sd_shift: float | None
    mode_shift: float | None
    score_mean_ci: Interval
    score_sd_ci: Interval
    mode_share_ci: Interval
    kept_score_mean_ci: Interval
    kept_score_sd_ci: Interval
    kept_mode_share_ci: Interval
    mean_shift_ci: Interval
    sd_shift_ci: Interval
    mode_shift_ci: Interval
    undefined: dict[str, str]


class EStepMetrics(DrawMetrics, total=False):
    """The measures of an E-step."""

    num_kept: int
    kept_share: float | None
    solved_by: dict[str, int]
    reasons: dict[str, dict[str, int]]  # by prompt and reason
    luck_share: float
    plain_share: float
    teacher_tokens: int  # drawn by another model; generated_tokens are the student's own
    # how what is kept differs from all
    kept_by: KeptBy
    kept_scores: KeptScores
    balance: dict[str, float]
    balance_clipped: list[str]
    # of schemes that need log-probabilities, or remember draws
    scored_tokens: int
    scoring_s: float
    covered_share: float
    # of schemes that need the probability of answers
    expected_right: float | None
    cued_share: float | None
    reasons_share: float | None
    reasons_logprob: float | None
    likeliest_share: float | None
    # of reinforcement learning
    reward: float


class MStepMetrics(TypedDict, total=False):
    """The measures of an M-step; baselines have some of them."""

    num_examples: int
    num_steps: int
    trained_tokens: int
    loss: float
    seconds: float
    num_epochs: float
    batch_size: int
    learning_rate: float
    bf16: bool
    exported_gain_share: float | None
    averaged_share: float | None  # of the new weights in the exported mean
    # of one that chooses examples
    num_candidates: int
    num_sets: int
    num_swaps: int
    replaced: bool
    why: str
    gain: float  # in accuracy, of the best set less the current one, on problems that chose nothing
    gain_ci: Interval
    gain_p_value: float  # two-sided
    num_requests: int
    prompt_tokens: int
    generated_tokens: int


class EvaluationMetrics(DrawMetrics, total=False):
    """The measures of an evaluation; `pass_at_2`, `pass_at_4` ... of mathematics stand beside these."""

    accuracy: float
    accuracy_ci: Interval
    accuracy_unforced: float
    accuracy_unforced_ci: Interval
    majority_accuracy: float
    majority_accuracy_ci: Interval
    draw_accuracy: float
    draw_accuracy_ci: Interval
    within_one: float | None
    within_one_ci: Interval
    kappa: float | None
    kappa_ci: Interval
    mae: float | None
    mae_ci: Interval
    within_one_percent: float  # of free numbers
    within_one_percent_ci: Interval
    median_relative_error: float | None
    median_relative_error_ci: Interval
    rmse: float | None
    rmse_ci: Interval
    pearson: float | None
    pearson_ci: Interval
    spearman: float | None
    spearman_ci: Interval
    kendall: float | None
    kendall_ci: Interval
    ceiling_accuracy: float
    ceiling_accuracy_ci: Interval
    ceiling_mae: float
    ceiling_mae_ci: Interval
    ceiling_spearman: float | None
    ceiling_spearman_ci: Interval
    agreement: float | None
    agreement_ci: Interval
    position_consistency: float | None
    position_consistency_ci: Interval
    first_share: float | None
    first_share_ci: Interval
    ece: float | None
    ece_ci: Interval
    brier: float | None
    brier_ci: Interval
    log_likelihood: float | None
    log_likelihood_ci: Interval
    undefined: dict[str, str]  # why a measure is None


class BothWays(TypedDict, total=False):
    """The same draws measured by votes and by probabilities, and by what a calibration maps."""

    by_votes: EvaluationMetrics
    by_probabilities: EvaluationMetrics
    calibrated: EvaluationMetrics


class EvaluateMetrics(EvaluationMetrics, BothWays, total=False):
    """The report of `evaluate`: an evaluation; for a base model, with worked examples too."""

    ece_raw: float | None  # before a calibration of votes
    ece_raw_ci: Interval
    brier_raw: float | None
    brier_raw_ci: Interval
    accuracy_with_examples: float
    accuracy_ci_with_examples: Interval
    accuracy_unforced_with_examples: float
    accuracy_unforced_ci_with_examples: Interval
    answered_with_examples: float
    forced_share_with_examples: float
    truncated_share_with_examples: float
    spearman_with_examples: float | None
    spearman_ci_with_examples: Interval
    mae_with_examples: float | None
    mae_ci_with_examples: Interval
    within_one_percent_with_examples: float
    within_one_percent_ci_with_examples: Interval
    median_relative_error_with_examples: float | None
    median_relative_error_ci_with_examples: Interval
    by_votes_with_examples: EvaluationMetrics
    by_probabilities_with_examples: EvaluationMetrics
    rationales: RationaleMetrics


class PosteriorMetrics(TypedDict, total=False):
    """The bound on the likelihood, and what hints give away."""

    num_problems: int
    draws: int
    bound: float
    bound_ci: Interval
    likelihood: float
    likelihood_ci: Interval
    ess_share: float
    ess_share_ci: Interval
    leak_share: float
    leak_share_ci: Interval
    leak_logprob: float | None
    leak_logprob_ci: Interval
    undefined: dict[str, str]
    generated_tokens: int
    scored_tokens: int
    total_s: float


class RationaleMetrics(TypedDict, total=False):
    """The worth of rationales to the base, as another reader."""

    num_problems: int
    num_rationales: int
    rationale_gain: float | None
    rationale_gain_ci: Interval
    choice_gain: float | None
    choice_gain_ci: Interval
    helpful_share: float
    helpful_share_ci: Interval
    read_accuracy: float
    read_accuracy_ci: Interval
    direct_accuracy: float
    direct_accuracy_ci: Interval
    log_direct: float | None
    log_direct_ci: Interval
    copied_share: float | None
    copied_share_ci: Interval
    copied_density: float | None
    copied_density_ci: Interval
    undefined: dict[str, str]
    scored_tokens: int
    total_s: float


class IterationMetrics(TypedDict, total=False):
    """The measures of an iteration; iteration 0 is the base, and has an evaluation alone."""

    iteration: int
    e_step: EStepMetrics
    m_step: MStepMetrics
    evaluation: EvaluationMetrics
    development: EvaluationMetrics  # of the development part, by which the best iteration is chosen
    evaluation_demos: EvaluationMetrics  # of the base, with worked examples in its prompts
    evaluations: dict[str, EvaluationMetrics]  # of a baseline that measures several models
    posterior: PosteriorMetrics
    rationales: RationaleMetrics
    nothing_kept: str  # of a comparison: why a run ended


History = list[IterationMetrics]
Part = Literal[  # of an iteration
    "e_step", "m_step", "development", "evaluation", "posterior", "rationales"
]


def measure(metrics: Mapping[str, object], name: str) -> float | None:
    """Return a measure by its name, None if it is missing, undefined, or no number.

    >>> measure({"accuracy": 0.5, "undefined": {}}, "accuracy")
    0.5
    """
    found = metrics.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def interval(metrics: Mapping[str, object], name: str) -> tuple[float, float] | None:
    """Return the interval of a measure, None if it has none.

    >>> interval({"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}, "accuracy")
    (0.4, 0.6)
    """
    found = metrics.get(f"{name}_ci")
    return (float(found[0]), float(found[1])) if isinstance(found, list) and len(found) == 2 else None
