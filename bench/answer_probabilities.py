"""Votes beside the probabilities of answers, from the same stored draws: the table in RESULTS.md.

    python bench/answer_probabilities.py rows pandalm.jsonl rows.jsonl    # 100 rows, seed 0
    femtune evaluate rows.jsonl --task judge --draws 4 --temperature 1 --output-dir run ...
    python bench/answer_probabilities.py table run --draws 1 4

`table` takes the first k draws of each problem, so that votes and probabilities of one k are of the same
generated tokens. It also measures the pairs of a pairwise task in both orders together, as `predict`
answers them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from femtune.data.problems import load_problems
from femtune.data.tasks.frames import frame
from femtune.evaluation.aggregate import item_id, prediction
from femtune.evaluation.answer_metrics import side_by_side
from femtune.evaluation.scored_answers import read_scored, scoring_seconds
from femtune.runs.draws import by_problem, read_draws

MEASURES = ("accuracy", "log_likelihood", "brier", "ece", "spearman", "pearson", "mae")


def main() -> None:
    args = arguments()
    if args.verb == "rows":
        rows = [*read_rows(args.file)]
        chosen = random.Random(0).sample(rows, min(args.num, len(rows)))
        args.output.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        print(f"{len(chosen)} of {len(rows)} rows in {args.output}")
        return
    show(args.run, args.draws, args.kind)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows as femtune reads them; of PandaLM's annotations, the majority, without ties."""
    if file.suffix == ".tsv":
        with file.open(newline="") as lines:
            yield from (
                {k: v for k, v in row.items() if k} for row in csv.DictReader(lines, delimiter="\t")
            )
        return
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if "annotator1" not in row:
            yield row
            continue
        [(label, count)] = Counter(row[f"annotator{n}"] for n in (1, 2, 3)).most_common(1)
        texts = [row["response1"], row["response2"]]
        if label and count > 1 and all(isinstance(text, str) for text in texts) and len({*texts}) == 2:
            yield {
                "id": str(row["idx"]),
                "prompt": f"{row['instruction']}\n{row['input']}".strip(),
                "response_a": texts[0],
                "response_b": texts[1],
                "preference": "AB"[label - 1],
            }


def show(run: Path, counts: list[int], kind: str) -> None:
    """Print a table with a line for each number of draws and way of combining them."""
    folder = run / "iteration-000"
    problems = {problem.id: problem for problem in load_problems(run / "eval.parquet")}
    stored, scored = [*read_draws(folder / kind)], read_scored(folder / f"{kind}_answers")
    tokens = sum(len(draw.completion.tokens) for draws, _ in stored for draw in draws)
    seconds = sum(timing["total_s"] for _, timing in stored)
    print(
        f"{len(problems)} problems, {tokens:,} tokens drawn in {seconds:.0f} s, answers scored in "
        f"{scoring_seconds(folder / f'{kind}_answers'):.0f} s"
    )
    print("| draws | by | " + " | ".join(MEASURES) + " | pairs |")
    print("|---|---|" + "---|" * (len(MEASURES) + 1))
    for k in counts:
        first = [([draw for draw in draws if draw.key.index < k], timing) for draws, timing in stored]
        ways = side_by_side(problems, first, scored)
        for way, metrics in ways.items():
            own = scored if way == "by_probabilities" else {}
            cells = [cell(metrics, name) for name in MEASURES]
            print(f"| {k} | {way[3:]} | " + " | ".join(cells) + f" | {pairs(problems, first, own)} |")


def cell(metrics: dict[str, Any], name: str) -> str:
    if metrics.get(name) is None:
        return ""
    low, high = metrics.get(f"{name}_ci", (float("nan"), float("nan")))
    return f"{metrics[name]:.3f} ({low:.3f} to {high:.3f})"


def pairs(problems: dict[str, Any], stored: list[Any], scored: Any) -> str:
    """Accuracy on pairs, both orders together."""
    drawn = [(problems[name], draws) for chunk, _ in stored for name, draws in by_problem(chunk)]
    if (known := frame(drawn[0][0])) is None or known.form != "pair":
        return ""
    right = []
    for _, orders in groupby(drawn, key=lambda one: item_id(one[0])):
        both = list(orders)
        right.append(prediction(both, scored=scored)["answer"] == both[0][0].answer)
    return f"{sum(right) / len(right):.3f} of {len(right)}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rows = verbs.add_parser("rows", help="choose rows of a data set")
    rows.add_argument("file", type=Path)
    rows.add_argument("output", type=Path)
    rows.add_argument("--num", type=int, default=100)
    table = verbs.add_parser("table", help="measure the stored draws of an evaluation")
    table.add_argument("run", type=Path)
    table.add_argument("--draws", type=int, nargs="+", default=[1, 4])
    table.add_argument("--kind", default="eval", choices=("eval", "eval_demos"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
