"""What the command line refuses: in a sentence, in the first second, before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from femtune.cli.main import USAGE, main
from femtune.data.tasks.load import Options, read_task
from femtune.runs.run import FORMAT
from femtune.schemes.named import AUTO

from .rubric_world import JUDGE, SEEDLING, Row, listing, make_world, rows_of, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def asked(path: Path) -> list[Row]:
    """A file of ratings as prompts and answers, the form of data that is no task's."""
    problems = read_task(path, "judge", Options(raters="named", scale="1,5")).problems
    return [
        {"id": p.id, "prompt": p.prompt, "answer": p.answer, "truth": p.columns["truth"]}
        for p in problems
    ]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdef", "bcdefg", strict=True)
)


@dataclass(frozen=True)
class Bad:
    """A command that is refused, in a folder with `train.jsonl`, `test.jsonl`, and what `make` adds.

    These hold prompts and answers, `rated.jsonl` the ratings that they were made of.
    """

    argv: str  # {} is the seedling, [] the rubric world's flags
    said: tuple[str, ...]  # what the message contains
    make: Callable[[Path, list[Row]], object] = lambda folder, rows: None
    tokenizer: bool = False  # found out with the model's tokenizer, for which transformers is needed


def status_of(name: str) -> int:
    """Return the exit status: 2 where the command itself can't be understood."""
    return USAGE if name in MISUSED else 1


def changed(number: int, source: str = "", **values: Any) -> Callable[[Path, list[Row]], object]:
    """Writes bad.jsonl, row `number` of which is changed; None takes a column away from all."""

    def make(folder: Path, rows: list[Row]) -> None:
        rows = rows_of(folder / source) if source else rows
        rows[number - 1].update(values)
        gone = [name for name, value in values.items() if value is None]
        kept = [{k: v for k, v in row.items() if k not in gone} for row in rows]
        write(folder / "bad.jsonl", kept)

    return make


def twins(folder: Path, rows: list[Row]) -> None:
    rows[1]["id"] = "twin"
    changed(7, id="twin")(folder, rows)


def a_run(folder: Path, rows: list[Row]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "config.yaml").write_text(f"format: {FORMAT}\nmodel: seedling\nscheme: star\n")


