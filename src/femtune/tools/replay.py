"""Replay of a stored draw, compared with the original: `femtune replay RUN --draw 2/p17/0/1`.

A draw's tokens depend on its prompt, its seed and the weights that drew it, up to rounding, but not on
the rest of its batch. So anybody who has a run and its base model can check what the run stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from femtune.config import Train
from femtune.data.demos import demos_digest
from femtune.data.tasks.labels import label_of
from femtune.engines.model_files import load_tokenizer, local_model
from femtune.engines.weight_check import serve
from femtune.errors import ConfigError, RunError
from femtune.estep.forced_answers import Endings, Finished, Force
from femtune.estep.scheduler import Sampler
from femtune.model_info import refuse_chat
from femtune.resolve import make_loop_config
from femtune.rewards.builtin import as_reward
from femtune.runs.draws import read_draws
from femtune.runs.run import Run, stored_config
from femtune.sampler import SamplerBuilder
from femtune.schemes.filters import paper_filter
from femtune.selection.step import read_examples, with_examples
from femtune.tools.stored_run import Kind, fitted_prompts, problems_of, settings_of, stored_scheme
from femtune.types import Completion, Draw, Problem, Request, Sampling, Scheme, Score, Stage, draw_seed


@dataclass(frozen=True)
class Replayed:
    """A stored draw and its replay."""

    stored: Draw
    completion: Completion
    score: Score

    @property
    def differs_at(self) -> int | None:
        """The index of the first different token, from 0; None if all are equal."""
        old, new = self.stored.completion.tokens, self.completion.tokens
        if old == new:
            return None
        pairs = zip(old, new, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))

    @property
    def same(self) -> bool:
        """True if tokens, text, finish reason, reward, answer and reason equal the stored ones."""
        old, new = self.stored.completion, self.completion
        texts = (old.tokens, old.text, old.finish_reason) == (new.tokens, new.text, new.finish_reason)
        graded = self.stored.score
        return texts and (graded.reward, graded.answer, graded.reason) == (
            self.score.reward,
            self.score.answer,
            self.score.reason,
        )

    @property
    def logprob_gap(self) -> float:
        """Difference of the log-probabilities in nats; nan if one is unknown."""
        return abs(self.stored.completion.logprob - self.completion.logprob)


def name_of(draw: Draw) -> str:
    """Return a draw's id: iteration, problem, stage and index.

    >>> from femtune.types import DrawKey
    >>> completion, score = Completion((), "", "stop", 0.0), Score(0.0, "")
    >>> name_of(Draw(DrawKey(2, "a/b", 0, 1), "plain", 0, completion, score))
    '2/a/b/0/1'
    """
    key = draw.key
    return f"{key.iteration}/{key.problem_id}/{key.stage}/{key.index}"


def find_draws(root: Path, name: str, kind: Kind) -> list[Draw]:
    """Return the stored draw of an id, or all draws of a problem for an id without stage and index.

    Raises RunError if there is no such draw, ConfigError for an invalid id.
    """
    number, _, rest = name.partition("/")
    if not number.isdecimal() or not rest:
        raise ConfigError(
            f"--draw needs ITERATION/PROBLEM/STAGE/INDEX or ITERATION/PROBLEM, got {name}."
        )
    folder = Run(root).iteration(int(number)) / kind
    stored = [draw for chunk, _ in read_draws(folder) for draw in chunk]
    found = [draw for draw in stored if name == name_of(draw)]
    found = found or [draw for draw in stored if draw.key.problem_id == rest]
    if not found:
        example = f"; it has, for example, {name_of(stored[0])}" if stored else ""
        other = "" if kind == "eval" else " For draws of an evaluation, add --eval."
        raise RunError(f"{folder} has no draw {name}{example}.{other}")
    return found


def replay(
    root: Path, name: str, *, kind: Kind = "draws", device: str | None = None
) -> Iterator[Replayed]:
    """Replay the draws that `find_draws` finds, with the weights that drew them.

    Raises RunError if the run, the draw, or these weights are missing, and any error of loading.
    """
    config = stored_config(root)
    settings = replace(settings_of(config, root), ray_workers=0, ray_address=None, worker_gpus=None)
    refuse_chat(settings, "replay")
    if device is not None:
        settings = replace(settings, device=device)
    draws = find_draws(root, name, kind)
    problems = problems_of(root, kind)
    if missing := [draw.key.problem_id for draw in draws if draw.key.problem_id not in problems]:
        raise RunError(f"{root}: problem {missing[0]} is not stored with the run.")
    if settings.teacher is not None and kind == "draws" and draws[0].key.iteration == 1:
        raise RunError(f"{root}: the teacher {settings.teacher} drew these: replay later iterations.")
    base = local_model(str(config.get("model")))
    scheme = _scheme(root, config, settings, kind)
    weights = _weights(root, draws[0].key.iteration, kind, base)
    tokenizer = load_tokenizer(base, settings.template_args)
    prompts, demos = fitted_prompts(root, settings, problems, tokenizer)
    number = draws[0].key.iteration - (kind == "draws")
    if settings.m_step == "examples" and number > 0:
        prompts = with_examples(prompts, read_examples(Run(root), number), tokenizer)
    builder = SamplerBuilder(
        base=base,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=as_reward(settings.reward or "exact"),
        settings=settings,
    )
    forced: Force = "ended" if settings.force_answers == "always" else "never"
    sampler = replace(builder.open_sampler(_sampling(config, settings, kind)), demos=demos)
    if kind == "draws":
        sampler = replace(sampler, force=forced)
    try:
        if weights != base:
            serve(sampler.engine, weights, sampler.rounding)
        for draw in draws:
            problem = problems[draw.key.problem_id]
            if kind == "draws":
                problem = label_of(problem, draw.key.iteration, sampler.seed)
            yield _again(draw, problem, sampler, scheme)
    finally:
        sampler.engine.close()


def _weights(root: Path, iteration: int, kind: Kind, base: Path) -> Path:
    """Return the weights that drew: the base, or an iteration's model. Raises RunError if missing."""
    number = iteration - (kind == "draws")
    if number <= 0 or stored_config(root).get("m_step") == "examples":
        return base
    run = Run(root)
    model = run.iteration(number) / "model"
    if not model.exists():
        raise RunError(f"{model} drew it but is missing, for example removed by keep_last.")
    run.verify(model)
    return model


