"""Quantitative judges: regressions from a frozen judge's completions to the human's answer.

After Sahoo et al. 2025, "Quantitative LLM Judges", arXiv 2506.02945. There a frozen judge writes an
evaluation e and a score b, and a linear model maps an embedding phi(e) and b to the human's score.
Theirs are LS, f = (phi(e), b) theta + c by least squares, and MN, a multinomial logistic regression on
phi(e) and the judge's own log p. This module does the same, with these differences:

    ls            b is the mean over the draws; the prediction is a real number, not clipped to the
                  scale, and its nearest answer is what counts in accuracy
    mn            p is the shares of votes, half a vote added to each answer, and log p has separate
                  coefficients; accuracy uses the likeliest answer, correlations and MAE the mean
    logistic      for pairs: mn over A, B (and a tie) in the order shown; fitted on both orders
    score         only b, or log p;  +embedding adds phi(e), as in the paper
    phi(e)        the base's last hidden state, averaged over the tokens of a completion after its
                  prompt, and over draws; all features are standardized
    penalty       L2, by five-fold cross-validation on the training problems, an item's in one fold
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from femtune.evaluation.bootstrap import (
    CORRELATIONS,
    Floats,
    Ints,
    bootstrap,
    correlations,
    mean,
    summary,
)
from femtune.evaluation.evaluate import as_item
from femtune.evaluation.metrics import count_votes, scale_values
from femtune.metric_types import EvaluationMetrics
from femtune.runs.draws import by_problem, read_draws
from femtune.sampler import SamplerBuilder
from femtune.types import Problem

PENALTIES = np.logspace(-2, 5, 8)  # for the sum of squares over items; 1 / C for logistic regression
PASS_TOKENS = 8192  # maximum padded tokens in one pass for embeddings
REAL = ("mae", "rmse", *CORRELATIONS)  # measures of predictions that are real numbers


@dataclass(frozen=True)
class Features:
    """The features of a regression, one row per problem."""

    counts: Floats  # [problems, scale]: number of draws with each answer
    embedding: Floats  # [problems, hidden size]


def features(
    model: Any, builder: SamplerBuilder, problems: Sequence[Problem], folder: Path, scale: Sequence[str]
) -> Features:
    """Return votes and mean embedding of each problem's stored draws, in the order of the problems."""
    of_problem = {
        problem_id: draws for chunk, _ in read_draws(folder) for problem_id, draws in by_problem(chunk)
    }
    items = [as_item(problem, of_problem[problem.id]) for problem in problems]
    pairs = []
    for problem in problems:
        prompt = builder.tokenizer.encode_prompt(builder.prompts.plain(problem))
        pairs += [(prompt, draw.completion.tokens) for draw in of_problem[problem.id]]
    vectors = embeddings(model, pairs)
    means = vectors.reshape(len(problems), -1, vectors.shape[1]).mean(axis=1)  # equal numbers of draws
    return Features(count_votes(items, scale).counts, means)


def embeddings(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Floats:
    """Return each completion's last hidden state after its prompt, mean over tokens; [pairs, hidden].

    A completion without tokens gives zeros. Equal pairs are passed through the model once.
    """
    import torch

    from femtune.engines.hf.model import pad, spans

    distinct = sorted({(tuple(p), tuple(c)) for p, c in pairs}, key=lambda pair: sum(map(len, pair)))
    rows = {}
    with torch.inference_mode():
        for start, stop in spans([len(p) + len(c) for p, c in distinct], PASS_TOKENS):
            part = distinct[start:stop]
            tokens = pad([[*prompt, *completion] for prompt, completion in part], model.device)
            # padding is at the right, where causal attention hides it
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state.float()
            for row, (prompt, completion) in enumerate(part):
                written = hidden[row, len(prompt) : len(prompt) + len(completion)]
                rows[prompt, completion] = written.sum(0).div(max(1, len(completion))).cpu().numpy()
    found: Floats = np.array([rows[tuple(p), tuple(c)] for p, c in pairs], float)
    return found


def predictions(
    pair: bool,
    scale: Sequence[str],
    train: Features,
    truth: Ints,
    groups: Sequence[str],
    test: Features,
) -> dict[str, tuple[list[str], Floats | None]]:
    """Return, by kind of regression, the held-out problems' answers, and real values for ratings.

    `truth` holds positions on the scale; training problems that share a group are in one fold.
    """
    worth = scale_values(scale)
    logs = [log_shares(seen.counts) for seen in (train, test)]
    means = [(mean_shares(seen.counts) @ worth)[:, None] for seen in (train, test)]
    found: dict[str, tuple[list[str], Floats | None]] = {}
    for ending, wide in ((" score", False), ("+embedding", True)):
        more = [seen.embedding if wide else seen.embedding[:, :0] for seen in (train, test)]
        if not pair:
            x, x_test = (np.hstack(each) for each in zip(means, more, strict=True))
            values = least_squares(x, worth[truth], groups, x_test)
            nearest = np.abs(values[:, None] - worth).argmin(axis=1)
            found[f"ls{ending}"] = [scale[at] for at in nearest], values
        x, x_test = (np.hstack(each) for each in zip(logs, more, strict=True))
        chances = multinomial(x, truth, groups, x_test, len(scale))
        likeliest = [scale[at] for at in chances.argmax(axis=1)]
        name = f"logistic{ending}" if pair else f"mn{ending}"
        found[name] = likeliest, None if pair else chances @ worth
    return dict(sorted(found.items()))


def log_shares(counts: Floats) -> Floats:
    """Return log shares of votes, with half a vote added to each answer; [problems, scale]."""
    logs: Floats = np.log((counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True))
    return logs


def mean_shares(counts: Floats) -> Floats:
    """Return the shares of votes, uniform without votes; [problems, scale]."""
    cast = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, 1.0)
    shares: Floats = cast / cast.sum(axis=1, keepdims=True)
    return shares


