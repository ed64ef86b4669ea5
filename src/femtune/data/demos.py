"""Worked examples: problems with a rationale and an answer, shown to a model before its problem.

A few of them teach a pretrained model a form of answer for which it was never trained.
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
from femtune.data.files.reading import file_rows, file_unit
from femtune.data.messages import read_prompt
from femtune.data.prompts import Prompts, prompt_text, write_completion
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import read_plain, read_text
from femtune.data.tasks.frames import frame
from femtune.data.tasks.load import Options, problems_of
from femtune.data.tasks.shipped_demos import SHIPPED
from femtune.errors import DataError, FemtuneError
from femtune.types import Completion, Demo, Demos, Problem, Prompt, Reward

log = logging.getLogger("femtune")
MOST = 100  # examples in a file; a longer file is probably training data


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

    `options` sets how the task words its items (scale, rubric, template); `problems` are the data. An
    example that is also a problem of the data raises DataError, or if shipped, is left out with a
    warning. `in_data="allow"` permits it, as for items to predict. Raises DataError for a file that
    can't be used, or an example whose answer does not earn the reward.
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
                f"{where}: this worked example is also in the data, so its answer would be shown. "
                "Remove it from one of them."
            )
        if fault := _fault(demo, problem, prompts, reward, accept_at):
            raise DataError(
                f"{where}: {fault} Correct the example, or set the answer format that it uses."
            )
        made.append(demo)
    if not made:
        raise DataError(f"{file} holds no rows: add worked examples, or set --demos none.")
    if len(made) > MOST:
        raise DataError(f"{file} holds {len(made)} worked examples; the limit is {MOST}. Remove some.")
    return tuple(made)


def without_problems(demos: Demos, problems: Sequence[Problem], given: bool) -> Demos:
    """Return the worked examples whose prompt is not among these problems.

    With `given`, the user chose them: then one that is among the problems raises DataError.
    """
    known = {_spaced(problem.prompt) for problem in problems}
    kept = tuple(demo for demo in demos if _spaced(demo.prompt) not in known)
    if given and len(kept) < len(demos):
        raise DataError(
            f"{len(demos) - len(kept)} worked examples are also in the data, so their answers would be "
            "shown. Remove them from one of the two."
        )
    return kept


# --- shipped examples


def _shipped(
    task: str,
    options: Options,
    prompts: Prompts,
    reward: Reward,
    problems: Sequence[Problem],
    accept_at: float,
    known: set[str],
) -> Demos:
    """Return the task's shipped examples that the reward accepts and the data do not contain."""
    made = []
    found = list(shipped_problems(task, options, problems))
    if options.template and not found and task != "table":
        log.warning("no shipped worked example has the columns in prompt_template: give --demos FILE")
    for problem, rationale in found:
        demo = Demo(
            problem.prompt, problem.answer, write_completion(prompts.format, rationale, problem.answer)
        )
        if _spaced(demo.prompt) in known:
            log.warning("left out a shipped worked example that is in the data: %s", problem.id)
        elif fault := _fault(demo, problem, prompts, reward, accept_at):
            log.warning("left out a shipped worked example that does not fit: %s", fault)
        else:
            made.append(demo)
    return tuple(made)


def shipped_problems(
    task: str, options: Options, problems: Sequence[Problem] = ()
) -> Iterator[tuple[Problem, str]]:
    """Yield a task's shipped examples, each with its rationale, in the wording of the task's items."""
    known = next((found for problem in problems if (found := frame(problem))), None)
    if task in ("judge", "summarize"):
        pair = known.form == "pair" if known else options.scale in ("A,B", "A,B,tie")
        label = "preference" if pair else "score"
    else:
        label = "answer"
    # a template may name the user's own columns, which shipped rows lack
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
    """Return a shipped row with its label, or None if the scale lacks that label."""
    made = dict(row)
    if label == "score":
        answers = parse_scale(options.scale or "1,5").answers
        place = made.pop("place")
        # so that no answer of a short scale appears twice
        if len(answers) < {0.25: 5, 0.5: 3, 0.75: 4}.get(place, 2):
            return None
        made["score"] = answers[int(place * (len(answers) - 1))]
    if label == "preference" and row["preference"] == "tie" and options.scale != "A,B,tie":
        return None
    if task == "choice":
        right = made.pop("right")
        given = labels or tuple("ABCD")
        # with fewer labels than choices, the right choice is kept
        kept = sorted({right, *[n for n in range(4) if n != right][: len(given) - 1]})
        made["choices"] = [row["choices"][n] for n in kept][: len(given)]
        made["labels"] = list(given[: len(made["choices"])])
        made["answer"] = made["labels"][kept.index(right)]
    return made


