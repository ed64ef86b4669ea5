"""Worked examples: problems with rationale and answer, shown to a model before the problem it is asked.

A pretrained model that was never trained on a form of answer writes it when it sees a few.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from femtune._util.atomic_files import read_lines, replacing
from femtune._util.text import brief
from femtune.data.answer_format import AnswerFormat
from femtune.data.answers import parse_scale
from femtune.data.prompts import Prompts, prompt_text, write_completion
from femtune.data.rows import BadRow, file_rows, file_unit
from femtune.data.tasks.cells import read_plain, read_prompt, read_text
from femtune.data.tasks.frames import frame
from femtune.data.tasks.load import Options, problems_of
from femtune.data.tasks.shipped_demos import SHIPPED
from femtune.errors import DataError, FemtuneError
from femtune.types import Completion, Demo, Demos, Problem, Prompt, Reward

log = logging.getLogger("femtune")
MOST = 100  # examples of a file: more are meant to be training data


def demos_digest(demos: Demos) -> str:
    """Return a short hash of worked examples, in their order; "" for none."""
    if not demos:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for demo in demos:
        prompt = demo.prompt if isinstance(demo.prompt, str) else [dict(m) for m in demo.prompt]
        digest.update(repr((prompt, demo.answer, demo.completion)).encode() + b"\x00")
    return digest.hexdigest()


def load_demos(
    source: str,
    task: str,
    options: Options,
    prompts: Prompts,
    reward: Reward,
    problems: Sequence[Problem] = (),
    accept_at: float = 1.0,
    *,
    in_data: Literal["refuse", "allow"] = "refuse",
) -> Demos:
    """Load worked examples: "auto" for those that come with the task, "none", or the path of a file.

    `options` says how the task's items are worded (scale, rubric, template), `problems` are the data. An
    example that stands in them is refused, or left out of the shipped ones with a warning, unless
    `in_data` allows it, as for items to predict. Raises DataError for a file that can't be used, or an
    example whose answer does not earn the reward.
    """
    if source == "none":
        return ()
    known = {_spaced(problem.prompt) for problem in problems} if in_data == "refuse" else set()
    if source == "auto":
        return _shipped(task, options, prompts, reward, problems, accept_at, known)
    file = Path(source).expanduser()
    made = []
    for place, problem, completion in _file_demos(file, task, options, prompts.format):
        where = f"{file}, {file_unit(file)} {place}"
        demo = Demo(problem.prompt, problem.answer, completion)
        if _spaced(demo.prompt) in known:
            raise DataError(
                f"{where}: this worked example is also in the data: its answer would be shown. "
                "Remove it from one of them."
            )
        if fault := _fault(demo, problem, prompts, reward, accept_at):
            raise DataError(f"{where}: {fault} Mend the example, or choose the format it is in.")
        made.append(demo)
    if not made:
        raise DataError(f"{file} holds no rows: give worked examples, or --demos none.")
    if len(made) > MOST:
        raise DataError(f"{file} holds {len(made)} worked examples: at most {MOST} make sense.")
    return tuple(made)


def without_problems(demos: Demos, problems: Sequence[Problem], given: bool) -> Demos:
    """Return the worked examples whose prompt is none of these problems.

    `given` says that a user chose them. Raises DataError where one of those is among the problems.
    """
    known = {_spaced(problem.prompt) for problem in problems}
    kept = tuple(demo for demo in demos if _spaced(demo.prompt) not in known)
    if given and len(kept) < len(demos):
        raise DataError(
            f"{len(demos) - len(kept)} worked examples are also in the data: their answers would be "
            "shown. Remove them from one of the two."
        )
    return kept


# --- the shipped ones


def _shipped(
    task: str,
    options: Options,
    prompts: Prompts,
    reward: Reward,
    problems: Sequence[Problem],
    accept_at: float,
    known: set[str],
) -> Demos:
    """The task's shipped examples that the reward accepts and the data do not hold."""
    made = []
    found = list(shipped_problems(task, options, problems))
    if options.template and not found and task != "table":
        log.warning(
            "no shipped worked example has the columns that prompt_template shows: give --demos FILE"
        )
    for problem, rationale in found:
        demo = Demo(
            problem.prompt, problem.answer, write_completion(prompts.format, rationale, problem.answer)
        )
        if _spaced(demo.prompt) in known:
            log.warning("a shipped worked example is in the data, and left out: %s", problem.id)
        elif fault := _fault(demo, problem, prompts, reward, accept_at):
            log.warning("a shipped worked example does not fit, and is left out: %s", fault)
        else:
            made.append(demo)
    return tuple(made)


def shipped_problems(
    task: str, options: Options, problems: Sequence[Problem] = ()
) -> Iterator[tuple[Problem, str]]:
    """Yield a task's shipped examples, worded as its items are, each with its rationale."""
    known = next((found for problem in problems if (found := frame(problem))), None)
    if task in ("judge", "summarize"):
        pair = known.form == "pair" if known else options.scale in ("A,B", "A,B,tie")
        label = "preference" if pair else "score"
    else:
        label = "answer"
    # of a template that names columns of the user's own, only the rows' own are there
    own = set(options.template.names) if options.template else set()
    labels = _usual_labels(problems) if task == "choice" else ()
    for number, row in enumerate(SHIPPED.get((task, label), ()), 1):
        made = _row(row, task, label, options, labels)
        if made is None or own - _filled(made):
            continue
        rationale = made.pop("rationale")
        made["id"] = f"shipped-{number}"
        plain = replace(options, columns={}, attributes=(), raters="each", bad_rows="stop")
        problem = problems_of([made], task, plain, "shipped examples").problems[0]
        yield problem, rationale.replace("{answer}", problem.answer)