def folds(groups: Sequence[str]) -> list[tuple[Ints, Ints]]:
    """Return five folds, or one per group if fewer: rows to fit on and to test on."""
    from sklearn.model_selection import GroupKFold  # slow to import, here and below

    parts = GroupKFold(min(5, len(set(groups)))).split(np.zeros(len(groups)), groups=list(groups))
    return [(fit, rest) for fit, rest in parts]


def least_squares(x: Floats, y: Floats, groups: Sequence[str], x_test: Floats) -> Floats:
    """Fit a ridge regression on standardized features, with the penalty of least error over folds."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridge = RidgeCV(PENALTIES, cv=folds(groups), scoring="neg_mean_squared_error")
    values: Floats = make_pipeline(StandardScaler(), ridge).fit(x, y).predict(x_test)
    return values


def multinomial(
    x: Floats, truth: Ints, groups: Sequence[str], x_test: Floats, num_answers: int
) -> Floats:
    """Return probabilities [problems, answers] of a logistic regression on standardized features.

    The penalty is the one with the least log loss over folds. An answer missing in the fitted data has
    probability 0, and 1e-9 in the loss.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x, x_test = scaler.transform(x), scaler.transform(x_test)
    losses = np.zeros(len(PENALTIES))
    for fit, rest in folds(groups):
        for at, penalty in enumerate(PENALTIES):
            chances = _logistic(x[fit], truth[fit], x[rest], num_answers, penalty)
            losses[at] -= np.log(chances[np.arange(len(rest)), truth[rest]].clip(1e-9)).sum()
    return _logistic(x, truth, x_test, num_answers, float(PENALTIES[losses.argmin()]))


def _logistic(x: Floats, truth: Ints, x_test: Floats, num_answers: int, penalty: float) -> Floats:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    there = np.unique(truth)
    chances = np.zeros((len(x_test), num_answers))
    if len(there) == 1:  # a fold may have only one answer
        chances[:, there] = 1.0
        return chances
    with warnings.catch_warnings():  # a weak penalty may not converge; it is then not chosen
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=1 / penalty, max_iter=1000).fit(x, truth)
    chances[:, there] = fitted.predict_proba(x_test)
    return chances


def with_values(
    metrics: EvaluationMetrics, problems: Sequence[Problem], values: Floats, scale: Sequence[str]
) -> EvaluationMetrics:
    """Return an evaluation of ratings with errors and correlations of real-valued predictions."""
    worth = scale_values(scale)
    truth = worth[[list(scale).index(problem.answer) for problem in problems]]
    real = value_metrics(truth, values, [as_item(problem, ()).resampled for problem in problems])
    undefined = {
        name: why for name, why in metrics.get("undefined", {}).items() if name not in real
    } | real.pop("undefined", {})
    old = {"undefined", *(f"{name}{end}" for name in REAL for end in ("", "_ci"))}
    made = {name: value for name, value in metrics.items() if name not in old} | real
    return cast(EvaluationMetrics, made | ({"undefined": undefined} if undefined else {}))


def value_metrics(
    truth: Floats, values: Floats, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute mae, rmse and correlations like `metrics.rating_metrics`, for real numbers."""
    x, y = values.round(12), truth.round(12)
    few = len(y) < 3

    def statistic(weights: Floats) -> dict[str, Floats]:
        none = np.full(len(weights), np.nan)
        return {
            "mae": mean(weights, np.abs(x - y)),
            "rmse": np.sqrt(mean(weights, (x - y) ** 2)),
            **(dict.fromkeys(CORRELATIONS, none) if few else correlations(weights, x, y)),
        }

    same = "ratings" if np.ptp(y) == 0 else "predictions"
    reason = "fewer than 3 items" if few else f"all {same} are the same"
    return summary(bootstrap(statistic, groups, resamples, seed), dict.fromkeys(CORRELATIONS, reason))
