"""The rungs of a ladder: in which order, which suit a task, and how each is measured.

A rung is a run in a folder of its own, made by the code of `compare` and `train`; here it is known what
its run stored, and where. `setup` is spent once, on training problems; `use` on the held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from femtune.comparison.baseline_draws import Baseline
from femtune.comparison.baselines import baseline_settings, both_orders, most_frequent, run_on
from femtune.comparison.ladder import chosen_examples
from femtune.comparison.ladder.cost import (
    NO_TOKENS,
    PromptLengths,
    Tokens,
    answer_tokens,
    learning_tokens,
    trained,
)
from femtune.comparison.regression_baseline import check_regression
from femtune.config import CHANGEABLE, Train
from femtune.data.partition import Parts
from femtune.data.tasks.frames import frame
from femtune.errors import DataError
from femtune.estep.answer_probs import closed_set
from femtune.evaluation.answer_metrics import side_by_side
from femtune.evaluation.evaluate import evaluation_metrics, group_of
from femtune.evaluation.item_scores import Scores, probability_scores, stored_scores
from femtune.evaluation.scored_answers import read_scored, score_into
from femtune.loop import Progress
from femtune.metric_types import EvaluationMetrics, History
from femtune.model_info import is_base
from femtune.resolve import Data, TaskInputs
from femtune.runs.draws import drawn, read_draws
from femtune.runs.run import open_run, stored_config
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.types import Problem, Sampling
from femtune.workflows.train import run_train

# in the order in which they run, by what they usually cost
RUNGS = {
    "majority": "the most frequent answer of the training problems",
    "direct": "the base's likeliest answer right after the prompt, without reasons",
    "base": "the base's reasons and answer, greedy",
    "examples": "the same with worked examples in the prompt",
    "regression": "a regression on what the base says: its ratings and hidden states",
    "votes": "the base by vote over several rationales",
    "probabilities": "the mean probability of each answer after the same rationales",
    "chosen-examples": "the base with examples in the prompt that were chosen among its own, greedy",
    "answer-only": "fine-tuned on answers without reasons, greedy",
    "fem": "trained to reason by filtered EM, greedy",
    "fem-votes": "the same model by vote over several rationales",
    "fem-probabilities": "the mean probability of each answer after the same rationales",
}
TRAINED = ("answer-only", "fem", "fem-votes", "fem-probabilities")
OWN_MODEL = ("chosen-examples", *TRAINED)  # rungs whose run has left a model
AFTER = {"probabilities": "votes", "fem-votes": "fem", "fem-probabilities": "fem-votes"}
REGRESSION_DRAWS = 4  # rationales of each training problem, for the regression's ratings


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Hold what all rungs of a ladder share."""

    data: Data
    model: str
    settings: Train
    asked: TaskInputs[Train]
    train: list[Problem]  # fem sets its development part aside from these
    test: list[Problem]
    folder: Path
    draws: int  # rationales of a held-out problem, for votes and probabilities
    builder: SamplerBuilder
    examples: Train  # settings of the rung that chooses examples
    reward: Callable[..., Any] | None = None

    @property
    def by_id(self) -> dict[str, Problem]:
        return {problem.id: problem for problem in self.test}

    @property
    def groups(self) -> list[str]:
        """Return each held-out problem's cluster, which is resampled as one."""
        return [group_of(problem) for problem in self.test]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished rung: its accuracy, each problem's part in it, and its tokens."""

    metrics: EvaluationMetrics
    scores: Scores
    setup: Tokens = NO_TOKENS
    use: Tokens = NO_TOKENS
    detail: Mapping[str, Any] = field(default_factory=dict)


def unsuitable(name: str, ground: Ground) -> str:
    """Return why a rung does not suit the data, the model or the engine; "" if it does."""
    settings, problems = ground.settings, ground.test
    if name in AFTER and (why := unsuitable(AFTER[name], ground)):
        return why
    if name in ("direct", "probabilities", "fem-probabilities"):
        if not all(map(closed_set, problems)):
            return "the answers are no closed set"
        if not ground.asked.prompts.format.cue:
            return f"answer format {settings.answer_format} has no cue"
        if settings.engine in ("openai", "chat"):
            return "a server may not score answers"
    if name == "examples" and not ground.builder.demos:
        has_form = not is_base(ground.model, ground.settings) and ground.settings.demos == "auto"
        return "the model knows the form" if has_form else "there are no worked examples to show"
    if name == chosen_examples.NAME:
        return chosen_examples.unsuited(ground.examples, ground.train)
    if name in TRAINED and settings.m_step == "examples":
        return "--m-step examples trains no weights"
    if name == "regression":
        if settings.engine == "chat":
            return "the server keeps the hidden states to itself"
        if not (find_spec("sklearn") and find_spec("scipy")):
            return "scikit-learn is not installed (pip install femtune[all])"
        try:
            check_regression(both_orders(ground.train, ground.asked.problems))
        except DataError as error:
            return str(error).removeprefix("baseline regression").lstrip(": ")
    return ""