def _sampling(config: dict[str, Any], settings: Train, kind: Kind) -> Sampling:
    if kind == "draws":
        return Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    # an evaluation's own run names it temperature; the votes of a baseline are drawn at 1
    is_training = "iterations" in config
    temperature = settings.eval_temperature if is_training else float(config.get("temperature", 0.0))
    return Sampling(settings.max_new_tokens, temperature)


def _scheme(root: Path, config: Mapping[str, Any], settings: Train, kind: Kind) -> Scheme:
    """Return the scheme that stored draws were drawn by, with the run's own acceptance."""
    if kind == "eval":
        return Scheme("evaluate", (Stage("plain", ask="all"),), weigh=paper_filter)
    return make_loop_config(settings, stored_scheme(config, root)).scheme


def _again(draw: Draw, problem: Problem, sampler: Sampler, scheme: Scheme) -> Replayed:
    if draw.seed != draw_seed(sampler.seed, draw.key):
        raise RunError(
            f"draw {name_of(draw)} has seed {draw.seed}, but the run's seed {sampler.seed} gives "
            f"{draw_seed(sampler.seed, draw.key)}: config.yaml does not belong to this draw."
        )
    prompts = sampler.prompts
    if draw.demos:
        if demos_digest(sampler.demos) != draw.demos:
            raise RunError(
                f"draw {name_of(draw)} was shown worked examples that demos.jsonl does not hold: "
                "restore the run's file."
            )
        prompts = prompts.with_demos(sampler.demos)
    request = Request(
        draw.key, sampler.tokenizer.encode_prompt(prompts.render(draw.prompt_kind, problem)), draw.seed
    )
    completion = _completed(request, sampler)
    at = scheme.accept_at
    [score] = sampler.grade(
        [problem],
        [completion],
        hinted=[draw.prompt_kind == "hinted"],
        accept_at=[at(request) if callable(at) else at],
    )
    return Replayed(draw, completion, score)


def _completed(request: Request, sampler: Sampler) -> Completion:
    """Draw a completion as the driver does, including its forced answer."""
    assert hasattr(sampler.engine, "generate")  # no Ray workers
    endings = Endings(sampler.tokenizer, sampler.cut, sampler.force, sampler.context)
    todo, ready = [request], list[Finished]()

    def pull(room: int) -> Sequence[Request]:
        given, todo[:room] = todo[:room], []
        return given

    sampling = replace(sampler.sampling, cut=sampler.cut)
    for finished in sampler.engine.generate(pull, sampling):
        now, more = endings.settle(finished, sampler.sampling)
        ready += now
        todo += more
    [(_, completion)] = ready
    return completion


def told(replayed: Replayed) -> str:
    """Describe the comparison in a line or two."""
    draw, new = replayed.stored, replayed.completion
    old = draw.completion
    apart = "" if math.isnan(replayed.logprob_gap) else f", difference {replayed.logprob_gap:.1g}"
    logprobs = f"log-probability {old.logprob:.4f} and {new.logprob:.4f} nats{apart}"
    if replayed.same:
        reward = f"reward {draw.score.reward:g}, {draw.score.reason or 'kept'}"
        return f"{name_of(draw)}: the same {len(old.tokens)} tokens; {logprobs}; {reward}"
    if (at := replayed.differs_at) is None:
        return (
            f"{name_of(draw)}: the same tokens, but another grade: {draw.score.reward:g} "
            f"({draw.score.reason or 'kept'}), now {replayed.score.reward:g} "
            f"({replayed.score.reason or 'kept'}). Has the reward changed?"
        )
    return (
        f"{name_of(draw)}: differs from token {at + 1} of {len(old.tokens)} on; {logprobs}. If "
        "two tokens are about equally likely, rounding decides. It depends on batches, dtype "
        "(engine_dtype), versions and hardware."
    )


def as_json(replayed: Replayed) -> dict[str, Any]:
    """Return the comparison as plain values."""
    return {
        "draw": name_of(replayed.stored),
        "same": replayed.same,
        "differs_at": replayed.differs_at,
        "stored": {
            "text": replayed.stored.completion.text,
            "logprob": replayed.stored.completion.logprob,
        },
        "replayed": {"text": replayed.completion.text, "logprob": replayed.completion.logprob},
    }
