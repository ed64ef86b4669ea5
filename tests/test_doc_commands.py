"""All commands and links of the pages name what exists, and the pages are short and generated."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import check_readability
import run_costs
from femtune.cli.main import app

from .doc_commands import LINK, PAGES, ROOT, blocks, femtune_words, indented

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def parse(words: list[str]) -> None:
    """Parse a call of femtune as the program does, and run nothing."""
    named = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    while "--config" in named:
        at = named.index("--config")
        del named[at : at + 2]
        named += ["--model", "m"] if "--model" not in named and "--model" in flags(named[0]) else []
    app.config = ()
    app.parse_args(named, exit_on_error=False, print_error=False)


def flags(verb: str) -> set[str]:
    return {name for each in app[verb].assemble_argument_collection() for name in each.names}


def lines(page: Path) -> Iterator[str]:
    for block in (*blocks(page), *indented(page)):
        if block.kind in ("", "sh", "text"):
            yield from (line.strip() for line in block.commands())


def test_the_pages_have_commands() -> None:
    assert sum(len(list(femtune_words(page))) for page in PAGES) > 80


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_have_flags_that_exist(name: str) -> None:
    for words in femtune_words(ROOT / name):
        parse(words)


def test_the_reference_has_a_group_for_each_command() -> None:
    tree = ast.parse((ROOT / "docs" / "hooks.py").read_text())
    (groups,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUPS"
    )
    named = [name for names in groups.values() for name in names]
    assert sorted(named) == sorted({*app} - {"--help", "-h", "--version"})


def test_a_wrong_flag_is_found() -> None:
    with pytest.raises(Exception, match="--iterationz"):
        parse(["train", "a.jsonl", "--model", "m", "--iterationz", "2"])


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_targets_and_scripts_that_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text()
    named = {word for line in lines(ROOT / name) for word in re.findall(r"^make ([a-z -]+)", line)}
    named |= set(re.findall(r"`make ([a-z -]+)`", text))
    assert {target for words in named for target in words.split()} - targets == set()
    files = [found[1] for line in lines(ROOT / name) if (found := re.match(r"python (\w+/\S+)", line))]
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("docs/")])
def test_links_of_a_page_outside_docs_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for link, anchor in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        target = page.parent / link
        assert target.exists(), link
        if anchor:
            assert anchor in {slug(head) for head in heads(target)}, link + anchor


def heads(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def slug(head: str) -> str:
    """Return the anchor that a code host gives a heading."""
    return "#" + re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", ["README.md", "docs/costs.md"])
def test_the_modeled_costs_are_those_of_the_script(name: str) -> None:
    run = run_costs.tokens(run_costs.MEASURED, 1000, 12, 300)
    assert f"\n{run_costs.table(run)}\n" in (ROOT / name).read_text()
    page = (ROOT / "docs/costs.md").read_text()
    for number in vars(run_costs.MEASURED).values():
        assert f"| {number:g} |" in page


def test_costs_grow_as_their_formula_says() -> None:
    asked = run_costs.Asked(draws=2, passes=1, prompt=50, demos=0)
    one, two = (run_costs.tokens(asked, problems, 1, 100) for problems in (10, 20))
    assert run_costs.flops(1e9, two) == 2 * run_costs.flops(1e9, one)
    # 10 problems: 1,000 tokens read, 2,000 written, 1,500 trained
    assert run_costs.flops(1e9, one) == 1e9 * (2 * 3000 + 6 * 1500)
    work = 2 * 1000 / 0.5 + 2 * 2000 / 0.1 + 6 * 1500 / 0.35
    assert run_costs.hours(1e9, one) == pytest.approx(1e9 * work / 989.5e12 / 3600)


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version[1]
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased" or heads[0] == version[1]


def test_forms_for_issues_are_yaml_with_what_a_code_host_needs() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert len(forms) == 2
    for form in forms:
        read = yaml.safe_load(form.read_text())
        assert read.keys() >= {"name", "description", "body"}
        assert len({field["id"] for field in read["body"]}) == len(read["body"])


def test_readability_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_readability.py"])
    assert check_readability.main() == 0, capsys.readouterr().out
    long = "One " + "word " * 31 + "end. "
    assert len(check_readability.faults("a.md", long * 3)) == 2
    assert len(check_readability.faults("README.md", "Short one. " * 451)) == 1