def measure(name: str, ground: Ground, progress: Progress) -> Measured:
    """Run or resume a rung, and measure it. Raises what its run raises."""
    return _MEASURES[name](ground, progress)


def _baseline(
    name: str, ground: Ground, progress: Progress, kind: str = "", model: str | None = None
) -> History:
    """Run a rung that is a baseline of `compare`, named `kind` there."""
    draws = REGRESSION_DRAWS if name == "regression" else ground.draws
    made = baseline_settings(kind or name, ground.settings, draws)
    settings: Baseline = replace(made, scheme=name)
    own = replace(ground.asked, settings=settings)
    parts = Parts(ground.train, [], ground.test)
    place = ground.folder / name
    return run_on(own, parts, ground.data, model or ground.model, settings, place, progress=progress)


def _stored(ground: Ground, name: str, kind: str = "eval", iteration: int = 0) -> Path:
    return ground.folder / name / f"iteration-{iteration:03}" / kind


def _scores(ground: Ground, name: str, row: str = "", *, iteration: int = 0, **how: Any) -> Scores:
    """Return the scores of a rung's run, or of one of its rows: see `stored_scores`."""
    return stored_scores(ground.folder / name, iteration, **how)[row]


def _lengths(ground: Ground) -> PromptLengths:
    return PromptLengths(ground.builder, ground.asked.problems, ground.train, ground.test)


def _majority(ground: Ground, progress: Progress) -> Measured:
    metrics = _baseline("majority", ground, progress)[-1]["evaluation"]
    scores = _scores(ground, "majority")
    return Measured(metrics=metrics, scores=scores, detail={"answer": most_frequent(ground.train)})


def _direct(ground: Ground, progress: Progress) -> Measured:
    metrics = _baseline("direct", ground, progress)[-1]["evaluations"]["direct"]
    lengths, builder = _lengths(ground), ground.builder
    prompt = sum(lengths.of(problem.id, demos=bool(builder.demos)) for problem in ground.test)
    scored = answer_tokens(builder, {problem.id: closed_set(problem) for problem in ground.test})
    use = Tokens(prompt=prompt, scored=scored)
    return Measured(metrics=metrics, scores=_scores(ground, "direct", "direct"), use=use)


def _greedy(name: str, kind: str) -> Callable[[Ground, Progress], Measured]:
    def measured(ground: Ground, progress: Progress) -> Measured:
        metrics = _baseline(name, ground, progress)[-1]["evaluation"]
        use = _lengths(ground).drawn(_stored(ground, name, kind))
        return Measured(metrics=metrics, scores=_scores(ground, name, kind=kind), use=use)

    return measured


def _regression(ground: Ground, progress: Progress) -> Measured:
    rows = _baseline("regression", ground, progress)[-1]["evaluations"]
    # the classifiers: the ladder counts right answers, and least squares is after small errors
    known = frame(ground.test[0])
    row = "logistic+embedding" if known is not None and known.form == "pair" else "mn+embedding"
    lengths = _lengths(ground)
    training, held_out = _stored(ground, "regression", "draws"), _stored(ground, "regression")
    return Measured(
        metrics=rows[row],
        scores=_scores(ground, "regression", row),
        setup=lengths.drawn(training) + lengths.reread(training),
        use=lengths.drawn(held_out) + lengths.reread(held_out),
        detail={"row": row},
    )


def _votes(ground: Ground, progress: Progress) -> Measured:
    return _by_vote("votes", ground, _baseline("votes", ground, progress), ground.builder)


def _by_vote(name: str, ground: Ground, history: History, builder: SamplerBuilder) -> Measured:
    use = PromptLengths(builder, ground.test).drawn(_stored(ground, name))
    scores = _scores(ground, name, by_vote=True)
    return Measured(metrics=history[-1]["evaluation"], scores=scores, use=use)


