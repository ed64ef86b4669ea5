"""Filtered expectation maximization: E-step, M-step, evaluation, K times.

    theta_k = theta_{k-1} + eta sum_i r(yhat_i, y*_i) grad log pi(zhat_i, yhat_i | x_i; theta)
    (zhat_i, yhat_i) ~ q(. | x_i, y*_i; theta_{k-1})

(Lee et al. 2025, arXiv 2512.20169.) Stored results are not computed again, so the same call resumes a
killed run. Stored files are checked before they are used: see manifest.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from femtune._util import interrupts
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.tasks.labels import label_of
from femtune.engines.weight_check import serve
from femtune.errors import NothingKept
from femtune.estep.driver import e_step
from femtune.estep.forced_answers import Force
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import ScoredDraws
from femtune.evaluation.advice import (
    Warned,
    e_step_warnings,
    evaluation_warnings,
    has_examples,
    nothing_kept,
)
from femtune.evaluation.chance import plain_attempts
from femtune.evaluation.evaluate import ask_into, estep_metrics, evaluation_metrics, teacher_tokens
from femtune.evaluation.likelihood_bound import bound_into, subset
from femtune.evaluation.rationales import read_all
from femtune.evaluation.scored_answers import Scoring
from femtune.evaluation.selection_bias import kept_metrics, made_factors, outcomes
from femtune.metric_types import (
    EStepMetrics,
    EvaluationMetrics,
    History,
    IterationMetrics,
    MStepMetrics,
    PosteriorMetrics,
)
from femtune.model_info import FILE as MODEL_INFO
from femtune.model_info import ModelInfo, is_trained, write_info
from femtune.mstep.average import mean_before
from femtune.mstep.config import Training
from femtune.mstep.disk import check_room, exported_dtype
from femtune.mstep.examples import write_examples
from femtune.mstep.processes import m_step_function
from femtune.runs.checkpoints import (
    MASTER,
    check_models,
    drop_masters,
    is_out_of_patience,
    keep_models,
    next_start,
)
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.selection.answers import Selection
from femtune.selection.step import choose_examples, sampler_of
from femtune.types import Balance, Demos, Draw, Problem, Sampling, Scheme

log = logging.getLogger("femtune")


class Progress(Protocol):
    """The receiver of a run's progress."""

    def phase(self, name: str, iteration: int, total: int) -> None:
        """Report the start of a phase; `total` is its number of problems, 0 if unknown."""

    def draws(self, draws: Sequence[Draw]) -> None:
        """Report graded draws."""

    def step(self, step: int, steps: int, loss: float) -> None:
        """Report an optimizer step; `loss` is in nats per token."""

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        """Report a completed iteration."""


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation: by default, one greedy draw per held-out problem."""

    draws: int = 1
    temperature: float = 0.0
    every: int = 1  # iterations between evaluations; base and last are always evaluated; 0: never


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The configuration of a run of FEM, without data and engine."""

    scheme: Scheme
    training: Training
    evaluation: Evaluation
    _: KW_ONLY
    iterations: int = 5
    launch: str | None = None  # a launcher's command: M-steps on several processes
    average_weights: bool = False  # models are means over iterations: see average.py
    balance: Balance = "none"  # of examples, by human answer: see selection_bias.balance_factors
    keep_last: int = 0  # newest models to keep, in addition to the best one; 0: all
    patience: int = 0  # iterations without a better model, by the development part, to stop after
    bound_draws: int = 0  # per held-out problem, for the bound: half plain, half hinted; 0: none
    bound_problems: int = 100  # maximum number of held-out problems for the bound
    reader_problems: int = 0  # held-out problems whose rationales the base reads: see rationales.py
    demos: Demos = ()  # in the first E-steps, draws from the base and its evaluation; never in training
    demo_iterations: int = 1
    has_teacher: bool = False  # another model drew in iteration 1: see workflows/teacher.py
    force: Literal["evaluation", "always", "never"] = "evaluation"  # where answers are forced
    selection: Selection | None = None  # M-steps that choose examples; None: those of weights

    def shown_demos(self, iteration: int) -> Demos:
        """Return the worked examples in the prompts of an iteration's E-step."""
        times = 1 if self.selection else self.demo_iterations  # then they are among the candidates
        return self.demos if iteration <= times else ()

    def m_step(self, iteration: int) -> tuple[Literal["previous", "base"], Training]:
        """Return where the M-step of an iteration starts, and how it trains.

        A restart takes more epochs. Once settled, a constant learning rate decays in each M-step.
        """
        training, schedule = self.training, self.scheme.m_steps
        if schedule.restarts(iteration):
            training = training.longer(schedule.epochs_factor)
        elif schedule.settles and training.lr_scheduler_type == "constant":
            training = replace(training, lr_scheduler_type="linear")
        return schedule.origin(iteration), training


