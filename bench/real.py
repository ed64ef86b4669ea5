"""The paper's comparison on labels by people: run cells, print tables.

    python bench/real.py run --data DATA --model MODEL             # all cells that are not stored
    python bench/real.py run singleop --schemes pps auto --seeds 0  --data DATA --model MODEL
    python bench/real.py list                                      # what is stored
    python bench/real.py tables                                    # from stored cells alone

A cell is a task, a contender and a seed. Those that we ran took 4 to 11 minutes of one core with
SmolLM2-135M-Instruct. Each runs in a process of its own, and is stored as it ends: they may be run on
several machines: their files in bench/real/cells are joined by copying. MODEL is a folder or a name on
the Hub, DATA a folder as bench/real/DATA.md says. We ran SmolLM2-135M-Instruct alone. To fill the tables
for a model of 1B to 8B on a GPU:

    python bench/real.py run --data DATA --model Qwen/Qwen3-1.7B --cells cells-qwen3-1.7b
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    args = arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from real.tables import markdown, stored
    from real.tasks import SEEDS, TASKS

    if unknown := [name for name in args.tasks if name not in TASKS]:
        sys.exit(f"{', '.join(unknown)}: not known. There are {', '.join(TASKS)}.")
    if args.verb == "list":
        print("\n".join(stored(args.cells)))
        return
    if args.verb == "tables":
        print(markdown(args.cells, args.tasks or list(TASKS)), end="")
        return
    from real.running import is_done, run_cell

    for seed in args.seeds or SEEDS:  # seed by seed, so that what is stopped has whole seeds
        for name in args.tasks or TASKS:
            for contender in args.schemes or TASKS[name].schemes:
                if is_done(name, contender, seed, args.cells):
                    continue
                if args.here:
                    print(
                        run_cell(
                            TASKS[name],
                            contender,
                            seed,
                            model=args.model,
                            data=args.data,
                            runs=args.runs,
                            folder=args.cells,
                        )
                    )
                    continue
                own = ["--schemes", contender, "--seeds", str(seed), "--model", args.model]
                places = ["--data", str(args.data), "--runs", str(args.runs), "--cells", str(args.cells)]
                command = [sys.executable, __file__, "run", name, *own, *places, "--here"]
                if subprocess.run(command, check=False).returncode:
                    print(f"{name} {contender} {seed} failed; the others go on.", file=sys.stderr)


def arguments() -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=more, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run the cells that are not stored")
    run.add_argument("--schemes", nargs="+", help="contenders; by default the task's")
    run.add_argument("--seeds", type=int, nargs="+", help="by default all three")
    run.add_argument("--model", required=True, help="a folder, or a name on the Hub")
    run.add_argument("--data", type=Path, required=True, help="folder with the published files")
    run.add_argument("--runs", type=Path, default=ROOT / "runs/real", help="scratch; may be removed")
    run.add_argument("--here", action="store_true", help="in this process, not one a cell")
    listing = verbs.add_parser("list", help="stored cells")
    tables = verbs.add_parser("tables", help="tables from stored cells")
    for verb in (run, listing, tables):
        verb.add_argument("tasks", nargs="*", metavar="TASK", help="by default all")
        verb.add_argument("--cells", type=Path, default=ROOT / "bench/real/cells", help="stored cells")
    return parser.parse_args()


if __name__ == "__main__":
    main()
