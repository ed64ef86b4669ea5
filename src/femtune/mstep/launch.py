"""The M-step in processes started by a launcher: `accelerate launch`, `torchrun`, `srun torchrun`, ...

    launch_m_step("torchrun --nproc-per-node 8", examples, start, out, training, tokenizer, seed=1)

runs `torchrun --nproc-per-node 8 -m femtune.mstep.launch FOLDER`. FOLDER is beside `out` and must be
visible to every machine of the job:

    spec.json      arguments              tokenizer/   a Hugging Face folder
    told.jsonl     steps and warnings, reported by the first process
    error-R.json   the error of process R
    output.txt     the output of the launcher and the processes
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from femtune import errors
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.errors import ConfigError, FemtuneError
from femtune.mstep.average import Mean
from femtune.mstep.config import Training
from femtune.mstep.fit import MStep, OutOfMemory, m_step

log = logging.getLogger("femtune")

_PATIENCE_S = 60.0  # seconds for a launcher to stop before it is killed; torchrun takes up to 30
_LOOK_EVERY_S = 0.2


def check_launch(command: str) -> list[str]:
    """Return the words of a launcher's command. Raises ConfigError if its program is not found.

    >>> check_launch("torchrun --nproc-per-node 2")[1:]
    ['--nproc-per-node', '2']
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"launch {command!r} can't be read as a command: {error}.") from error
    beside = str(Path(sys.executable).parent)  # where pip installs torchrun, on the path or not
    found = shutil.which(words[0]) or shutil.which(words[0], path=beside) if words else None
    if found is None:
        raise ConfigError(
            f"launch {command!r}: there is no program {words[0] if words else ''!r}. "
            'Give what starts the processes, such as "accelerate launch --num_processes 8".'
        )
    return [found, *words[1:]]


def launch_m_step(
    command: str,
    examples: Path,
    start: Path,
    out: Path,
    training: Training,
    tokenizer: ChatTokenizer,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    dtype: str = "float32",
    master: Path | None = None,
    mean: Mean | None = None,
) -> MStep:
    """Run `m_step` in the processes that this command starts; they end with this one.

    If a process runs out of memory, all are started again, with micro-batches of half the size and the
    same optimizer steps. Raises what m_step raises, ConfigError for an invalid command, and
    FemtuneError, with the end of the output, if the processes fail for another reason.
    """
    words = check_launch(command)
    out = out.absolute()
    halvings = 0
    while True:
        with _folder(out) as folder:
            template = [[name, value] for name, value in tokenizer.template_args]
            spec = {
                "examples": str(examples.absolute()),
                "start": str(start.absolute()),
                "out": str(out),
                "training": asdict(training),
                "template_args": template,
                "seed": seed,
                "halvings": halvings,
                "dtype": dtype,
                "master": None if master is None else str(master.absolute()),
                "mean": None if mean is None else [str(mean.model.absolute()), mean.share],
            }
            tokenizer.tokenizer.save_pretrained(folder / "tokenizer")
            (folder / "spec.json").write_text(json.dumps(spec))
            try:
                status = _run([*words, "-m", "femtune.mstep.launch", str(folder)], folder, on_step)
                if status != 0:
                    raise _failure(folder, command, status)
                return MStep(**json.loads((out / "m_step.json").read_text()))
            except OutOfMemory as error:
                log.warning("%s The M-step starts over with these settings.", error)
                halvings += 1


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Create a temporary folder beside `out`.

    Folders of killed runs are removed: processes left behind cannot report their next step, and
    end.
    """
    for left in out.parent.glob(f".{out.name}.launch-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = out.with_name(f".{out.name}.launch-{uuid.uuid4().hex[:8]}")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(words: list[str], folder: Path, on_step: Callable[[int, int, float], None]) -> int:
    """Run a launcher to its end, passing on its reports; return its exit status."""
    told = folder / "told.jsonl"
    told.touch()
    with (folder / "output.txt").open("wb") as output, told.open() as lines:
        # a separate session, so that this process handles Ctrl-C and can stop the whole group
        launcher = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        rest = ""
        try:
            while True:
                status = launcher.poll()
                rest = _pass_on(rest + lines.read(), on_step)
                if status is not None:
                    return status
                time.sleep(_LOOK_EVERY_S)
        except BaseException:
            _end(launcher)
            raise


def _pass_on(text: str, on_step: Callable[[int, int, float], None]) -> str:
    """Pass on all complete lines; return the rest."""
    *lines, rest = text.split("\n")
    for line in lines:
        said = json.loads(line)
        if "warning" in said:
            log.warning("%s", said["warning"])
        else:
            on_step(*said["step"])
    return rest


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Stop a launcher, with SIGTERM first, as only it can stop processes on other machines."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(launcher.pid, sign)
            launcher.wait(_PATIENCE_S)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _failure(folder: Path, command: str, status: int) -> FemtuneError:
    """Return the first error that a process reported, else the end of the output."""
    reasons = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    given: list[dict[str, str]] = [json.loads(path.read_text()) for path in reasons]
    # if one process fails, others fail too, and not always later
    given.sort(key=lambda reason: reason["kind"] == "")
    if given and given[0]["kind"]:
        if given[0]["kind"] == OutOfMemory.__name__:
            return OutOfMemory(given[0]["message"])
        kind: Any = getattr(errors, given[0]["kind"], FemtuneError)
        made: FemtuneError = kind(given[0]["message"])
        return made
    printed = (folder / "output.txt").read_text(errors="replace").splitlines()
    shown = given[0]["message"].splitlines() if given else printed
    return FemtuneError(
        f"the M-step's processes, started by {command!r}, ended with status {status}. "
        "Their last output:\n" + "\n".join(shown[-20:])
    )


def main(folder: Path) -> None:
    """Run one process of the job: the M-step of FOLDER/spec.json. Errors are stored there too."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        _take_part(folder, tells=rank == 0)
    except BaseException as error:
        _write(folder / f"error-{rank}.json", _reason(error))
        raise


