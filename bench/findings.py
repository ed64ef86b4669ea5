"""The evidence in docs/findings.md: run an experiment, store its numbers, draw its figures.

    python bench/findings.py run schemes-rubric    # -> bench/findings/schemes-rubric.csv, its figures
    python bench/findings.py run schemes-rubric --seeds 3 4    # some seeds, beside another process
    python bench/findings.py draw                    # -> docs/pictures/findings-*.svg, tables as text
    python bench/findings.py list                    # experiments and figures

What is run, and with which contenders and seeds, stands in bench/findings/experiments.py. Runs are kept
in runs/findings: a command that was stopped goes on where it was, and an experiment that gets another
contender or seed runs only that. The CSV holds the seeds that are whole. Figures are drawn from the CSV
files alone, and docs/findings.md takes its tables from them as the site is built.

A run of 12 iterations on the rubric world takes about a minute on one core. --workers 1 in several
terminals uses several cores best: each experiment, or part of its seeds, in its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    args = arguments()
    # before torch is imported, here and in the runs' processes
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    from femtune.errors import FemtuneError
    from findings import running
    from findings.experiments import EXPERIMENTS, FIGURES, FOLDER, command
    from findings.pictures import draw
    from findings.tables import markdown

    known = FIGURES if args.verb == "draw" else EXPERIMENTS
    if unknown := [name for name in args.names if name not in known]:
        sys.exit(f"{', '.join(unknown)}: not known. There are {', '.join(known)}.")
    if args.verb == "list":
        for figure in FIGURES.values():
            print(f"{figure.name:<10}{command(figure)}")
        return
    figures = [FIGURES[name] for name in args.names or FIGURES] if args.verb == "draw" else []
    try:
        for name in args.names if args.verb == "run" else ():
            experiment = EXPERIMENTS[name]
            running.run(experiment, args.runs, workers=args.workers, seeds=args.seeds)
            made = running.rows(experiment, args.runs)
            print(running.write(experiment, made, args.runs, FOLDER))
            figures += [each for each in FIGURES.values() if name in each.experiments]
        for figure in dict.fromkeys(figures):
            print(f"\n{draw(figure).relative_to(ROOT)}\n\n{markdown(figure)}", end="")
    except FemtuneError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def arguments() -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=more, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="do what is not stored of experiments, and draw their figures")
    run.add_argument("names", nargs="+", metavar="EXPERIMENT")
    run.add_argument("--workers", type=int, help="runs at a time; by default one a core")
    run.add_argument("--seeds", type=int, nargs="+", help="only these; the CSV has all that are done")
    run.add_argument("--runs", type=Path, default=ROOT / "runs/findings", help="scratch; may be removed")
    draw = verbs.add_parser("draw", help="draw figures from the CSV files")
    draw.add_argument("names", nargs="*", metavar="FIGURE", help="by default all")
    verbs.add_parser("list", help="figures, and the commands that make them").set_defaults(names=())
    return parser.parse_args()


if __name__ == "__main__":
    main()
