"""Problems: read from a file, checked before anything is generated, and split.

A row of a file is a problem (`prompt` may also be a list of role/content messages):

    {"id": "hs-1", "prompt": "Rate the response from 0 to 4. ...", "answer": 3, "axis": "help"}

`id` is optional. Further columns go to the reward with their types. A null is the same as no value.
Nothing is corrected silently: errors name the rows that can't be used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.atomic_files import replacing
from femtune._util.text import brief, first
from femtune.data.answer_format import parse_format
from femtune.data.files.columnar import JSON_COLUMNS
from femtune.data.files.reading import file_rows, file_unit
from femtune.data.grammar.text import bare
from femtune.data.plain_table import problems_of_rows
from femtune.data.prompts import Prompts, prompt_text, write_completion
from femtune.errors import ConfigError, DataError
from femtune.types import Completion, Problem, Reward, Tokenizer


def load_problems(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    answers: bool = True,
    header: bool = True,
) -> list[Problem]:
    """Load the problems of a file or folder of any kind that `files.reading` reads, in its order.

    `columns` maps femtune's name to the file's: `{"answer": "helpfulness"}`. The file's column stays
    available to the reward under its own name; a column that the file itself calls `answer` is then
    left out. Without `id`, ids are "<file stem>-<row>", with rows counted from 1. Answers become text:
    4 and 4.0 are "4", 4.5 is "4.5", true is "true"; csv cells stay as they are. With answers=False, a
    row may lack its answer, as items to predict do; it is then "".

    With header=False, the first line of a .csv or .tsv file is a row, and columns are called 1, 2, ...

    Raises DataError if the file or one of its rows can't be used.
    """
    file, required = Path(path).expanduser(), ("prompt", "answer") if answers else ("prompt",)
    problems = problems_of_rows(
        file_rows(file, header), str(file), file_unit(file), columns or {}, required, named=file.stem
    )
    if not problems:
        raise DataError(f"{file} holds no rows: it needs one problem in each row.")
    return problems


def save_problems(problems: Sequence[Problem], path: str | os.PathLike[str]) -> None:
    """Write problems as Parquet. `load_problems` returns equal ones, and `datasets` can read the file.

    Columns of mixed types (text in some rows, a number in others) are stored as JSON text, and listed
    in the file's metadata. Raises DataError for values that JSON can't hold.
    """
    if len({isinstance(problem.prompt, str) for problem in problems}) == 2:
        raise DataError(
            "prompts are text in some problems and messages in others: use one form for all."
        )
    table: dict[str, Any] = {
        "id": pa.array([problem.id for problem in problems], pa.string()),
        "prompt": None,
        "answer": pa.array([problem.answer for problem in problems], pa.string()),
    }
    columns: dict[str, list[Any]] = {"prompt": [problem.prompt for problem in problems]}
    for name in dict.fromkeys(name for problem in problems for name in problem.columns):
        if name in ("id", "prompt", "answer"):
            raise DataError(f"a further column has the reserved name `{name}`: rename it.")
        if not _is_unicode(name):
            raise DataError(
                f"a further column is called {name!r}, which is not valid Unicode: rename it."
            )
        columns[name] = [problem.columns.get(name) for problem in problems]
    as_json = []
    for name, values in columns.items():
        table[name] = native_array(values, _messages if name == "prompt" else None)
        if table[name] is None:
            as_json.append(name)
            try:
                table[name] = [None if v is None else json.dumps(v) for v in values]
            except TypeError as error:
                message = f"column `{name}` can't be stored: {error}. Use text, numbers or lists."
                raise DataError(message) from error
    metadata = {JSON_COLUMNS: json.dumps(as_json).encode()}
    # an open file, since pyarrow would read a name with a colon as a URI
    with replacing(Path(path)) as part, part.open("wb") as file:
        stored = pa.table(table).replace_schema_metadata(metadata)
        pq.write_table(stored, file, write_page_checksum=True)


def native_array(values: list[Any], read: Callable[[Any], Any] | None = None) -> Any:
    """Return values as an Arrow array, or None if `read` would not restore them from it exactly."""
    try:
        array = pa.array(values)
        back = array.to_pylist() if read is None else [*map(read, array.to_pylist())]
        return array if not _has_empty_struct(array.type) and back == values else None
    except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
        return None


def _messages(prompt: Any) -> Any:
    """Return a prompt as stored, without the nulls that Arrow adds for keys of other messages."""
    if isinstance(prompt, str):
        return prompt
    return [{key: text for key, text in message.items() if text is not None} for message in prompt]


def _is_unicode(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _has_empty_struct(kind: Any) -> bool:
    """Return True for a type with an empty struct, which Parquet can't store."""
    children = [kind.field(i).type for i in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not children) or any(map(_has_empty_struct, children))