def _probabilities(name: str, ground: Ground, progress: Progress, builder: SamplerBuilder) -> Measured:
    """Score the answers after the draws of a rung of votes, in its run."""
    root, test = ground.folder / name, ground.test
    progress.phase("scoring of answers", 0, 0)
    with open_run(root, stored_config(root), CHANGEABLE) as run:
        target = run.iteration(0) / "eval_answers"
        if len([*target.glob("*.parquet")]) < -(-len(test) // ground.settings.chunk_size):
            with builder.sampler(Sampling(ground.settings.max_new_tokens, 1.0)) as sampler:
                score_into(run, "eval", test, replace(sampler, demos=builder.demos))
    folder, scored = _stored(ground, name), read_scored(target)
    both = side_by_side(ground.by_id, read_draws(folder), scored)
    lengths = PromptLengths(builder, test)
    reread = lengths.reread(folder)  # each rationale is read again, before its answers are scored
    answers = {p.id: closed_set(p) * ground.draws for p in test}
    scoring = Tokens(prompt=reread.prompt + reread.scored, scored=answer_tokens(builder, answers))
    scores: dict[str, float] = {}
    for chunk in drawn(folder):  # a problem's draws are in one chunk
        scores |= probability_scores(chunk, ground.by_id, scored)
    metrics: EvaluationMetrics = {
        **evaluation_metrics(ground.by_id, read_draws(folder)),
        **both["by_probabilities"],
    }
    return Measured(metrics=metrics, scores=scores, use=lengths.drawn(folder) + scoring)


def _answer_only(ground: Ground, progress: Progress) -> Measured:
    history = _baseline("answer-only", ground, progress)
    return Measured(
        metrics=history[-1]["evaluation"],
        scores=_scores(ground, "answer-only", iteration=1),
        setup=Tokens(trained=trained(history)),
        use=_lengths(ground).drawn(_stored(ground, "answer-only", iteration=1)),
        detail={"model": str(ground.folder / "answer-only" / "iteration-001" / "model")},
    )


# --- chosen examples


def _chosen_examples(ground: Ground, progress: Progress) -> Measured:
    place, settings = ground.folder / chosen_examples.NAME, ground.examples
    done = run_train(ground.data, ground.model, settings, place, progress, reward=ground.reward)
    [_, measured], lengths, model = done.history, _lengths(ground), str(done.best)
    m_step = measured["m_step"]
    chosen = make_sampler_builder(model, own_examples(ground.asked), ground.test)
    choice = Tokens(generated=m_step["generated_tokens"], prompt=m_step["prompt_tokens"])
    return Measured(
        metrics=measured["evaluation"],
        scores=_scores(ground, chosen_examples.NAME, iteration=1),
        setup=lengths.drawn(_stored(ground, chosen_examples.NAME, "draws", 1)) + choice,
        use=PromptLengths(chosen, ground.test).drawn(_stored(ground, chosen_examples.NAME, iteration=1)),
        detail={"model": model, "num_examples": m_step["num_examples"], "why": m_step["why"]},
    )


def own_examples(asked: TaskInputs[Any]) -> TaskInputs[Any]:
    """Return inputs that leave a model the examples in its femtune.json."""
    return replace(asked, settings=replace(asked.settings, demos="auto"), demos=())


# --- filtered EM


def _fem(ground: Ground, progress: Progress) -> Measured:
    place = ground.folder / "fem"
    done = run_train(ground.data, ground.model, ground.settings, place, progress, reward=ground.reward)
    best, lengths = done.best_iteration, _lengths(ground)
    return Measured(
        metrics=next(each for each in done.history if each["iteration"] == best)["evaluation"],
        scores=_scores(ground, "fem", iteration=best),
        setup=learning_tokens(place, done.history, lengths),
        use=lengths.drawn(_stored(ground, "fem", iteration=best)),
        detail={"model": str(done.best), "iteration": best},
    )


def _trained_builder(ground: Ground) -> tuple[str, SamplerBuilder]:
    model = str(ground.folder / "fem" / "best")
    return model, make_sampler_builder(model, ground.asked, ground.test)


def _fem_votes(ground: Ground, progress: Progress) -> Measured:
    model, builder = _trained_builder(ground)
    history = _baseline("fem-votes", ground, progress, "votes", model)
    return replace(_by_vote("fem-votes", ground, history, builder), detail={"model": model})


def _fem_probabilities(ground: Ground, progress: Progress) -> Measured:
    model, builder = _trained_builder(ground)
    made = _probabilities("fem-votes", ground, progress, builder)
    return replace(made, detail={"model": model})


_MEASURES: dict[str, Callable[[Ground, Progress], Measured]] = {
    "majority": _majority,
    "direct": _direct,
    "base": _greedy("base", "eval"),
    "examples": _greedy("examples", "eval_demos"),
    "regression": _regression,
    "votes": _votes,
    "probabilities": lambda ground, progress: _probabilities("votes", ground, progress, ground.builder),
    "chosen-examples": _chosen_examples,
    "answer-only": _answer_only,
    "fem": _fem,
    "fem-votes": _fem_votes,
    "fem-probabilities": _fem_probabilities,
}
