"""Warnings of what E-steps and evaluations show, each with its remedy, and why nothing was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from femtune.evaluation.chance import binomial_interval
from femtune.metric_types import DrawMetrics, EStepMetrics, EvaluationMetrics, History
from femtune.types import Scheme

FEW_ANSWERED = 0.5  # of the draws
FEW_KEPT = 0.05  # of the problems
MANY_TRUNCATED = 0.2  # of the draws
MUCH_TIME = 0.2  # of a run, for measuring

# What to do where most draws were refused for a reason.
_REMEDIES = {
    "truncated": (
        "Most draws were truncated: raise --max-new-tokens, or show worked examples (--demos FILE)."
    ),
    "parse_error": (
        "Most draws have no answer that can be read: show worked examples (--demos FILE), or set "
        "--answer-format to the form that the model writes."
    ),
    "wrong": (
        "Most answers are wrong: lower --temperature, allow more attempts (--scheme rejection:{more}), "
        "or begin with easier problems."
    ),
    "hint_leak": (
        "Most rationales mention the hint: change --hint, or draw without hints (--scheme rejection:4)."
    ),
    "reward_failed": "Most draws have no reward, as it failed: run it by itself on one of them.",
    "engine_failed": "Most draws failed in the engine: its messages say why.",
}


@dataclass(frozen=True)
class Warned:
    """One warning: its kind, of which a run says each once, and its text."""

    kind: str
    text: str


def e_step_warnings(metrics: EStepMetrics, max_new_tokens: int, scheme: Scheme) -> list[Warned]:
    """Return the warnings of an E-step from its metrics (`evaluate.estep_metrics`)."""
    if not metrics.get("num_draws"):
        return []
    where = "E-step"
    found = list(_draw_warnings(where, metrics, max_new_tokens))
    kept, luck = metrics.get("kept_share"), metrics.get("luck_share")
    if kept is not None and kept < FEW_KEPT:
        found.append(
            Warned(
                f"{where} kept",
                f"E-step: {metrics['num_kept']} of {metrics['num_problems']} problems have a kept draw. "
                f"{remedy(metrics['reasons'], scheme)} {_CHECK}",
            )
        )
    elif luck is not None and _answered(metrics) >= FEW_ANSWERED:
        num, plain = metrics["num_problems"], metrics["plain_share"]
        low, _ = binomial_interval(round(plain * num), num)
        if low <= luck:
            fewer = (
                "Use fewer attempts (--scheme rejection:1) or show" if _attempts(scheme) > 1 else "Show"
            )
            found.append(
                Warned(
                    f"{where} luck",
                    f"E-step: plain draws kept {plain:.0%} of the problems, and guesses would keep "
                    f"{luck:.0%}: what is kept may be right by luck. {fewer} worked examples (--demos "
                    f"FILE). {_CHECK}",
                )
            )
    return found


def evaluation_warnings(
    metrics: EvaluationMetrics, max_new_tokens: int, *, demos: bool = False
) -> list[Warned]:
    """Return the warnings of an evaluation from its metrics (`evaluate.evaluation_metrics`)."""
    where = "evaluation with worked examples" if demos else "evaluation"
    return list(_draw_warnings(where, metrics, max_new_tokens)) if metrics.get("num_draws") else []


_CHECK = "`femtune check` shows what the model writes."


def _draw_warnings(where: str, metrics: DrawMetrics, max_new_tokens: int) -> Iterator[Warned]:
    start, answered = where[:1].upper() + where[1:], _answered(metrics)
    if answered < FEW_ANSWERED:
        forced = " (without forced answers)" if metrics.get("forced_share") else ""
        yield Warned(
            f"{where} answered",
            f"{start}: {answered:.0%} of the draws have an answer{forced}. `femtune check` shows what "
            "was written instead, and which settings to change.",
        )
    if metrics["truncated_share"] > MANY_TRUNCATED:
        yield Warned(
            f"{where} truncated",
            f"{start}: {metrics['truncated_share']:.0%} of the draws were truncated at --max-new-tokens "
            f"{max_new_tokens}. `femtune check` measures how many tokens they need.",
        )


def _answered(metrics: DrawMetrics) -> float:
    """The share of draws with an answer that was not forced."""
    return float(metrics.get("answered_unforced", metrics["answered"]))


def remedy(reasons: Mapping[str, Mapping[str, int]], scheme: Scheme) -> str:
    """Return what to do about the most frequent reason for refusal, from counts by prompt and reason.

    >>> from femtune import rejection
    >>> remedy({"plain": {"wrong": 3, "kept": 9, "truncated": 4}}, rejection(1)).partition(":")[0]
    'Most draws were truncated'
    """
    total = Counter[str]()
    for counts in reasons.values():
        total.update(counts)
    del total["kept"]
    if not total:
        return ""
    reason, number = total.most_common(1)[0]
    said = _REMEDIES.get(reason, f"The most frequent reason: {reason}.")
    said = said.format(more=max(16, 4 * _attempts(scheme)))
    if reason == "wrong" and not any(stage.prompt_kind == "hinted" for stage in scheme.stages):
        said += " Hints may help: --scheme star."
    return said if 2 * number > total.total() else said.replace("Most ", "Many ", 1)


def _attempts(scheme: Scheme) -> int:
    """Return how many plain draws of a problem the scheme makes at most."""
    return sum(stage.draws for stage in scheme.stages if stage.prompt_kind == "plain")


def time_measuring(history: History) -> tuple[float, float]:
    """Return the seconds that a run's measurements took, and those of all its steps.

    Measurements are evaluations, the development part, the bound, and reading the rationales.
    """
    names = ("evaluation", "evaluation_demos", "development", "posterior", "rationales")
    measuring = training = 0.0
    for metrics in history:
        parts: Mapping[str, Mapping[str, float]] = metrics  # type: ignore[assignment]  # by name
        measuring += sum(parts.get(name, {}).get("total_s", 0.0) for name in names)
        training += parts.get("e_step", {}).get("total_s", 0.0)
        training += parts.get("m_step", {}).get("seconds", 0.0)
    return measuring, measuring + training


def time_advice(history: History) -> str | None:
    """Say what a run's measurements took and how to take less, where it was over a fifth of its time."""
    measuring, whole = time_measuring(history)
    if measuring <= MUCH_TIME * whole:
        return None
    return (
        f"Measuring took {measuring:,.0f} s, {measuring / whole:.0%} of the time of all steps. Less: "
        "--eval-every 2, a smaller --eval-share, --bound-draws 0 or --reader-problems 0."
    )


