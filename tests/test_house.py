"""The package stays small in its parts: modules, functions, folders, and fields given by position."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "femtune"
MODULES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
NODES = [(path, node) for path, text in MODULES.items() for node in ast.walk(ast.parse(text))]

MOST_LINES = 450  # of a module
MOST_LINES_OF_FUNCTION = 60
MOST_MODULES = 20  # of a folder, without __init__.py
MOST_MODULES_OF_ROOT = 12
MOST_POSITIONAL = 5  # fields of a dataclass: a call with more is unreadable


def positional(node: ast.ClassDef) -> int:
    """Return the number of a dataclass's own fields that a caller may give by position.

    >>> text = "@dataclass\\nclass A:\\n  n: int\\n  K: ClassVar[int]\\n  _: KW_ONLY\\n  m: int"
    >>> positional(ast.parse(text).body[0])
    1
    """
    made = [ast.unparse(each) for each in node.decorator_list]
    if not any("dataclass" in each for each in made) or any("kw_only=True" in each for each in made):
        return 0
    kinds = [ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
    by_position = kinds[: kinds.index("KW_ONLY")] if "KW_ONLY" in kinds else kinds
    return sum(not kind.startswith("ClassVar") for kind in by_position)


def test_modules_fit_into_memory() -> None:
    assert {
        path: n for path, text in MODULES.items() if (n := len(text.splitlines())) > MOST_LINES
    } == {}


def test_functions_fit_on_a_screen() -> None:
    lines = {
        f"{path}:{node.lineno}": node.end_lineno - node.lineno + 1
        for path, node in NODES
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {place: num for place, num in lines.items() if num > MOST_LINES_OF_FUNCTION} == {}
    assert len(lines) > 1000  # they were found


def test_folders_can_be_looked_through() -> None:
    nums = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert nums.pop(PACKAGE) <= MOST_MODULES_OF_ROOT
    assert {folder: num for folder, num in nums.items() if num > MOST_MODULES} == {}


def test_dataclasses_with_many_fields_name_them() -> None:
    fields = {
        f"{path}:{node.name}": positional(node) for path, node in NODES if isinstance(node, ast.ClassDef)
    }
    assert {name: num for name, num in fields.items() if num > MOST_POSITIONAL} == {}
    assert sum(num > 0 for num in fields.values()) > 50  # they were found


def test_every_type_that_is_ignored_has_its_code_and_a_reason() -> None:
    bare, num = [], 0
    for folder in ("src", "tests", "bench", "scripts", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = io.StringIO(path.read_text(encoding="utf-8"))
            for token in tokenize.generate_tokens(text.readline):
                if token.type == tokenize.COMMENT and token.string.startswith("# type: ignore"):
                    num += 1
                    if not re.fullmatch(r"# type: ignore\[[a-z,-]+\]  # .+", token.string):
                        bare.append(f"{path.relative_to(ROOT)}:{token.start[0]}")
    assert bare == [] and num > 10
