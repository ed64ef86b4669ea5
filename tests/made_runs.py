"""Run directories made by hand, as `train` would leave them, of whatever draws a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from femtune.config import Train
from femtune.data.problems import save_problems
from femtune.errors import ConfigError
from femtune.evaluation.evaluate import estep_metrics, evaluation_metrics
from femtune.evaluation.selection_bias import kept_by, kept_scores, outcomes
from femtune.reporting.page.record import BASELINES
from femtune.run_folder import resolved
from femtune.runs.draws import DRAWS, read_draws
from femtune.runs.run import FORMAT
from femtune.schemes.named import parse_scheme, star
from femtune.schemes.serialization import scheme_to_data
from femtune.types import DrawKey, Problem, Scheme, draw_seed

Row = dict[str, Any]


def draw(problem_id: str, text: str = "So it is.\nAnswer: 1", **changes: Any) -> Row:
    """A row of a shard: a draw that was kept, with these changes."""
    row: Row = {
        "iteration": 1,
        "problem_id": problem_id,
        "stage": 0,
        "index": 0,
        "prompt_kind": "plain",
        "tokens": [1, 2, 3],
        "text": text,
        "finish_reason": "stop",
        "logprob": -1.0,
        "drawn_logprob": -1.0,
        "num_forced": 0,
        "demos": "",
        "temperature": 1.0,
        "error": "",
        "reward": 1.0,
        "answer": "1",
        "rationale": text,
        "reason": "",
        "detail": "",
    } | changes
    key = DrawKey(row["iteration"], problem_id, row["stage"], row["index"])
    return {"seed": draw_seed(0, key)} | row


def write_shard(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    timing = json.dumps({"engine_s": 1.0, "total_s": 1.5})
    table = pa.Table.from_pylist(list(rows), DRAWS).replace_schema_metadata({"timing": timing})
    with path.open("wb") as file:
        pq.write_table(table, file)


def scheme_named(spec: str) -> Scheme:
    """Return the scheme of this name; for a name that is none, a scheme made in Python has it."""
    try:
        return parse_scheme(spec)
    except ConfigError:
        return replace(star(), name=spec)


def write_config(root: Path, **changes: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    given = {"data": "ratings.jsonl", "model": "seedling", "problems": "0"}
    settings = Train(scheme="star", iterations=1)
    spec, own = changes.get("scheme", "star"), dict[str, Any](format=FORMAT)
    if spec is not None and spec not in BASELINES:
        own["scheme_data"] = scheme_to_data(scheme_named(spec))
    config = resolved(settings, **given) | own | changes
    (root / "config.yaml").write_text(yaml.safe_dump(config))


def write_iteration(
    root: Path,
    number: int,
    problems: Sequence[Problem],
    drawn: Sequence[Row] = (),
    evaluated: Sequence[Row] = (),
    **changes: Any,
) -> Mapping[str, Any]:
    """An iteration that is done; gives its metrics, which are made as the loop makes them."""
    folder = root / f"iteration-{number:03}"
    by_id = {problem.id: problem for problem in problems}
    metrics: Row = {"iteration": number}
    if drawn:
        write_shard(folder / "draws" / "00000.parquet", drawn)
        asked = outcomes(folder / "draws", by_id)
        shift = {"kept_by": kept_by(asked), "kept_scores": kept_scores(asked)}
        metrics["e_step"] = estep_metrics(by_id, read_draws(folder / "draws")) | shift
        metrics["m_step"] = {"num_examples": 1, "trained_tokens": 9, "loss": 0.5, "seconds": 2.0}
    if evaluated:
        write_shard(folder / "eval" / "00000.parquet", evaluated)
        metrics["evaluation"] = evaluation_metrics(by_id, read_draws(folder / "eval"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    return metrics


def write_problems(root: Path, problems: Sequence[Problem]) -> None:
    for name in ("problems", "eval"):
        save_problems(problems, root / f"{name}.parquet")


# What a model or a data set may say to whoever opens the page.
HOSTILE = (
    "<script>window.pwned = 1; alert(1)</script>",
    "<img src=x onerror='window.pwned = 1'><svg/onload=window.pwned=1>",
    "</p></article></details></main></style></title><h1>mine</h1>",
    "]]><svg onload='window.pwned = 1'><style>body{display:none}</style>",
    '" onmouseover="window.pwned = 1" style="position:fixed',
    "<a href='javascript:window.pwned = 1'>here</a><base href='http://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'><iframe srcdoc='<script>'>",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} datum['x'] \\u003cscript\\u003e `",
    "red \x1b[31m \x1b]8;;http://evil.example/\x07link \x9b31m",
    "\u202egnp.exe\u202c \u2066turned\u2069 \u200bnothing\ufeff \U000e0041",
    "\x00\x01\x08\x7f \ufffe\uffff \u2028\u2029 &lt;b&gt; <!-- -->",
    "A" * 1_000_000,
    "one two " * 30_000 + "\n" * 200_000,
)


def hostile_run(root: Path, texts: Sequence[str] = HOSTILE) -> Path:
    """A run whose every text is one of these, and whose ids are hostile."""

    def text(number: int) -> str:
        return texts[number % len(texts)]

    problems = [
        Problem(f"{number} {HOSTILE[number][:300]}", text(number + 1), text(number + 2)[:500])
        for number in range(len(HOSTILE))
    ]
    write_config(
        root, model=text(0), data=text(1)[:400], scheme=text(4)[:200], instruction=text(3), iterations=1
    )
    write_problems(root, problems)
    base, drawn, evaluated = [], [], []
    reasons = ("", "wrong", "parse_error", "truncated", "hint_leak")
    for number, problem in enumerate(problems):
        said = {"text": text(number + 3), "answer": text(number + 4)[:500], "detail": text(number + 5)}
        base.append(draw(problem.id, iteration=0, **said, reason="wrong", reward=0.0))
        prompt = "plain" if number % 2 else "hinted"
        reason = reasons[number % len(reasons)]
        drawn.append(draw(problem.id, **said, prompt_kind=prompt, reason=reason))
        evaluated.append(
            draw(problem.id, **said, reason="" if number % 3 else "wrong", reward=float(number % 3 > 0))
        )
    write_iteration(root, 0, problems, evaluated=base)
    write_iteration(root, 1, problems, drawn, evaluated)
    (root / "environment.json").write_text(json.dumps({"gpus": [text(0)], text(2)[:99]: text(1)[:99]}))
    (root / "log.jsonl").write_text(json.dumps({"time": 1.0, "event": text(0), "iteration": 1}) + "\n")
    return root


SCALE = ("1", "2", "3", "4", "5")


def judge_runs(folder: Path) -> Path:
    """Runs of a judge of ratings, by vote: three schemes, one not finished, and a baseline."""
    problems = [_rated(number) for number in range(30)]
    plans = {"star": "star", "rejection-4": "rejection:4", "pps": "pps", "votes": "votes"}
    for salt, (name, scheme) in enumerate(plans.items()):
        root = folder / f"{name}-seed0"
        baseline = scheme == "votes"
        write_config(root, scheme=scheme, iterations=2, **({"draws": 4} if baseline else {}))
        write_problems(root, problems)
        for iteration in range(1 if baseline else 2 if scheme == "pps" else 3):
            drawn = _judged(problems, iteration, salt, 2, "plain")
            if scheme in ("star", "pps"):
                drawn += _judged(problems, iteration, salt, 1, "hinted")
            voted = _judged(problems, iteration, salt + 9, 4, "plain")
            write_iteration(root, iteration, problems, drawn if iteration else (), voted)
    return folder


def _rated(number: int) -> Problem:
    frame = {"form": "rating", "scale": [*SCALE], "item": f"item {number}", "length": float(number)}
    prompt = f"Rate the response from 1 to 5.\n\nResponse {number}: it is what it is."
    return Problem(f"answer-{number}", prompt, SCALE[number * 7 % 5], {"frame": frame})


def _judged(
    problems: Sequence[Problem], iteration: int, salt: int, times: int, prompt: str
) -> list[Row]:
    """Draws of a rater that grows better with the iterations."""
    rows = []
    stage = int(prompt == "hinted")
    for problem, index in ((problem, index) for problem in problems for index in range(times)):
        chance = draw_seed(salt, DrawKey(iteration, problem.id, stage, index)) % 100
        said = problem.answer if chance < 40 + 20 * iteration else SCALE[chance % 5]
        reason = "" if said == problem.answer else "truncated" if chance % 7 == 0 else "wrong"
        if stage and chance % 11 == 0:
            reason = "hint_leak"
        own = {
            "iteration": iteration,
            "stage": stage,
            "index": index,
            "prompt": prompt,
            "reason": reason,
        }
        answer = {
            "answer": "" if reason == "truncated" else said,
            "reward": float(said == problem.answer),
        }
        rows.append(
            draw(problem.id, f"It is what it is, worth {said}.\nAnswer: {said}", **own, **answer)
        )
    return rows