def a_file(name: str, text: str = "") -> Callable[[Path, list[Row]], object]:
    def make(folder: Path, rows: list[Row]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return make


MISUSED = (
    "an engine is unknown",
    "a task is unknown",
    "a choice of raters is unknown",
    "a flag is unknown",
    "a key of the file is unknown",
    "a value of the file is wrong",
    "a command is unknown",
    "the model is not given",
)
BAD = {
    "an engine is unknown": Bad("train train.jsonl {} --engine vlm", ("--engine", "vllm", "openai")),
    "a setting is of another engine": Bad(
        "train train.jsonl {} --engine-args tensor_parallel_size=2",
        ("engine_args is for --engine vllm",),
    ),
    "a server's URL is for another engine": Bad(
        "train train.jsonl {} --base-url http://x/v1", ("base_url is for --engine openai",)
    ),
    "a server is to learn full weights": Bad(
        "train train.jsonl {} --engine openai --base-url http://x/v1",
        ("Train through it with --use-peft",),
    ),
    "a server has no URL": Bad(
        "sample train.jsonl {} --engine openai", ("set OPENAI_BASE_URL", "--base-url")
    ),
    "a cluster has no workers": Bad(
        "train train.jsonl {} --ray-address auto", ("ray_address is for Ray workers", "set ray_workers")
    ),
    "a cluster is not there": Bad(
        "train train.jsonl {} --ray-workers 2 --ray-address 127.0.0.1:1",
        ("no Ray cluster at 127.0.0.1:1", "ray start --head"),
    ),
    "workers are to overlap": Bad(
        "train train.jsonl {} --ray-workers 2 --overlap", ("overlap is not supported with ray_workers",)
    ),
    "shards have no processes": Bad("train train.jsonl {} --fsdp", ("fsdp needs several processes",)),
    "a launcher is not there": Bad(
        "train train.jsonl {} --launch nosuch", ("there is no program 'nosuch'",), tokenizer=True
    ),
    "a device is not known": Bad(
        "estimate train.jsonl {} --hardware h1000", ("'h1000'", "Did you mean h100?")
    ),
    "a column is missing": Bad(
        "train bad.jsonl {}", ("no column `answer`", "it has id, prompt, truth"), changed(1, answer=None)
    ),
    "a task's column is missing": Bad(
        "train bad.jsonl {} []",
        (
            "holds no rows for task judge",
            "The nearest schema is judge ratings",
            "--columns 'score=<its name>'",
        ),
        changed(1, "rated.jsonl", score=None),
    ),
    "ratings are no table of prompts and answers": Bad(
        "train rated.jsonl {}", ("no column `answer`", "These flags would read it", "--task judge")
    ),
    "a table of prompts and answers is no ratings": Bad(
        "train train.jsonl {} []", ("holds no rows for task judge", "`response`, `score`")
    ),
    "a task is unknown": Bad("train rated.jsonl {} --task jugde", ("--task", "judge", "jugde")),
    "a task's column is called otherwise": Bad(
        "train rated.jsonl {} [] --columns score=scor",
        ("no column `scor` for `score`", "Did you mean score=score?"),
    ),
    "a rating is off the scale": Bad(
        "train bad.jsonl {} []",
        ("`score` is off the scale, 1 to 5: line 4 (9)", "Or skip them with --bad-rows skip"),
        changed(4, "rated.jsonl", score=9),
    ),
    "a scale contradicts the data": Bad(
        "train rated.jsonl {} --task judge --scale 1,3", ("off the scale, 1 to 3", "lines")
    ),
    "a scale is none": Bad(
        "train rated.jsonl {} --task judge --scale 5,1",
        ("'5,1'", 'give "1,5"'),
    ),
    "ratings show no scale": Bad(
        "train bad.jsonl {} --task judge",
        ("can't be inferred from the ratings", "--scale 1,5,0.5"),
        changed(4, "rated.jsonl", score=2.5),
    ),
    "a rater has no name": Bad(
        "train bad.jsonl {} []",
        ("no `rater`, which --raters named needs: line 6",),
        changed(6, "rated.jsonl", rater=""),
    ),
    "an attribute is unknown": Bad(
        "train rated.jsonl {} [] --attributes tone", ("no attribute 'tone'", "it has none")
    ),
    "a choice of raters is unknown": Bad(
        "train rated.jsonl {} --task judge --raters all", ("--raters", "each")
    ),
    "a file has no split": Bad("train rated.jsonl {} [] --split test", ("is a file", "on the Hub")),
    "a test response is trained on": Bad(
        "train rated.jsonl {} [] --eval-data bad.jsonl",
        ("24 of 24 test problems are also training problems",),
        changed(1, "rated.jsonl", rater="Sasha"),
    ),
    "there is nothing to be soft about": Bad(
        "train train.jsonl {} --soft-accept 1", ("soft_accept", "needs ratings")
    ),
    "softness is none": Bad(
        "train rated.jsonl {} [] --soft-accept -1", ("soft_accept must be > 0", "got -1")
    ),
    "soft acceptance of all ratings": Bad(
        "train rated.jsonl {} [] --soft-accept 1 --accept-at 0.5", ("in place of accept_at",)
    ),
    "a column is called otherwise": Bad(
        "train train.jsonl {} --columns answer=truht", ("no column `truht`", "answer=truth")
    ),
    "an answer is empty": Bad(
        "train bad.jsonl {}", ("`answer` is empty: line 3",), changed(3, answer="")
    ),
    "a prompt is empty": Bad(
        "train bad.jsonl {}", ("`prompt` is empty: line 5",), changed(5, prompt=" ")
    ),
    "an id occurs twice": Bad("train bad.jsonl {}", ('line 7 ("twin"', "line 2"), twins),
    "the reward can't read an answer": Bad(
        "train bad.jsonl {} --reward ordinal(1,5)", ("1 of 24", "'good'"), changed(4, answer="good")
    ),
    "a prompt is too long": Bad(
        "train bad.jsonl {}",
        ("1 of ", "context of 512 tokens", "The longest prompt", "tokens"),
        changed(2, prompt="It is long. " * 500),
        tokenizer=True,
    ),
    "a model folder is none": Bad(
        "train train.jsonl --model ./notes", ("no config.json", "todo.txt"), a_file("notes/todo.txt")
    ),
    "a model is nowhere": Bad("train train.jsonl --model ./nowhere", ("nowhere is no model folder",)),
    "a run has another configuration": Bad(
        "train train.jsonl {}", ("-scheme: star", f"+scheme: {AUTO}"), a_run
    ),
    "one run of a comparison has another configuration": Bad(
        "compare train.jsonl {} --schemes star pps",
        ("-scheme: rejection:1", "+scheme: pps"),
        a_file("out/pps-seed0/config.yaml", f"format: {FORMAT}\nscheme: rejection:1\n"),
    ),
    "the output is another folder": Bad(
        "train train.jsonl {}", ("not a run directory", "thesis.tex"), a_file("out/thesis.tex")
    ),
    "the output is a file": Bad("train train.jsonl {}", ("out can't be written",), a_file("out")),
    "a test problem is trained on": Bad(
        "train train.jsonl {} --eval-data bad.jsonl",
        ("24 of 24 test problems are also training problems",),
        changed(1),
    ),
    "a flag is unknown": Bad("train train.jsonl {} --iterationz 3", ("--iterationz", "--iterations")),
    "a key of the file is unknown": Bad(
        "train train.jsonl {} --config run.yaml",
        ("run.yaml has an unknown setting, 'iterationz'", "Did you mean iterations?"),
        a_file("run.yaml", "iterationz: 3\n"),
    ),
    "a value of the file is wrong": Bad(
        "train train.jsonl {} --config run.yaml",
        ("iterations from", "run.yaml", '"two" into int'),
        a_file("run.yaml", "iterations: two\n"),
    ),
    "the file is not valid YAML": Bad(
        "train train.jsonl {} --config=run.yaml",
        ("run.yaml is not valid YAML", "line 2"),
        a_file("run.yaml", "a: [\n"),
    ),
    "the file is a bomb of aliases": Bad(
        "train train.jsonl {} --config run.yaml",
        ("run.yaml holds over 100,000 values, with aliases expanded.",),
        a_file("run.yaml", BOMB),
    ),
    "the file has a number that is none": Bad(
        "train train.jsonl {} --config run.yaml",
        ("run.yaml is not valid YAML: invalid literal",),
        a_file("run.yaml", "seed: !!int x\n"),
    ),
    "the file is a list": Bad(
        "train train.jsonl {} --config run.yaml", ("holds a list",), a_file("run.yaml", "- seed\n")
    ),
    "the file has a name that is none": Bad(
        "train train.jsonl {} --config run.yaml",
        ("run.yaml has the name None",),
        a_file("run.yaml", "null: 3\n"),
    ),
    "the file is not there": Bad("train train.jsonl {} --config run.yaml", ("got run.yaml",)),
    "no file is given": Bad("train train.jsonl {} --config", ("got nothing",)),
    "a command is unknown": Bad("trian train.jsonl {}", ('Did you mean "train"',)),
    "the model is not given": Bad("train train.jsonl", ("--model requires an argument",)),
    "the data are not there": Bad("train trian.jsonl {}", ("no file trian.jsonl", "train.jsonl")),
    "a scheme is unknown": Bad("train train.jsonl {} --scheme rs:4", ("'rs:4'", "rejection:4", "pps")),
    "a scheme is given twice": Bad("compare train.jsonl {} --schemes pps pps()", ("'pps()'",)),
    "a scheme is given twice in two spellings": Bad(
        "compare train.jsonl {} --schemes rejection:4 rejection(4)", ("rejection(4) is given twice",)
    ),
    "there are no seeds": Bad("compare train.jsonl {} --seeds 0", ("seeds must be at least 1",)),
    "every attempt would be the same": Bad(
        "train train.jsonl {} --scheme rejection:4 --temperature 0",
        ("rejection(4) at temperature 0", "Set temperature 1"),
    ),
    "every vote would be the same": Bad(
        "predict test.jsonl {} --draws 4 --temperature 0", ("draws is 4", "temperature 1")
    ),
    "every evaluation would be the same": Bad(
        "train train.jsonl {} --eval-draws 4", ("eval_draws is 4", "set eval_temperature 1")
    ),
    "there are no iterations": Bad("train train.jsonl {} --iterations 0", ("from 1 to 100,000, got 0",)),
    "a chunk is empty": Bad("train train.jsonl {} --chunk-size 0", ("chunk_size must be at least 1",)),
    "a batch is empty": Bad("train train.jsonl {} --max-batch 0", ("max_batch must be at least 1",)),
    "a device is unknown": Bad("train train.jsonl {} --device gpu", ("'gpu'", "use cpu, cuda")),
    "there is no such GPU": Bad(
        "train train.jsonl {} --device cuda:99",
        ("device cuda:99: torch sees ", "GPUs here"),
        tokenizer=True,
    ),
    "fit into what exists": Bad(
        "fit train.jsonl --model seedling --output-dir out", ("out exists already",), a_file("out/x")
    ),
    "fit under a file": Bad(
        "fit train.jsonl --model seedling --output-dir file/out",
        ("is no folder", "--output-dir"),
        a_file("file"),
    ),
    "predictions over a file": Bad(
        "predict test.jsonl {} --output out",
        ("out exists already: choose another --output.",),
        a_file("out"),
    ),
    "predictions under a file": Bad(
        "predict test.jsonl {} --output file/out", ("--output.",), a_file("file")
    ),
    "a world is unknown": Bad(
        "world rubrics --output-dir out", ("'rubrics'", "rubric, raters, tldr, tldr-axis, sums")
    ),
    "a world over another": Bad("world rubric --output-dir .", ("train.jsonl holds other rows",)),
    "a world of nothing": Bad("world rubric --output-dir out --num-train 0", ("num_train 0",)),
    "a world under a file": Bad("world rubric --output-dir file/out", ("is no folder",), a_file("file")),
    "a row that is not there": Bad(
        "check train.jsonl {} --row 25", ("--row 25", "rows 1 to 24"), tokenizer=True
    ),
}


def with_folder(bad: Bad, world: Path, folder: Path) -> list[str]:
    """Sets the scene; gives the arguments, `--output-dir out` among them where a run would be made."""
    write(folder / "train.jsonl", rows := asked(world / "train.jsonl"))
    write(folder / "test.jsonl", asked(world / "test.jsonl"))
    write(folder / "rated.jsonl", rows_of(world / "train.jsonl"))
    bad.make(folder, rows)
    argv = bad.argv.replace("{}", " ".join(SEEDLING)).replace("[]", " ".join(JUDGE))
    verb, data, *rest = argv.split()
    output = ["--output-dir", "out"] if verb in ("train", "compare") else []
    return [verb, data, *output, *rest]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_written(
    name: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = BAD[name]
    argv = with_folder(bad, world, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    assert main(argv) == status_of(name)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.split(":")[0] in ("DataError", "ConfigError", "ModelError", "RunError")
    for part in bad.said:
        assert part in error
    assert "Traceback" not in error
    assert listing(tmp_path) == before


def test_bad_input_is_refused_before_torch_is_imported_and_in_the_first_second(
    world: Path, tmp_path: Path
) -> None:
    quick = {name: bad for name, bad in BAD.items() if not bad.tokenizer}
    todo = []
    for number, bad in enumerate(quick.values()):
        (folder := tmp_path / str(number)).mkdir()
        todo.append((str(folder), with_folder(bad, world, folder)))
    code = (
        "import json, os, sys, time\n"
        "from femtune.cli.main import USAGE, main\n"
        "for folder, argv in json.loads(sys.argv[1]):\n"
        "    os.chdir(folder)\n"
        "    begun = time.process_time()\n"
        "    status = main(argv)\n"
        "    print(status, 'torch' in sys.modules, time.process_time() - begun < 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(todo)], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines() == [f"{status_of(name)} False True" for name in quick]
