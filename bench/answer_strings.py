"""How often is a completion read as people read it, beside math-verify, lm-eval and simple-evals?

    python bench/answer_strings.py
    python bench/answer_strings.py --lm-eval DIR --simple-evals DIR --strings FILE --labels FILE FILE

By default, of the strings in tests/fixtures, which hold the two readings.

Each string is a completion with the kind of answer that was asked for. Two people read it, without
seeing any parser, and gave its one final answer, or none. A system is right on a string if it rewards
just the correct answers that the readers' answer equals: those of the closed set, or the numbers of
the text. Of a string with an answer key, only the verdict by that key counts, too. Where the readers
differ, neither is taken: the string counts in the agreement alone.

`--lm-eval` names a folder with the package lm_eval (pip install --no-deps --target DIR lm-eval),
`--simple-evals` a checkout of openai/simple-evals. Without them, these columns are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from femtune.data.answer_format import parse_format
from femtune.data.grammar.labels import Choices
from femtune.rewards.builtin import as_reward

ROOT = Path(__file__).parents[1]
OURS = ROOT / "tests/fixtures/answer_strings.jsonl"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Row = Mapping[str, Any]
Grade = Callable[[Row, str], bool]  # does this string earn the reward if that is the correct answer?


class Reading(NamedTuple):
    """What a reader took for the final answer, and whether the answer key accepts it."""

    answer: str | None
    correct: bool | None


def main() -> None:
    args = arguments()
    rows = load(args.strings)
    readers = [load(path) for path in args.labels]
    readings = {
        key: [Reading(*each) for each in row["readers"]]
        if "readers" in row
        else [Reading(each[key]["answer"], each[key]["correct"]) for each in readers]
        for key, row in rows.items()
    }
    if without := [key for key, found in readings.items() if not found]:
        raise SystemExit(f"{len(without)} strings have no readings: give --labels FILE FILE.")
    agreed = {key: reading for key in rows if (reading := agreement(readings[key]))}
    print(f"{len(rows)} strings; the readers agree on {len(agreed)} ({len(agreed) / len(rows):.3f})")
    systems = {"femtune": femtune(), "math-verify": math_verify()}
    if args.lm_eval:
        systems["lm-eval"] = lm_eval(args.lm_eval)
    if args.simple_evals:
        systems["simple-evals"] = simple_evals(args.simple_evals)
    wrong: dict[str, dict[str, list[str]]] = {}
    for name, grade in systems.items():
        wrong[name] = {
            key: found for key, said in agreed.items() if (found := misread(rows[key], said, grade))
        }
    show(rows, agreed, wrong)
    if args.misses:
        for key, found in wrong["femtune"].items():
            print(
                f"\n--- {key} ({rows[key]['kind']}): people read {agreed[key].answer!r}; "
                + "; ".join(found)
            )
            print(rows[key]["text"][-400:])


def load(path: Path) -> dict[str, Any]:
    """Load JSON lines by their id."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def agreement(readings: list[Reading]) -> Reading | None:
    """Return what the readers agree on, or None."""
    answers = {None if each.answer is None else _folded(each.answer) for each in readings}
    verdicts = {each.correct for each in readings}
    if len(verdicts) > 1 or (len(answers) > 1 and verdicts == {None}):
        return None
    return readings[0]


def _folded(answer: str) -> str:
    return " ".join(answer.split()).strip("$.").casefold()


def misread(row: Row, said: Reading, grade: Grade) -> list[str]:
    """Return the verdicts of a system that differ from the readers'."""
    wrong = []
    if said.correct is not None and grade(row, row["gold"]) != said.correct:
        wrong.append(f"correct answer {row['gold']!r} {'refused' if said.correct else 'rewarded'}")
    if said.correct is None or said.answer is None:
        for gold in sorted(possible(row, said)):
            wanted = said.answer is not None and _folded(gold) == _folded(said.answer)
            if grade(row, gold) != wanted and (wanted or not _same_number(gold, said.answer)):
                wrong.append(f"correct answer {gold!r} {'refused' if wanted else 'rewarded'}")
    return wrong


def _same_number(one: str, other: str | None) -> bool:
    try:
        return other is not None and float(one.replace(",", "")) == float(other.replace(",", ""))
    except ValueError:
        return False


def possible(row: Row, said: Reading) -> set[str]:
    """Return the answers that could be correct: the closed set, or the numbers of the text.

    A rating of 6 on a scale to 5 is an answer, and equals no correct one.
    """
    stated = set() if said.answer is None else {said.answer}
    return set(closed(row)) or {*_NUMBER.findall(row["text"]), *stated}


def closed(row: Row) -> list[str]:
    """Return the closed set of answers of a string's kind, or none."""
    kind = row["kind"]
    if match := re.fullmatch(r"rating (\d+) to (\d+)( in steps of 0.5)?", kind):
        low, high, step = int(match[1]), int(match[2]), 0.5 if match[3] else 1
        return [f"{low + step * place:g}" for place in range(int((high - low) / step) + 1)]
    if kind in ("A or B", "A, B or tie"):
        return ["A", "B", "tie"][: 3 if "tie" in kind else 2]
    return kind.removeprefix("letter among ").split(", ") if kind.startswith("letter") else []


def femtune() -> Grade:
    """The reading of completions and the default reward of each task."""

    def grade(row: Row, gold: str) -> bool:
        parsed = parse_format(row["format"]).read(row["text"], require_rationale=False)
        if parsed.error:
            return False
        return _reward(row)(parsed.answer, gold) >= 1

    return grade