def _row(
    row: Mapping[str, Any], task: str, label: str, options: Options, labels: tuple[str, ...]
) -> dict[str, Any] | None:
    """A shipped row with its label; None where the scale has no such answer."""
    made = dict(row)
    if label == "score":
        answers = parse_scale(options.scale or "1,5").answers
        place = made.pop("place")
        # so that no answer of a short scale is shown twice
        if len(answers) < {0.25: 5, 0.5: 3, 0.75: 4}.get(place, 2):
            return None
        made["score"] = answers[int(place * (len(answers) - 1))]
    if label == "preference" and row["preference"] == "tie" and options.scale != "A,B,tie":
        return None
    if task == "choice":
        right = made.pop("right")
        given = labels or tuple("ABCD")
        # of fewer labels than choices, the right one stays
        kept = sorted({right, *[n for n in range(4) if n != right][: len(given) - 1]})
        made["choices"] = [row["choices"][n] for n in kept][: len(given)]
        made["labels"] = list(given[: len(made["choices"])])
        made["answer"] = made["labels"][kept.index(right)]
    return made


def _usual_labels(problems: Sequence[Problem]) -> tuple[str, ...]:
    """The labels that most problems have."""
    found = Counter(known.scale for problem in problems if (known := frame(problem)))
    return found.most_common(1)[0][0] if found else ()


def _filled(row: Mapping[str, Any]) -> set[str]:
    """Names that a template may use of a shipped row."""
    return {*row} | {"prompt", "rubric", "scale"}


# --- a file's


def _file_demos(
    file: Path, task: str, options: Options, form: AnswerFormat
) -> Iterator[tuple[int, Problem, str]]:
    """Place, problem and completion of each row of a file. Raises DataError for a row that is none."""
    for place, row in file_rows(file):
        where = f"{file}, {file_unit(file)} {place}"
        try:
            if isinstance(row, BadRow) or not isinstance(row, Mapping):
                raise row if isinstance(row, BadRow) else BadRow("no object with columns")
            problem = _problem(row, task, options, where)
            if row.get("completion") not in (None, ""):
                completion = read_text(row, "completion").strip()
            else:
                if row.get("rationale") in (None, ""):
                    raise BadRow("neither `completion` nor `rationale` is there")
                rationale = read_text(row, "rationale").strip()
                completion = write_completion(form, rationale, problem.answer)
        except BadRow as fault:
            said = f"{fault.what} ({fault.detail})" if fault.detail else fault.what
            raise DataError(
                f"{where}: {said}. A worked example has prompt, answer, and completion or rationale; or "
                f"the columns of task {task} and one of these two."
            ) from fault
        yield place, problem, completion


def _problem(row: Mapping[str, Any], task: str, options: Options, where: str) -> Problem:
    """A row's problem: its prompt and answer as they are, or the task's columns in the task's words."""
    if row.get("answer") not in (None, "") and row.get("prompt") not in (None, ""):
        answer = read_plain(row["answer"], "answer") or ""
        others = {key: row[key] for key in row if key not in ("prompt", "answer", "id")}
        return Problem(where, read_prompt(row["prompt"], "prompt"), answer, others)
    if task in ("table", "math"):
        raise BadRow("`prompt` or `answer` is empty")
    own = {key: value for key, value in row.items() if key not in ("completion", "rationale")}
    plain = replace(options, columns={}, attributes=(), raters="each", bad_rows="stop")
    return problems_of([own], task, plain, where).problems[0]


# --- those of a run


def save_demos(path: Path, demos: Demos) -> None:
    """Store worked examples as JSON lines that `--demos FILE` reads."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(asdict(demo)) + "\n" for demo in demos))


def read_demos(path: Path) -> Demos:
    """Return the worked examples that `save_demos` stored; none where there is no file."""
    return tuple(Demo(**row) for row in read_lines(path)) if path.exists() else ()


# --- checks


def _fault(demo: Demo, problem: Problem, prompts: Prompts, reward: Reward, accept_at: float) -> str:
    """Say why an example can't be read, or its answer is not accepted; "" where all is well."""
    parsed = prompts.parse(demo.completion)
    if parsed.error:
        return f"no answer can be read from {brief(demo.completion)!r}: {parsed.error}."
    completion = Completion((), demo.completion, "stop", 0.0)
    try:
        [value] = reward([problem], [completion], [parsed])
    except FemtuneError as error:  # of a user's own, which may need columns of the data
        return f"the reward fails on it: {error}"
    if value is None or not value >= accept_at:
        earned = "no reward" if value is None else f"reward {value:g}"
        said = f"its answer is {brief(demo.answer)!r}, and {brief(parsed.answer)!r} was read from its"
        return f"{said} completion: {earned}, expected {accept_at:g}."
    return ""


def _spaced(prompt: Prompt) -> str:
    return " ".join(prompt_text(prompt).split())
