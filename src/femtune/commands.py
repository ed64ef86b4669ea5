"""Each thing that femtune does, as a function: the CLI's verbs, and the library's.

train(data, model)      FEM: E-step, M-step, evaluation, K times
sample(data, model)     the E-step alone: a data set of rationales
fit(examples, model)    the M-step alone
evaluate(data, model)   metrics on held-out problems
predict(data, model)    answers with rationales and votes for new items
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

from femtune.config import (
    CHANGEABLE,
    Data,
    Evaluate,
    Sample,
    Train,
    check_new,
    fingerprint,
    held_out,
    load_tokenizer,
    local_model,
    make_asker,
    no_foreign_bars,
    plan,
    read_problems,
    resolved,
    sampling,
)
from femtune.errors import ConfigError
from femtune.evaluate import as_number, evaluation_draws
from femtune.loop import Progress, Steps, fem
from femtune.problems import save_problems
from femtune.progress import Quiet
from femtune.rewards import as_reward, exact
from femtune.run import Run, by_problem, check_run, open_run, write_json
from femtune.training import Training
from femtune.types import Draw, Problem, Sampling, Scheme


@dataclass(frozen=True)
class Result:
    """What a run of FEM gave."""

    run: Path
    model: Path  # of the last iteration
    history: list[dict[str, Any]]  # metrics by iteration, 0 being the base


def train(
    data: Data,
    model: str | Path,
    *,
    scheme: str | Scheme = "pps",
    reward: str | Callable[..., Any] = "exact",
    output_dir: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Train a model to reason its way to the answers, by FEM.

        train("judge.jsonl", model="Qwen/Qwen3-1.7B", scheme=pps(), reward=ordinal(scale=(1, 5)))

    `options` are the fields of config.Train and mstep.Training, by their names. The same call goes on
    with a run that was stopped. Raises a FemtuneError: DataError, ConfigError or ModelError at once,
    RunError where `output_dir` holds another run.
    """
    settings = make_settings(scheme=_name(scheme), reward=_name(reward), **options)
    return run_train(
        data,
        str(model),
        settings,
        output_dir,
        progress or Quiet(),
        scheme=None if isinstance(scheme, str) else scheme,
        reward=None if isinstance(reward, str) else reward,
    )


def run_train(
    data: Data,
    model: str,
    settings: Train,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    scheme: Scheme | None = None,
    reward: Callable[..., Any] | None = None,
) -> Result:
    """`train` from settings; a scheme or reward given as an object stands for its name in them."""
    steps, draws = plan(settings, scheme), sampling(settings)
    graded = as_reward(reward or settings.reward)
    problems, test = held_out(read_problems(data, settings, graded), settings, graded)
    place, config = run_place(output_dir, "train", data, model, settings, problems, test)
    asker = make_asker(model, settings, graded, problems, test)
    with open_run(place, config, CHANGEABLE) as run:
        for name, group in (("problems", problems), ("eval", test)):
            if group and not (run.root / f"{name}.parquet").exists():
                save_problems(group, run.root / f"{name}.parquet")
        history = fem(
            run, asker.base, problems, test, steps, asker.setup(draws), asker.tokenizer, progress
        )
        _point(run, history, steps.iterations)
    return Result(run.root, run.root / "last", history)