def split(
    problems: Sequence[Problem], eval_share: float, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Split problems into a training set and a held-out share of about `eval_share` (0 to 1).

    The side of a problem depends only on the seed and its prompt (for a task, on the judged item). So
    equal problems stay together, and adding problems moves none.

    >>> problems = [Problem(str(i), f"What is {i} + 1?", str(i + 1)) for i in range(1000)]
    >>> train, held_out = split(problems, eval_share=0.1, seed=0)
    >>> len(train), len(held_out)
    (901, 99)

    Raises ConfigError for a share outside [0, 1), DataError if a side would be empty.
    """
    if not 0 <= eval_share < 1:
        raise ConfigError(f"eval_share is {eval_share:g}: it must be >= 0 and < 1.")
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        name = f"{seed}\x00{asked_key(problem)}".encode()
        place = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64
        sides[place < eval_share].append(problem)
    if eval_share and not all(sides):
        raise DataError(
            f"eval_share {eval_share:g} splits {len(problems)} problems into {len(sides[0])} for "
            f"training and {len(sides[1])} for evaluation: change eval_share, or give a file for each."
        )
    return sides


def check_disjoint(train: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Check that no test problem's prompt is trained on, ignoring whitespace.

    Raises DataError that names those that are.
    """
    trained = {name(problem): problem.id for problem in train for name in (item_key, _spaced)}
    pairs = (
        (problem.id, trained.get(item_key(problem)) or trained.get(_spaced(problem))) for problem in test
    )
    found = [
        f'"{test_id}" (in training "{train_id}")' for test_id, train_id in pairs if train_id is not None
    ]
    if found:
        raise DataError(
            f"{len(found)} of {len(test)} test problems are also training problems: {first(found)}. "
            "Remove them from one side, or let `split` make the test set."
        )


def check_gold(
    problems: Sequence[Problem],
    reward: Reward,
    accept_at: float = 1.0,
    prompts: Prompts | None = None,
) -> None:
    """Check that each problem's correct answer would be accepted, since otherwise no draw could be.

    y* is written as a model would write it, parsed by `prompts.parse`, then graded. If y* is a whole
    solution ("#### 5"), the answer in it must be accepted too. Raises DataError that names the problems
    and the reward's result, RewardError if the reward itself fails.
    """
    read = prompts or Prompts()
    answers = [problem.answer for problem in problems]
    inner = [_answer_within(answer) for answer in answers]
    graded = _graded(problems, answers, reward, read)
    held = [row for row, answer in enumerate(inner) if answer]
    again = _graded([problems[row] for row in held], [inner[row] for row in held], reward, read)
    found = []
    for row, (problem, (error, value)) in enumerate(zip(problems, graded, strict=True)):
        said = f'"{problem.id}": answer {brief(problem.answer)!r}'
        alone = again[held.index(row)][1] if inner[row] else None
        if inner[row] and not (alone is not None and alone >= accept_at):
            found.append(f"{said} is a solution whose answer {brief(inner[row])!r} is not accepted")
        elif error:
            found.append(f"{said} can't be read back, {error}")
        elif value is None or not value >= accept_at:
            earned = "no reward" if value is None else f"reward {value:g}"
            found.append(f"{said} earns {earned}, and {accept_at:g} is needed")
    if found:
        raise DataError(
            f"the correct answers of {len(found)} of {len(problems)} problems are not accepted: "
            f"{first(found, '; ')}. Correct the answers, or choose a reward that accepts them."
        )


def _graded(
    problems: Sequence[Problem], answers: Sequence[str], reward: Reward, prompts: Prompts
) -> list[tuple[str, float | None]]:
    """Return what prevents reading each answer from a completion ("" if nothing), and its reward."""
    if not problems:
        return []
    texts = [write_completion(prompts.format, f"It must be {answer}.", answer) for answer in answers]
    parsed = [prompts.parse(text) for text in texts]
    rewards = reward(problems, [Completion((), text, "stop", 0.0) for text in texts], parsed)
    return [(one.error, value) for one, value in zip(parsed, rewards, strict=True)]


_SOLUTIONS = tuple(parse_format(spec) for spec in ("boxed", "hash", "tag", "line"))


def _answer_within(gold: str) -> str:
    """Return the answer that a solution ends with, read as a completion's; "" for an answer alone."""
    read = (form.read(gold, require_rationale=False).answer for form in _SOLUTIONS)
    return next((answer for answer in read if answer and answer != bare(gold)), "")


def prompt_length(problem: Problem, prompts: Prompts, tokenizer: Tokenizer) -> tuple[int, str]:
    """Return the number of tokens of a problem's longer prompt, and which it is: plain or hinted."""
    names = ("plain", "hinted")
    return max((len(tokenizer.encode_prompt(prompts.render(name, problem))), name) for name in names)


def without_long(
    problems: Sequence[Problem],
    places: Mapping[str, int],
    prompts: Prompts,
    tokenizer: Tokenizer,
    room: int,
) -> tuple[list[Problem], dict[int, int]]:
    """Return the problems of places whose prompts have at most `room` tokens, and the other places.

    `places` are lines or rows by id; a problem without one has its number. Each place that is left out
    comes with the tokens of its first long prompt. Raises DataError if no problem is left.
    """
    placed = [(places.get(problem.id, n), problem) for n, problem in enumerate(problems, 1)]
    over: dict[int, int] = {}
    for place, problem in placed:
        length, _ = prompt_length(problem, prompts, tokenizer)
        if length > room:
            over.setdefault(place, length)
    kept = [problem for place, problem in placed if place not in over]
    if over and not kept:
        raise DataError(
            f"no problem fits the model: beside max_new_tokens there is room for {room} tokens, and the "
            f"shortest prompt has {min(over.values())}. Lower max_new_tokens, or take a model with a "
            "longer context."
        )
    return kept, over


def check_lengths(
    problems: Sequence[Problem],
    prompts: Prompts,
    tokenizer: Tokenizer,
    context: int,
    max_new_tokens: int,
    name_of: Callable[[Problem], str] = lambda problem: problem.id,
) -> int:
    """Check that all prompts fit the context; return the longest one's number of tokens.

    Counts plain and hinted prompts with the worked examples of `prompts`, and `max_new_tokens` after
    them. Raises DataError with the number that don't fit, the longest, and what would make them fit;
    `name_of` names a problem there.
    """
    lengths = [prompt_length(problem, prompts, tokenizer) for problem in problems]
    pairs = zip(problems, lengths, strict=True)
    over = [name_of(problem) for problem, (n, _) in pairs if n + max_new_tokens > context]
    (longest, name), problem = max(
        zip(lengths, problems, strict=True), key=lambda pair: pair[0], default=((0, ""), None)
    )
    if over and problem is not None:
        room = context - longest
        fits = f"set max_new_tokens to {room} or less" if room > 0 else "use a longer context"
        if prompts.demos:
            num = _demos_that_fit(problem, prompts, tokenizer, context - max_new_tokens)
            fits = f"leave out worked examples ({num} of {len(prompts.demos)} fit), or {fits}"
        named = first([*dict.fromkeys(over)])  # both orders of a pair have one line
        raise DataError(
            f"{len(over)} of {len(problems)} problems don't fit the context of {context} tokens. "
            f'The longest prompt (the {name} one of "{name_of(problem)}") has {longest} tokens, and '
            f"max_new_tokens is {max_new_tokens}: {fits}, or remove {named}, as "
            "--bad-rows skip does."
        )
    return longest


def _demos_that_fit(problem: Problem, prompts: Prompts, tokenizer: Tokenizer, room: int) -> int:
    """Return how many worked examples, counted from the first, fit before a problem."""
    for num in range(len(prompts.demos) - 1, 0, -1):
        fewer = prompts.with_demos(prompts.demos[:num])
        lengths = (len(tokenizer.encode_prompt(fewer.render(n, problem))) for n in ("plain", "hinted"))
        if max(lengths) <= room:
            return num
    return 0


GROUP = "femtune_group"  # the column: the cluster that the setting `group` names


def group_problems(
    problems: Sequence[Problem],
    column: str,
    rows: Mapping[int, Mapping[str, Any]] | None = None,
    places: Mapping[str, int] | None = None,
) -> list[Problem]:
    """Return the problems with the value of a column as their cluster; an empty one stands alone.

    The column is one of the problem's own, or of the row at the place of its id. Raises ConfigError if
    no row has the column, DataError if an item is in two clusters, as these could not be in two parts
    of the data.
    """
    known = [rows[places[each.id]] if rows and places else each.columns for each in problems]
    there = dict.fromkeys(name for row in known for name in row)
    if column not in there:
        names = ", ".join(name for name in there if name != "frame")
        raise ConfigError(f"group {column!r} is no column of the data: choose one of {names}.")
    made, clusters = [], dict[str, set[str]]()
    for problem, row in zip(problems, known, strict=True):
        value = row.get(column)
        name = "" if value is None else str(value).strip()
        clusters.setdefault(item_key(problem), set()).add(name)
        made.append(replace(problem, columns={**problem.columns, GROUP: name}))
    if crossed := [names for names in clusters.values() if len(names) > 1]:
        raise DataError(
            f"group {column!r}: {len(crossed)} items are in several groups, such as "
            f"{first(sorted(crossed[0]))}, so no split keeps both whole. Choose a column that each item "
            "has once, or leave it out: an item is a group already."
        )
    return made


def asked_key(problem: Problem) -> str:
    """Return the key that decides a problem's side: its cluster, else its item."""
    group = problem.columns.get(GROUP)
    return f"group\x00{group}" if group else item_key(problem)


def item_key(problem: Problem) -> str:
    """Return the item that a problem's task judges, else its prompt."""
    frame = problem.columns.get("frame")
    item = frame.get("item") if isinstance(frame, Mapping) else None
    return str(item) if item else _spaced(problem)


def _spaced(problem: Problem) -> str:
    return " ".join(prompt_text(problem.prompt).split())