def _usual_labels(problems: Sequence[Problem]) -> tuple[str, ...]:
    """Return the most common labels of the problems."""
    found = Counter(known.scale for problem in problems if (known := frame(problem)))
    return found.most_common(1)[0][0] if found else ()


def _filled(row: Mapping[str, Any]) -> set[str]:
    """Return the names that a template may use for a shipped row."""
    return {*row} | {"prompt", "rubric", "scale"}


# --- examples from a file


def _file_demos(
    file: Path, task: str, options: Options, form: AnswerFormat
) -> Iterator[tuple[int, Problem, str]]:
    """Yield place, problem and completion of each row of a file. Raises DataError for a bad row."""
    for place, row in file_rows(file):
        where = f"{file}, {file_unit(file)} {place}"
        try:
            if isinstance(row, BadRow) or not isinstance(row, Mapping):
                raise row if isinstance(row, BadRow) else BadRow("not an object with columns")
            problem = _problem(row, task, options, where)
            if row.get("completion") not in (None, ""):
                completion = read_text(row, "completion").strip()
            else:
                if row.get("rationale") in (None, ""):
                    raise BadRow("`completion` and `rationale` are both missing")
                rationale = read_text(row, "rationale").strip()
                completion = write_completion(form, rationale, problem.answer)
        except BadRow as fault:
            said = f"{fault.what} ({fault.detail})" if fault.detail else fault.what
            raise DataError(
                f"{where}: {said}. A worked example needs prompt and answer, or the columns of task "
                f"{task}; and completion or rationale."
            ) from fault
        yield place, problem, completion


def _problem(row: Mapping[str, Any], task: str, options: Options, where: str) -> Problem:
    """Return a row's problem: from its prompt and answer, or made by the task from its columns."""
    if row.get("answer") not in (None, "") and row.get("prompt") not in (None, ""):
        answer = read_plain(row["answer"], "answer") or ""
        others = {key: row[key] for key in row if key not in ("prompt", "answer", "id")}
        return Problem(where, read_prompt(row["prompt"], "prompt"), answer, others)
    if task in ("table", "math"):
        raise BadRow("`prompt` or `answer` is empty")
    own = {key: value for key, value in row.items() if key not in ("completion", "rationale")}
    plain = replace(options, columns={}, attributes=(), raters="each", bad_rows="stop")
    return problems_of([own], task, plain, where).problems[0]


# --- examples of a run


def save_demos(path: Path, demos: Demos) -> None:
    """Store worked examples as JSON lines that `--demos FILE` reads."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(asdict(demo)) + "\n" for demo in demos))


def read_demos(path: Path) -> Demos:
    """Return the worked examples that `save_demos` stored; () if there is no file."""
    return tuple(Demo(**row) for row in read_lines(path)) if path.exists() else ()


# --- checks


def _fault(demo: Demo, problem: Problem, prompts: Prompts, reward: Reward, accept_at: float) -> str:
    """Return why an example can't be parsed, or its answer is not accepted; "" if it is fine."""
    parsed = prompts.parse(demo.completion)
    if parsed.error:
        return f"no answer can be read from {brief(demo.completion)!r}: {parsed.error}."
    completion = Completion((), demo.completion, "stop", 0.0)
    try:
        [value] = reward([problem], [completion], [parsed])
    except FemtuneError as error:  # a user's reward may need columns of the data
        return f"the reward fails on it: {error}"
    if value is None or not value >= accept_at:
        earned = "no reward" if value is None else f"reward {value:g}"
        said = f"its answer is {brief(demo.answer)!r}, but {brief(parsed.answer)!r} was read from its"
        return f"{said} completion: {earned}, and {accept_at:g} is needed."
    return ""


def _spaced(prompt: Prompt) -> str:
    return " ".join(prompt_text(prompt).split())