def has_examples(metrics: EStepMetrics) -> bool:
    """Return False where an E-step's metrics say that there is nothing to train on."""
    if metrics.get("reasons_share", 1) == 0:
        return False
    if "expected_right" in metrics:
        return bool(metrics["expected_right"])
    return bool(metrics["num_kept"] or metrics.get("covered_share"))


def nothing_kept(iteration: int, metrics: EStepMetrics, scheme: Scheme) -> str:
    """Say why an E-step kept nothing: counts by prompt and reason, the likely cause, the remedy."""
    counts = [
        f"{count} {prompt} draws: {reason.replace('_', ' ')}"
        for prompt, reasons in metrics["reasons"].items()
        for reason, count in reasons.items()
    ]
    cause = remedy(metrics["reasons"], scheme)
    if metrics.get("reasons_share") == 0:
        return (
            f"iteration {iteration} kept no draw of {metrics['num_problems']} problems: no rationale of "
            "a right draw makes the correct answer the likeliest one, and likelier than without a "
            "rationale. Choose a scheme without reasons, or show worked examples (--demos FILE)."
        )
    if metrics.get("cued_share") == 0:
        cause = (
            "No draw wrote the cue of --answer-format as it stands, which expected needs: show worked "
            "examples, or choose a scheme without expected."
        )
    return (
        f"iteration {iteration} kept no draw of {metrics['num_problems']} problems "
        f"({'; '.join(counts)}). {cause} `femtune check` with the same settings shows what the model "
        "writes and which settings to change."
    )
