"""Inputs that nobody should write, for everything that reads what others wrote; see tests/fuzzing.py.

    python bench/fuzz.py --inputs 100000
    python bench/fuzz.py --inputs 2000 --targets shard run --seed 7
    python bench/fuzz.py --repeat shard 1234                      # one input again, as a table names it
    python bench/fuzz.py --atheris answer -max_total_time=120     # by coverage: pip install atheris

Each target is read in a process of its own, whose end, be it by a signal or for lack of memory, is a
fault as well, as is an input that it does not come back from. Faults are written to --output-dir, with
their inputs; exit status 1 where there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

if "--atheris" in sys.argv:  # it puts its counters into code as that is imported
    import atheris

    instrumented = atheris.instrument_imports(include=["femtune"])
else:
    instrumented = contextlib.nullcontext()
with instrumented:
    from tests.fuzz.mangling import File
    from tests.fuzzing import TARGETS, Outcome, Target, made, outcome

STUCK_S = 120.0  # without an input done: in C code that no signal stops
MEMORY = 16 * 2**30  # bytes of address space of a process; pyarrow and torch map some 8 of them
KINDS = ("result", "refused", "fault")


@dataclass
class Tally:
    """What became of a target's inputs, and the seconds of processor time that they took."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: float = 0.0


def main() -> int:
    args = arguments()
    if args.repeat:
        return repeat(TARGETS[args.repeat[0]], args.seed, int(args.repeat[1]))
    if args.atheris:
        return guided(TARGETS[args.atheris], args.rest)
    for slow in ("torch", "transformers", "math_verify", "datasets"):  # once, not in each process
        importlib.import_module(slow)
    chosen = [TARGETS[name] for name in args.targets]
    shares = sum(target.share for target in chosen)
    print(f"{'target':14} {'inputs':>8} {'results':>8} {'errors':>8} {'faults':>7} {'inputs/s':>9}")
    total = Tally()
    for target in chosen:
        num = round(args.inputs * target.share / shares)
        found = fuzz(target, args.seed, num, args.output_dir)
        show(target.name, found)
        for kind in KINDS:
            total.counts[kind] += found.counts[kind]
        total.seconds += found.seconds
    show("all", total)
    if total.counts["fault"]:
        print(f"faults are in {args.output_dir}")
    return int(total.counts["fault"] > 0)


def show(name: str, found: Tally) -> None:
    results, errors, faults = (found.counts[kind] for kind in KINDS)
    num = results + errors + faults
    rate = num / max(found.seconds, 1e-9)
    print(f"{name:14} {num:8,} {results:8,} {errors:8,} {faults:7,} {rate:9,.0f}", flush=True)


def fuzz(target: Target, seed: int, num: int, folder: Path) -> Tally:
    """Inputs 0 to num - 1, in a process that is begun anew after each input that ends it."""
    context = multiprocessing.get_context("fork")  # forked, it has all imports
    # the number that is on, how many of each kind, and seconds of processor time
    shared = context.Array("d", 2 + len(KINDS))
    while shared[0] < num:
        process = context.Process(target=work, args=(target, seed, num, folder, shared))
        process.start()
        said = watched(process, shared)
        if said:
            number = int(shared[0])
            keep(folder, target, seed, number, Outcome("fault", said))
            shared[1 + KINDS.index("fault")] += 1
            shared[0] = number + 1
    return Tally(dict(zip(KINDS, map(int, shared[1:-1]), strict=True)), shared[-1])


def watched(process: Any, shared: Any) -> str:
    """Waits for a process to end; what is wrong, where it ended badly or is stuck."""
    number, since = shared[0], time.monotonic()
    while process.is_alive():
        process.join(1.0)
        if shared[0] != number:
            number, since = shared[0], time.monotonic()
        elif time.monotonic() - since > STUCK_S:
            process.kill()
            process.join()
            return f"stuck for over {STUCK_S:g} s, in code that no signal stops"
    return f"ended the process: exit code {process.exitcode}" if process.exitcode else ""


def work(target: Target, seed: int, num: int, folder: Path, shared: Any) -> None:
    """Reads inputs from where the last process came to."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # not for people: transformers' warnings of odd settings of models
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        for number in range(int(shared[0]), num):
            shared[0] = number
            begun = time.process_time()
            found = outcome(target, made(target, seed, number), Path(scratch))
            shared[-1] += time.process_time() - begun
            if found.kind == "fault":
                keep(folder, target, seed, number, found)
            shared[1 + KINDS.index(found.kind)] += 1
        shared[0] = num


def keep(folder: Path, target: Target, seed: int, number: int, found: Outcome) -> None:
    """Writes a fault and its input."""
    value = made(target, seed, number)
    place = folder / f"{target.name}-{seed}-{number}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "fault.txt").write_text(f"{found.said}\n", encoding="utf-8", errors="backslashreplace")
    if isinstance(value, File):
        value.write(place / "input")
    else:
        (place / "input.txt").write_text(repr(value), encoding="utf-8")


def repeat(target: Target, seed: int, number: int) -> int:
    value = made(target, seed, number)
    with tempfile.TemporaryDirectory() as scratch:
        found = outcome(target, value, Path(scratch))
    print(f"{value!r}\n\n{found.kind}: {found.said}")
    return int(found.kind == "fault")


def guided(target: Target, options: list[str]) -> int:
    """Bytes by atheris, which keeps those that reach new code of femtune; ends at the first fault."""
    example = made(target, 0, 0)

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        value = File(example.name, data) if isinstance(example, File) else text
        found = outcome(target, text.split("\n") if isinstance(example, list) else value, scratch)
        if found.kind == "fault":
            raise RuntimeError(found.said)

    scratch = Path(tempfile.mkdtemp())
    atheris.Sampler([sys.argv[0], *options], read)
    atheris.Fuzz()  # ends the process
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--targets", nargs="+", default=[*TARGETS], choices=[*TARGETS], metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--repeat", nargs=2, metavar=("NAME", "NUMBER"))
    parser.add_argument("--atheris", choices=[*TARGETS], metavar="NAME")
    known, rest = parser.parse_known_args()
    known.rest = rest
    if rest and not known.atheris:
        parser.error(f"{rest[0]} is not known")
    return known


if __name__ == "__main__":
    sys.exit(main())
