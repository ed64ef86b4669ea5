"""An import only defines names: what it would change elsewhere is left to functions."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = """
import gc, importlib, json, logging, os, pkgutil, signal, sys, threading
from xml.etree import ElementTree

from rich.console import Console

def state():
    loggers = (logging.getLogger(), logging.getLogger("femtune"))
    return {
        "environment": dict(os.environ),
        "signals": {number: str(signal.getsignal(number)) for number in signal.valid_signals()},
        "session": os.getsid(0),
        "threads": threading.active_count(),
        "consoles": sum(isinstance(each, Console) for each in gc.get_objects()),
        "xml": dict(ElementTree._namespace_map),
        "handlers": [len(logger.handlers) for logger in loggers],
    }

for name in OTHERS:  # what these change is not ours
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
before = state()
names = NAMES
if not names:
    import femtune
    names = [found.name for found in pkgutil.walk_packages(femtune.__path__, "femtune.")]
    names.remove("femtune.__main__")
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in ("vllm", "trl", "ray", "duckdb", "starlette", "uvicorn"):
            raise
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
print(json.dumps([name for name in HEAVY if name in sys.modules]))
"""
HEAVY = ["torch", "transformers", "accelerate", "peft", "datasets", "sklearn", "ray", "vllm", "trl"]


def imported(names: list[str], others: list[str]) -> tuple[dict[str, object], list[str]]:
    """Import in a fresh process; give what that changed, and which heavy libraries it brought."""
    constants = f"NAMES, OTHERS, HEAVY = {names!r}, {others!r}, {HEAVY!r}\n"
    done = subprocess.run([sys.executable, "-c", constants + LOOK], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    changed, heavy = done.stdout.splitlines()
    return json.loads(changed), json.loads(heavy)


@pytest.mark.parametrize("name", ["femtune", "femtune.cli.main"])
def test_the_package_and_its_commands_are_imported_without_heavy_libraries(name: str) -> None:
    assert imported([name], []) == ({}, [])


def test_no_module_changes_the_process_that_imports_it() -> None:
    changed, _ = imported([], HEAVY)
    assert changed == {}


def test_a_module_only_imports_and_defines() -> None:
    """Constants may be computed; nothing else is done, but by what is run as a program."""
    package = Path(__file__).parents[1] / "src" / "femtune"
    defines = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    conditions = ("TYPE_CHECKING", "sys.version_info", "__name__ == '__main__'")
    done = []
    for path in sorted({*package.rglob("*.py")} - {package / "__main__.py"}):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_usual = isinstance(node, ast.If) and ast.unparse(node.test).startswith(conditions)
            if not (is_text or is_usual or isinstance(node, (*defines, ast.Assign, ast.AnnAssign))):
                done.append(f"{path.relative_to(package)}:{node.lineno}")
    assert done == []