def _take_part(folder: Path, tells: bool) -> None:
    from transformers import AutoTokenizer

    from femtune.mstep import distributed

    spec = json.loads((folder / "spec.json").read_text())

    def tell(**said: Any) -> None:
        if tells:  # fails if the folder is gone: see _folder
            with (folder / "told.jsonl").open("r+") as file:
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(said) + "\n")

    log.addHandler(_Teller(tell))
    log.propagate = False
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    training: dict[str, Any] = spec["training"]
    training["report_to"] = tuple(training["report_to"])  # a list in JSON
    m_step(
        Path(spec["examples"]),
        Path(spec["start"]),
        Path(spec["out"]),
        Training(**training),
        ChatTokenizer(tokenizer, tuple((name, value) for name, value in spec["template_args"])),
        seed=spec["seed"],
        on_step=lambda step, steps, loss: tell(step=[step, steps, loss]),
        halvings=spec["halvings"],
        dtype=spec["dtype"],
        master=None if spec["master"] is None else Path(spec["master"]),
        mean=None if spec["mean"] is None else Mean(Path(spec["mean"][0]), spec["mean"][1]),
    )
    distributed.leave()


class _Teller(logging.Handler):
    """A log handler that passes warnings to the process that started the job."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(warning=record.getMessage())


def _reason(error: BaseException) -> dict[str, str]:
    """Return a femtune error as kind and message, any other as its traceback."""
    if isinstance(error, FemtuneError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "", "message": "".join(traceback.format_exception(error))}


def _write(path: Path, value: dict[str, str]) -> None:
    """Write a value atomically; do nothing if the folder is gone."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value))
        os.replace(part, path)
    except OSError:
        return


if __name__ == "__main__":
    # import the module by its name, so that its classes are identical to those of other modules
    from femtune.mstep.launch import main as this_main

    this_main(Path(sys.argv[1]))