def fem(
    run: Run,
    base: Path,
    problems: Sequence[Problem],
    eval_problems: Sequence[Problem],
    config: LoopConfig,
    sampler: Sampler,
    tokenizer: ChatTokenizer,
    progress: Progress,
    info: ModelInfo | None = None,
    dev_problems: Sequence[Problem] = (),
) -> History:
    """Run FEM from the weights in `base`; return the metrics of every iteration, 0 being the base.

    `info` is stored in each model's folder. The best iteration is chosen by `dev_problems`. Raises
    NothingKept if an E-step keeps no draw, and whatever its parts raise.
    """
    steps = Steps(
        run=run,
        base=base,
        problems=problems,
        eval_problems=eval_problems,
        dev_problems=dev_problems,
        config=config,
        sampler=sampler,
        tokenizer=tokenizer,
        progress=progress,
        info=info,
    )
    history = steps.iterate()
    # at the end, so that the base is loaded once
    worth = read_all(steps, config.reader_problems)
    return [
        each | ({"rationales": worth[each["iteration"]]} if each["iteration"] in worth else {})
        for each in history
    ]


@dataclass(kw_only=True)
class Steps:
    """The steps of a run; each one resumes from its stored results."""

    run: Run
    base: Path
    problems: Sequence[Problem]
    eval_problems: Sequence[Problem]
    config: LoopConfig
    sampler: Sampler
    tokenizer: ChatTokenizer
    progress: Progress
    dev_problems: Sequence[Problem] = ()  # the development part: it chooses the best iteration
    info: ModelInfo | None = None  # prompts and settings of the models: see model_info.py
    serving: Path | None = None  # the weights loaded in the engine
    warned: set[str] = field(default_factory=set)  # kinds of warnings already logged

    def iterate(self) -> History:
        """Run all iterations, starting with the base's evaluation, iteration 0."""
        history: History = []
        is_bounded = self._is_bounded()
        for iteration in range(self.config.iterations + 1):
            stored = self.run.iteration(iteration) / "metrics.json"
            is_new = not stored.exists()
            if is_new:
                metrics: IterationMetrics = {"iteration": iteration}
                if iteration > 0:
                    metrics["e_step"] = self.e_step(iteration)
                    metrics["m_step"] = self.m_step(iteration)
                    if self.is_scheduled(iteration) and self.dev_problems:
                        metrics["development"] = self.develop(iteration)
                if self.is_measured(iteration):
                    metrics["evaluation"] = self.evaluate(iteration)
                    if iteration == 0 and self.config.demos:
                        metrics["evaluation_demos"] = self.evaluate(0, self.config.demos)
                    if is_bounded:
                        metrics["posterior"] = self.bound(iteration)
                self.run.write_json(stored, metrics)
                self.run.log("iteration", **metrics)
            self.run.verify(stored)
            history.append(json.loads(stored.read_text()))
            # less patience than before takes back no iteration
            goes_on = (self.run.iteration(iteration + 1) / "metrics.json").exists()
            is_last = not goes_on and is_out_of_patience(history, self.config.patience)
            if iteration and (is_new or is_last or iteration == self.config.iterations):
                keep_models(self.run, history, self.config.keep_last)
            self.progress.measured(iteration, history[-1])
            interrupts.check()
            if is_last:
                break
        if history[-1]["iteration"] and not is_new:
            check_models(self.run, history)
            log.info("%s was done before: its models are as they were stored.", self.run.root)
        return history

    def e_step(self, iteration: int) -> EStepMetrics:
        """Draw rationales from theta_{k-1} and store the scheme's examples."""
        self.progress.phase("E-step", iteration, len(self.problems))
        self.run.log("E-step", iteration=iteration)
        scheme, theta = self.config.scheme, self.weights(iteration - 1)
        # a soft label is sampled again
        problems = [label_of(each, iteration, self.sampler.seed) for each in self.problems]
        sampler = replace(
            sampler_of(self, iteration - 1),
            demos=self.config.shown_demos(iteration),
            force="ended" if self.config.force == "always" else "never",
        )
        scoring = ScoredDraws(self.run, iteration, problems, scheme, sampler)
        self.run.verify(*scoring.files)
        chunks = e_step(
            problems,
            scheme,
            sampler,
            iteration=iteration,
            place=self.place(iteration, "draws", problems, theta),
            on_draws=self.progress.draws,
            choose=scoring.choose,
        )
        for chunk in chunks:  # each chunk is stored before the next is drawn
            self.run.record(self.run.shard(iteration, "draws", chunk.index))
        self._score(scoring, theta)
        folder = self.run.iteration(iteration) / "draws"
        by_id = {problem.id: problem for problem in problems}
        metrics = estep_metrics(by_id, read_draws(folder), plain_attempts(scheme)) | scoring.metrics()
        metrics["total_s"] = round(metrics["total_s"] + metrics.get("scoring_s", 0.0), 3)
        by_teacher = self.config.has_teacher and iteration == 1
        examples = self.run.iteration(iteration) / "examples.parquet"
        self.run.verify(examples)
        if not examples.exists() and not has_examples(metrics):
            raise NothingKept(nothing_kept(iteration, metrics, scheme))
        self._warn(e_step_warnings(metrics, sampler.sampling.max_new_tokens, scheme))
        factors = made_factors(lambda: iter(scoring), by_id, scheme.weigh, self.config.balance)
        if not examples.exists():
            tokenizer = None if self.sampler.text_only or by_teacher else self.tokenizer
            how = (self.sampler.prompts, tokenizer, factors.by_answer)
            write_examples(examples, scoring, by_id, scheme.weigh, *how)
            self.run.record(examples)
        scoring.remember()
        metrics |= teacher_tokens(metrics) if by_teacher else EStepMetrics()
        return metrics | factors.metrics() | kept_metrics(outcomes(folder, by_id))

    def m_step(self, iteration: int) -> MStepMetrics:
        """Fine-tune on the examples, from theta_{k-1} or the base; or choose some for the prompts."""
        self.progress.phase("M-step", iteration, 0)
        self.run.log("M-step", iteration=iteration)
        folder = self.run.iteration(iteration)
        if self.config.selection is not None:
            return choose_examples(self, iteration)
        origin, training = self.config.m_step(iteration)
        start = self.base if origin == "base" else self.start(iteration - 1)
        self.run.verify(folder / "model")
        if not (folder / "model").exists():
            self._trust(start)
            dtype = exported_dtype(self.base, training)
            # the next M-step may start from these weights, which rounding would change
            is_next = self.config.m_step(iteration + 1)[0] == "previous"
            mean = mean_before(iteration, self.weights) if self.config.average_weights else None
            master = folder / MASTER if is_next and (dtype != "float32" or mean) else None
            if master is not None:
                self.run.verify(master)
            check_room(folder / "model", start, training, dtype, with_master=master is not None)
            self.sampler.engine.release()  # training needs its GPU memory
            self.serving = None
            with interrupts.finishing("this M-step, which would otherwise start over"):
                m_step_function(self.config.launch)(
                    folder / "examples.parquet",
                    start,
                    folder / "model",
                    training,
                    self.tokenizer,
                    seed=self.sampler.seed + iteration,
                    on_step=self.progress.step,
                    dtype=dtype,
                    master=master,
                    mean=mean,
                )
                self._describe(folder / "model")
                self.run.record(folder / "model", *([] if master is None else [master]))
                drop_masters(self.run, iteration)
        elif self.info is not None and not is_trained(folder / "model"):  # killed before it was stored
            self._describe(folder / "model")
            self.run.record(folder / "model" / MODEL_INFO)
        metrics: MStepMetrics = json.loads((folder / "model" / "m_step.json").read_text())
        return metrics

    def _describe(self, model: Path) -> None:
        if self.info is not None:
            write_info(model, self.info)

    def evaluate(self, iteration: int, demos: Demos = (), *, scores: bool = False) -> EvaluationMetrics:
        """Evaluate theta_k with these worked examples; `scores`: see scored_answers.py."""
        asked, kind = self.config.evaluation, "eval_demos" if demos else "eval"
        metrics = self._measure(iteration, kind, self.eval_problems, asked, demos, scores=scores)
        most = self.sampler.sampling.max_new_tokens
        if demos or not self.config.demos or iteration:  # else the evaluation with examples follows
            self._warn(evaluation_warnings(metrics, most, demos=bool(demos)))
        return metrics

    def develop(self, iteration: int) -> EvaluationMetrics:
        """Evaluate theta_k on the development part, with one greedy draw of each problem."""
        return self._measure(iteration, "dev", self.dev_problems, Evaluation())

    def _measure(
        self,
        iteration: int,
        kind: str,
        problems: Sequence[Problem],
        asked: Evaluation,
        demos: Demos = (),
        *,
        scores: bool = False,
    ) -> EvaluationMetrics:
        """Draw theta_k's answers to problems, store them as this kind, and measure them."""
        phase = "development" if kind == "dev" else "evaluation"
        self.progress.phase(phase, iteration, len(problems))
        self.run.log(phase, iteration=iteration)
        self.place(iteration, kind, problems, self.weights(iteration))
        how = Sampling(self.sampler.sampling.max_new_tokens, asked.temperature)
        force: Force = "never" if self.config.force == "never" else "all"
        sampler = replace(sampler_of(self, iteration), sampling=how, demos=demos, force=force)
        folder = ask_into(
            *(self.run, kind, problems, sampler),
            draws=asked.draws,
            iteration=iteration,
            on_draws=self.progress.draws,
            scoring=Scoring(problems, sampler, self.progress.draws) if scores else None,
        )
        by_id = {problem.id: problem for problem in problems}
        return evaluation_metrics(by_id, read_draws(folder), max_new_tokens=how.max_new_tokens)

    def _warn(self, found: Sequence[Warned]) -> None:
        """Log warnings, each kind once per run."""
        for each in found:
            if each.kind not in self.warned:
                self.warned.add(each.kind)
                log.warning("%s", each.text)

    def bound(self, iteration: int) -> PosteriorMetrics:
        """Measure the likelihood bound of theta_k, and hint leakage, on some held-out problems."""
        chosen = subset(self.eval_problems, self.config.bound_problems, self.sampler.seed)
        self.progress.phase("bound", iteration, len(chosen))
        self.run.log("bound", iteration=iteration)
        return bound_into(
            *(self.run, chosen, self.eval_problems, sampler_of(self, iteration)),
            draws=self.config.bound_draws,
            iteration=iteration,
            place=lambda kind: self.place(iteration, kind, chosen, self.weights(iteration)),
            on_draws=self.progress.draws,
        )

    def _is_bounded(self) -> bool:
        """Return True if `bound` is requested and possible."""
        if not self.config.bound_draws or not self.eval_problems or not self.config.evaluation.every:
            return False
        if self.sampler.engine.capabilities.scores:
            return True
        log.warning(
            "the server can't score completions: bound, effective sample size and hint leakage are not "
            "measured, as with bound_draws 0."
        )
        return False

    def is_measured(self, iteration: int) -> bool:
        """Return True if theta_k is evaluated on the held-out part."""
        return bool(self.eval_problems) and self.is_scheduled(iteration)

    def is_scheduled(self, iteration: int) -> bool:
        """Return True if an evaluation is due after an iteration."""
        every = self.config.evaluation.every
        return every > 0 and (iteration % every == 0 or iteration == self.config.iterations)

    def weights(self, iteration: int) -> Path:
        """Return the folder of theta_k's weights; the base for k = 0, and if none are trained."""
        trained = iteration and self.config.selection is None
        return self.run.iteration(iteration) / "model" if trained else self.base

    def start(self, iteration: int) -> Path:
        """Return where an M-step after theta_k starts: at its float32 weights if it has any."""
        return next_start(self.weights(iteration))

    def _score(self, scoring: ScoredDraws, weights: Path) -> None:
        """Score draws under the prompts that the scheme's rules need, by these weights."""
        if scoring.is_scored:
            return
        self._serve(weights)
        with interrupts.finishing("the scoring of this chunk"):
            scoring.score()

    def place(
        self, iteration: int, kind: str, problems: Sequence[Problem], weights: Path
    ) -> Callable[[int], Path]:
        """Return where chunks are stored; the engine gets the weights if one is missing."""
        place = partial(self.run.shard, iteration, kind)
        shards = [place(i) for i in range(-(-len(problems) // self.sampler.chunk_size))]
        self.run.verify(*shards)
        if not all(shard.exists() for shard in shards):
            self._serve(weights)
        return place

    def _serve(self, weights: Path) -> None:
        if self.serving != weights:
            self._trust(weights)
            serve(self.sampler.engine, weights, self.sampler.rounding, self.sampler.base_check)
            self.serving = weights

    def _trust(self, weights: Path) -> None:
        """Check weights of this run before they are read. Raises RunError if they are incomplete."""
        if weights.is_relative_to(self.run.root):
            self.run.verify(weights)