def _reward(row: Row) -> Callable[[str, str], float]:
    kind, answers = row["kind"], ",".join(closed(row))
    if kind.startswith("rating"):
        low, high = closed(row)[0], closed(row)[-1]
        return as_reward(f"ordinal('{low},{high}{',0.5' if '0.5' in kind else ''}')").grade
    if kind.startswith("letter") and row["choices"]:
        read = Choices(*zip(*row["choices"], strict=True)).read  # as the reward of task `choice` does
        return lambda answer, gold: float(read(answer) == gold)
    if kind.startswith("letter"):
        return as_reward("choice").grade
    if answers:
        return as_reward(f"choice('{answers}')").grade
    return as_reward("exact" if kind == "text" else "math").grade


def math_verify() -> Grade:
    """math-verify with its extraction for the kind: letters as strings, else LaTeX and expressions."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    logging.disable(logging.WARNING)

    def grade(row: Row, gold: str) -> bool:
        letters = [] if row["kind"].startswith("rating") else closed(row)
        ways: Any = [LatexExtractionConfig(), ExprExtractionConfig()]
        if letters:
            ways = [StringExtractionConfig(strings=tuple(letters))]
        wanted = parse(gold, ways) or parse(f"${gold}$", ways)
        return bool(verify(wanted, parse(row["text"], ways)))

    return grade


def lm_eval(folder: Path) -> Grade:
    """lm-eval's filters: flexible-extract of gsm8k, custom-extract of MMLU-Pro, boxes of MATH."""
    sys.path.append(str(folder))
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML with lm-eval's tags, whose functions are not needed."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    tasks = folder / "lm_eval/tasks"

    def task(path: str) -> dict[str, Any]:
        return dict(yaml.load((tasks / path).read_text(encoding="utf-8"), Loader))

    numbers, letters = task("gsm8k/gsm8k-cot-zeroshot.yaml"), task("mmlu_pro/_default_template_yaml")
    flexible = next(each for each in numbers["filter_list"] if each["name"] == "flexible-extract")
    ignored = numbers["metric_list"][0]["regexes_to_ignore"]
    boxes = functions(tasks / "hendrycks_math/utils.py")

    def extracted(spec: Row, text: str) -> str:
        found = re.findall(spec["regex_pattern"], text)
        chosen = found[spec.get("group_select", 0)] if found else ""
        return next(filter(None, chosen), "") if isinstance(chosen, tuple) else chosen

    def bare(text: str) -> str:
        for pattern in ignored:
            text = re.sub(pattern, "", text)
        return text.strip().casefold()

    def grade(row: Row, gold: str) -> bool:
        if row["format"] == "boxed":
            box = boxes["last_boxed_only_string"](row["text"])
            return bool(box and boxes["is_equiv"](boxes["remove_boxed"](box), gold))
        lettered = closed(row) and not row["kind"].startswith("rating")
        spec = (letters["filter_list"][0] if lettered else flexible)["filter"][0]
        return bare(extracted(spec, row["text"])) == bare(gold)

    return grade


def simple_evals(folder: Path) -> Grade:
    """simple-evals' reading of MMLU's letters and MGSM's numbers; its MATH asks a model to compare."""
    common = functions(folder / "common.py")
    numbers = functions(folder / "mgsm_eval.py")

    def grade(row: Row, gold: str) -> bool:
        if closed(row) and not row["kind"].startswith("rating"):
            text = common["normalize_response"](row["text"])
            for answer in common["MULTILINGUAL_ANSWER_REGEXES"]:
                pattern = common["MULTILINGUAL_ANSWER_PATTERN_TEMPLATE"].format(answer)
                if match := re.search(pattern, text):
                    return bool(common["normalize_extracted_answer"](match.group(1)) == gold)
            return False
        return bool(numbers["score_mgsm"](gold, numbers["parse_answer"](row["text"], "Answer")))

    return grade


def functions(path: Path) -> dict[str, Any]:
    """Run a module's plain functions and its constants of text, without its imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = [
        each
        for each in tree.body
        if (isinstance(each, ast.FunctionDef) and not each.decorator_list)
        or (isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant | ast.List))
    ]
    for each in body:
        if isinstance(each, ast.FunctionDef):  # annotations name what is not imported
            each.returns = None
            for argument in each.args.args:
                argument.annotation = None
            each.args.defaults = [ast.Constant(None) for _ in each.args.defaults]
    there: dict[str, Any] = {"re": re}
    exec(compile(ast.fix_missing_locations(ast.Module(body, [])), str(path), "exec"), there)
    return there


def show(
    rows: Mapping[str, Row], agreed: Mapping[str, Reading], wrong: Mapping[str, Mapping[str, list[str]]]
) -> None:
    """Print the share of strings that each system reads rightly, by kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in agreed:
        kinds[rows[key]["kind"].split()[0].rstrip(",").replace("A", "pair")].append(key)
    print(f"\n{'':24}" + "".join(f"{name:>14}" for name in wrong))
    for kind, keys in [("all", list(agreed)), *sorted(kinds.items())]:
        line(f"{kind} ({len(keys)})", keys, wrong)
    answered = [key for key, said in agreed.items() if said.answer is not None]
    line(f"with an answer ({len(answered)})", answered, wrong)
    none = [key for key, said in agreed.items() if said.answer is None]
    line(f"without one ({len(none)})", none, wrong)


def line(title: str, keys: Iterable[str], wrong: Mapping[str, Mapping[str, list[str]]]) -> None:
    keys = list(keys)
    shares = (1 - sum(key in found for key in keys) / max(1, len(keys)) for found in wrong.values())
    print(f"{title:24}" + "".join(f"{share:14.3f}" for share in shares))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=Path, default=OURS)
    parser.add_argument("--labels", type=Path, nargs="*", default=[])
    parser.add_argument("--lm-eval", type=Path)
    parser.add_argument("--simple-evals", type=Path)
    parser.add_argument("--misses", action="store_true", help="print the strings that femtune misreads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
