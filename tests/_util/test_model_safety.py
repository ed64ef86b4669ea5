"""No code is run but what the user names, and nothing is unpickled."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import femtune
from femtune.cli.main import main
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.model import read_model
from femtune.engines.model_files import load_config, load_tokenizer
from femtune.errors import ModelError
from femtune.mstep.config import Training
from femtune.mstep.model import load_model

from ..models import tiny_model

SOURCE = Path(femtune.__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("whole"), sharpness=0.5)


# --- code that comes with a model


@pytest.fixture
def with_code(whole: Path, tmp_path: Path) -> Path:
    """A model whose config, tokenizer and network are of a file beside them, which leaves a mark."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'SPRUNG')!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    classes = {
        "config.json": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
    }
    for name, auto_map in classes.items():
        config = json.loads((folder / name).read_text())
        config |= {"auto_map": auto_map}
        config |= {"model_type": "own"} if name == "config.json" else {"tokenizer_class": "OwnTokenizer"}
        (folder / name).write_text(json.dumps(config))
    return folder


def test_code_that_comes_with_a_model_is_not_run(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked for at the terminal, as transformers would."""
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    for read in (
        lambda: load_tokenizer(with_code),
        lambda: load_config(with_code),
        lambda: TransformersEngine(with_code, device="cpu"),
        lambda: read_model(with_code, "auto", "cpu", trust=False),
        lambda: load_model(with_code, Training()),
        lambda: load_model(with_code, Training(use_peft=True)),
    ):
        with pytest.raises(ModelError, match=r"code of its own.*no trust_remote_code"):
            read()
    assert not (tmp_path / "SPRUNG").exists()


def test_the_command_line_refuses_code_that_comes_with_a_model(
    with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    for verb in ("sample", "evaluate", "predict"):
        assert main([verb, str(tmp_path / "data.jsonl"), "--model", str(with_code)]) == 1
        assert "no trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "SPRUNG").exists()


def test_it_is_run_where_a_library_user_asks_an_engine_to(with_code: Path, tmp_path: Path) -> None:
    """So the mark is one that the tests above would see."""
    TransformersEngine(with_code, device="cpu", trust_remote_code=True)
    assert (tmp_path / "SPRUNG").exists()


def test_code_beside_an_architecture_of_transformers_own_is_left_alone(
    with_code: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((with_code / name).read_text())
        own = {"model_type": "qwen3"} if name == "config.json" else {}
        config |= own or {"tokenizer_class": "PreTrainedTokenizerFast"}
        (with_code / name).write_text(json.dumps(config))
    TransformersEngine(with_code, device="cpu")
    load_model(with_code, Training())
    assert not (tmp_path / "SPRUNG").exists()


# --- what a run does

WATCHER = """
import json, sys

seen = []
names = {
    "pickle.find_class", "socket.connect", "socket.bind", "os.system", "os.exec", "os.posix_spawn",
    "subprocess.Popen",
}

def hook(event, args):
    if event in names:
        seen.append([event, str(args)])
    elif event == "compile" and "SPRUNG" in str(args[0]):
        seen.append([event, str(args)])

sys.addaudithook(hook)
from femtune.cli.main import main

status = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps([status, seen]))
"""


def watched(tmp_path: Path, *argv: str) -> tuple[int, list[list[str]]]:
    """A command's status, and what it did that Python's audit events tell, in a process of its own."""
    told = tmp_path / "told.json"
    command = [sys.executable, "-c", WATCHER, str(told), *argv]
    subprocess.run(command, check=True, capture_output=True, timeout=290, cwd=tmp_path)
    status, seen = json.loads(told.read_text())
    # what Python asks of the processor, environment.json of the source, accelerate of GPUs
    known = [
        "('uname', ['uname', '-p']",
        "('git', ['git', '--no-optional-locks', '-c', 'core.fsmonitor=false', '-C'",
    ]
    if torch.cuda.is_available():
        known.append("('nvidia-smi', ['nvidia-smi', '--query-gpu=")
    return status, [event for event in seen if not event[1].startswith(tuple(known))]


def traps(folder: Path) -> Iterator[str]:
    """Texts that leave a file SPRUNG where they are run, by whom they may be run."""
    run = f"__import__('pathlib').Path('{folder}/SPRUNG').touch()"
    yield run
    yield f"{{{{ cycler.__init__.__globals__.os.system('touch {folder}/SPRUNG') }}}}"
    yield f"!!python/object/apply:os.system ['touch {folder}/SPRUNG']"
    yield f"$(touch {folder}/SPRUNG) `touch {folder}/SPRUNG` ; touch {folder}/SPRUNG"
    yield f"cos\nsystem\n(S'touch {folder}/SPRUNG'\ntR."
    yield f"{{0.__class__}} %(x)s [bold]{run}[/bold]"


@pytest.mark.slow
def test_a_run_unpickles_nothing_and_talks_to_nobody_and_runs_nothing_of_the_data(
    tmp_path: Path,
) -> None:
    assert main(["world", "rubric", "--output-dir", str(tmp_path / "world"), "--num-train", "24"]) == 0
    springs = list(traps(tmp_path))
    for name in ("train", "test"):
        path = tmp_path / "world" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()][:24]
        for number, row in enumerate(rows):
            row["prompt"] += springs[number % len(springs)]
            row["note"] = springs[number % len(springs)]
            row[f"column {springs[0]}"] = 1
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    status, seen = watched(
        tmp_path,
        *("train", "world/train.jsonl", "--eval-data", "world/test.jsonl", "--model", "seedling"),
        *("--task", "judge", "--raters", "named", "--scale", "1,5", "--max-new-tokens", "48"),
        *("--iterations", "1", "--learning-rate", "1e-3", "--output-dir", "run"),
        *("--num-train-epochs", "1", "--per-device-train-batch-size", "8"),
    )
    assert (status, seen) == (0, [])
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert not (tmp_path / "SPRUNG").exists()


def test_the_state_of_a_repository_is_read_without_its_own_programs(tmp_path: Path) -> None:
    """Data may come with a repository around it, whose settings name a program."""
    from femtune._util.environment import git_state

    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    (tmp_path / "a").write_text("1")
    for words in (("init",), ("add", "a"), ("commit", "-m", "a")):
        subprocess.run([*git, *words], check=True, capture_output=True)
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path}/SPRUNG\n")
    monitor.chmod(0o755)
    subprocess.run([*git, "config", "core.fsmonitor", str(monitor)], check=True)
    state = git_state(tmp_path)
    assert state is not None and state["changed"] is False
    assert not (tmp_path / "SPRUNG").exists()


def test_the_watcher_sees_what_it_is_to_see(tmp_path: Path) -> None:
    """A reward of the user's own is run, and does what is never done otherwise."""
    (tmp_path / "mine.py").write_text(
        "import pickle, socket, subprocess, pathlib\n"
        "def reward(completion, answer):\n"
        "    pickle.loads(pickle.dumps(pathlib.Path))\n"
        "    subprocess.run(['true'])\n"
        "    with socket.socket() as one, socket.socket() as two:\n"
        "        one.bind(('127.0.0.1', 0)); one.listen(); two.connect(one.getsockname())\n"
        "    exec('SPRUNG = 1')\n"
        "    return 1.0\n"
    )
    (tmp_path / "data.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    words = ("--reward", "mine.py:reward", "--model", "seedling", "--no-try")
    words += ("--eval-share", "0", "--max-new-tokens", "9")
    status, seen = watched(tmp_path, "check", "data.jsonl", *words)
    assert status == 0
    events = {"pickle.find_class", "socket.connect", "socket.bind", "subprocess.Popen", "compile"}
    assert events <= {event for event, _ in seen}


def test_a_config_is_read_as_plain_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = f"!!python/object/apply:os.system ['touch {tmp_path}/SPRUNG']"
    (tmp_path / "run.yaml").write_text(f"seed: {trap}\n")
    config = str(tmp_path / "run.yaml")
    assert main(["train", "data.jsonl", "--model", "seedling", "--config", config]) == 1
    assert "could not determine a constructor" in capsys.readouterr().err
    assert not (tmp_path / "SPRUNG").exists()


def test_a_chat_template_of_a_model_runs_in_a_sandbox(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text([*traps(tmp_path)][1])
    (tmp_path / "data.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    words = ("--model", str(tmp_path / "model"), "--eval-share", "0", "--no-try")
    assert main(["check", str(tmp_path / "data.jsonl"), *words]) == 1
    assert "ModelError" in capsys.readouterr().err
    assert not (tmp_path / "SPRUNG").exists()


# --- what the source may not say


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each call in femtune's source, and where it is."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def test_no_module_of_pickles_is_imported() -> None:
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path.name}: {name}" for name in names if name.partition(".")[0] in banned]
    assert not found


def test_no_call_reads_pickles_or_runs_text() -> None:
    banned = {
        *("eval", "exec", "compile", "__import__"),
        *("torch.load", "torch.save", "torch.distributed.all_gather_object"),
        *("torch.distributed.broadcast_object_list", "torch.distributed.gather_object"),
        *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.dump"),
        *("pandas.read_pickle", "pd.read_pickle", "os.system", "os.popen"),
    }
    found = [f"{place}: {name}" for place, call in calls() if (name := ast.unparse(call.func)) in banned]
    for place, call in calls():
        keys = {key.arg: ast.unparse(key.value) for key in call.keywords}
        unsafe = {"allow_pickle": "True", "shell": "True", "trust_remote_code": "True"}
        found += [f"{place}: {name}=True" for name, value in unsafe.items() if keys.get(name) == value]
        if ast.unparse(call.func).endswith(("np.load", "numpy.load")):
            found += [f"{place}: numpy's load"] if keys.get("allow_pickle") != "False" else []
    assert not found


def test_every_reading_of_a_model_asks_for_safetensors() -> None:
    """By name, or among arguments that `load_model` shares."""
    readers = ("AutoModelForCausalLM.from_pretrained", "PeftModel.from_pretrained")
    readers += ("AutoPeftModelForCausalLM.from_pretrained",)
    found = {
        place: ast.unparse(call)
        for place, call in calls()
        if ast.unparse(call.func).endswith(readers) and "from_pretrained" in ast.unparse(call.func)
    }
    assert len(found) >= 5
    assert all("use_safetensors=True" in text or "**common" in text for text in found.values()), found


def test_every_reading_says_that_no_code_is_to_be_run() -> None:
    """Where nothing is said, transformers asks at the terminal."""
    readers = ("AutoModelForCausalLM", "AutoTokenizer", "AutoConfig", "AutoPeftModelForCausalLM")
    found = {
        place: ast.unparse(call)
        for place, call in calls()
        if ast.unparse(call.func).endswith(tuple(f"{name}.from_pretrained" for name in readers))
    }
    assert len(found) >= 9
    assert not {p: t for p, t in found.items() if "trust_remote_code=" not in t and "**common" not in t}