def sample(
    data: Data, model: str, settings: Sample, output_dir: str | Path | None, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """The E-step alone: gives the folder with its draws and examples, and its metrics.

    Raises NothingKept where no draw is kept; they are stored all the same.
    """
    as_train = Train(**{field.name: getattr(settings, field.name) for field in fields(Sample)})
    what, draws = plan(as_train), sampling(settings)
    reward = as_reward(settings.reward)
    problems = read_problems(data, settings, reward)
    place, config = run_place(output_dir, "sample", data, model, settings, problems)
    asker = make_asker(model, settings, reward, problems)
    with open_run(place, config, CHANGEABLE) as run:
        setup = asker.setup(draws)
        steps = Steps(run, asker.base, problems, [], what, setup, asker.tokenizer, progress)
        metrics = steps.expect(1)
        write_json(run.iteration(1) / "metrics.json", {"iteration": 1, "e_step": metrics})
    return run.iteration(1), metrics


def fit(
    examples: Path,
    model: str,
    training: Training,
    output_dir: Path,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """The M-step alone: trains on a file of examples and makes `output_dir` a model's folder.

    Raises RunError where that exists already: a checkpoint is never overwritten.
    """
    check_new(output_dir)
    from femtune.mstep import m_step  # torch is slow to import

    no_foreign_bars()
    base = local_model(model)
    tokenizer = load_tokenizer(base)
    return asdict(m_step(examples, base, output_dir, training, tokenizer, seed=seed, on_step=on_step))


def evaluate(
    data: Data, model: str, settings: Evaluate, output_dir: str | Path | None, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Metrics of a model on problems it was not trained on; gives the folder with its draws too."""
    what = plan(Train(eval_draws=settings.draws, eval_temperature=settings.temperature))
    reward = as_reward(settings.reward)
    problems = read_problems(data, settings, reward)
    place, config = run_place(output_dir, "evaluate", data, model, settings, problems)
    asker = make_asker(model, settings, reward, problems)
    with open_run(place, config, CHANGEABLE) as run:
        setup = asker.setup(Sampling(settings.max_new_tokens))
        steps = Steps(run, asker.base, [], problems, what, setup, asker.tokenizer, progress)
        metrics = steps.measure(0)
        write_json(run.iteration(0) / "metrics.json", {"iteration": 0, "evaluation": metrics})
    return run.iteration(0), metrics


def predict(data: Data, model: str, settings: Evaluate) -> Iterator[dict[str, Any]]:
    """Answers to new items: by vote over `draws` rationales, in order of the data, chunk by chunk.

    Each has id, answer (the most frequent), confidence (its share of the draws), votes, expected (the
    mean of the votes, where all are numbers), and a rationale that led to the answer.
    """
    problems = read_problems(data, settings)
    asker = make_asker(model, settings, exact(), problems)
    setup = asker.setup(Sampling(settings.max_new_tokens, settings.temperature))
    for chunk in evaluation_draws(problems, setup, draws=settings.draws, iteration=0):
        for problem_id, tries in by_problem(chunk.draws):
            yield prediction(problem_id, tries)


def prediction(problem_id: str, draws: Sequence[Draw]) -> dict[str, Any]:
    """One item's answer by vote; answer "" and confidence 0 where no draw had one."""
    answered = [draw for draw in draws if draw.score.reason in ("", "wrong")]
    votes = Counter(draw.score.answer for draw in answered)
    answer, count = votes.most_common(1)[0] if votes else ("", 0)
    numbers = [as_number(draw.score.answer) for draw in answered]
    known = [number for number in numbers if number is not None]
    return {
        "id": problem_id,
        "answer": answer,
        "confidence": count / len(draws),
        "votes": dict(votes.most_common()),
        "expected": fmean(known) if known and len(known) == len(numbers) else None,
        "rationale": next((d.score.rationale for d in answered if d.score.answer == answer), ""),
    }


def make_settings(**options: Any) -> Train:
    """Settings of a run from keywords. Raises ConfigError for a name that is none."""
    of_training = {field.name for field in fields(Training)}
    of_train = {field.name for field in fields(Train)} - {"training"}
    for name in options.keys() - of_training - of_train:
        near = get_close_matches(name, of_training | of_train, 1)
        raise ConfigError(f"{name} is no setting" + (f": did you mean {near[0]}?" if near else "."))
    training = Training(**{key: options[key] for key in options.keys() & of_training})
    return Train(training=training, **{key: options[key] for key in options.keys() & of_train})


def _point(run: Run, history: Sequence[dict[str, Any]], last: int) -> None:
    """Links `last` and `best` (by held-out accuracy) to the models of their iterations."""
    trained = [h for h in history if h["iteration"] and "evaluation" in h]
    best = max(trained, key=lambda h: h["evaluation"]["accuracy"])["iteration"] if trained else last
    for name, iteration in (("last", last), ("best", best)):
        link = run.root / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(run.iteration(iteration).relative_to(run.root) / "model")
        os.replace(link, run.root / name)


def run_place(
    output_dir: str | Path | None,
    verb: str,
    data: Data,
    model: str,
    settings: Any,
    *groups: Sequence[Problem],
) -> tuple[Path, dict[str, Any]]:
    """A run's directory and resolved configuration; refused at once where it holds another run.

    As told, else named by the configuration, so that the same command finds its run again.
    """
    shown = str(data) if isinstance(data, (str, Path)) else f"{len(data)} problems"
    config = resolved(settings, data=shown, model=model, problems=fingerprint(*groups))
    if output_dir is None:
        fixed = {key: value for key, value in config.items() if key not in CHANGEABLE}
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=4)
        scheme = re.sub(r"\W+", "-", config.get("scheme", "")).strip("-")
        parts = [verb, Path(shown).stem, scheme, digest.hexdigest()]
        output_dir = Path("runs") / "-".join(filter(None, parts))
    check_run(Path(output_dir), config, CHANGEABLE)
    return Path(output_dir), config


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    return thing.name if isinstance(thing, Scheme) else getattr(thing, "__name__", repr(thing))
