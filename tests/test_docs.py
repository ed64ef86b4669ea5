"""The documentation: links work on a code host, and the site builds without a warning or a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import femtune
from femtune.cli.main import app

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = [found for found, _ in LINK.findall(page.read_text()) if "://" not in found]
    assert [link for link in links if not (page.parent / link).exists()] == []


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    own = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(argv, cwd=folder, env=own, capture_output=True, text=True)


def need_mkdocs() -> None:
    for name in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("the docs extra is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_mkdocs()
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture
def hooks() -> ModuleType:
    need_mkdocs()
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.slow
def test_the_site_fetches_nothing(site: Path) -> None:
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) > 15
    fetched = re.compile(r'<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="?(https?:|//)')
    assert not [page for page in pages if fetched.search(page)]
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert not [style for style in styles if re.search(r"url\(['\"]?(https?:|//)|@import", style)]


@pytest.mark.slow
def test_the_reference_is_whole(site: Path) -> None:
    commands = (site / "reference" / "cli.html").read_text()
    verbs = [verb for verb in app if not verb.startswith("-")]
    assert len(verbs) > 12 and not [verb for verb in verbs if f'id="femtune-{verb}"' not in commands]
    assert "--per-device-train-batch-size" in commands and "-m mkdocs" not in commands
    names = (site / "reference" / "python.html").read_text()
    assert not [name for name in femtune.__all__ if f'id="femtune.{name}"' not in names]
    assert "&gt;&gt;&gt;" in names and "<blockquote>" not in names  # examples are code


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    page = (site / "concepts.html").read_text()
    source = re.sub(r"`[^`]*`", "", (ROOT / "docs" / "concepts.md").read_text())
    blocks = source.count("$$") // 2
    assert page.count('display="block"') == blocks > 7
    assert page.count('display="inline"') == source.replace("$$", "").count("$") // 2 > 20
    assert "arithmatex" not in page and "\\(" not in page


@pytest.mark.slow
def test_findings_and_files_that_pages_link_to_are_pages(site: Path) -> None:
    assert "rejection(4)" in (site / "measured.html").read_text()
    findings = (site / "findings.html").read_text()
    assert "<!-- tables" not in findings and findings.count("findings-") > 6
    assert 'href="files/recipes/judge-lora.yaml.html"' in (site / "index.html").read_text()
    assert "Qwen3-1.7B" in (site / "files" / "recipes" / "judge-lora.yaml.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("new.md", "# New\n", "not included in the"),  # nav
        ("schemes.md", "[x](nosuch.md)\n", "nosuch.md"),
        ("concepts.md", r"$\nosuch{x}$" + "\n", "a formula is not known"),
    ],
)
def test_a_fault_stops_the_build(tmp_path: Path, name: str, text: str, said: str) -> None:
    need_mkdocs()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".git"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / name).open("a") as file:
        file.write("\n" + text)
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0 and said in done.stderr + done.stdout


def test_links_are_moved_with_their_page(hooks: ModuleType) -> None:
    code = "\n\n```\n[e](../Makefile)\n```\n"
    text = (
        "[a](../bench/RESULTS.md#x) [b](schemes.md) [c](https://x.org) [d](../Makefile) [f](../recipes)"
    )
    assert hooks.moved(text + code, Path("docs"), Path(".")) == (
        "[a](measured.md#x) [b](schemes.md) [c](https://x.org) [d](files/Makefile.md) f" + code
    )
    same = "[b](../schemes.md)"
    assert hooks.moved(same, Path("docs/guides"), Path("guides")) == same
    recipe = hooks.moved("[r](../recipes/sums.yaml)", Path("bench"), Path("."))
    assert recipe == "[r](files/recipes/sums.yaml.md)"
    assert hooks.linked_files(f"{recipe} [g](guides/judge.md)") == ["recipes/sums.yaml"]


def test_docstrings_become_markdown(hooks: ModuleType) -> None:
    made = hooks.fenced('Ids are "<stem>-1", `<as it is>`.\n\n>>> f(1)\n2\n\n    a < b')
    assert made == ('Ids are "&lt;stem>-1", `<as it is>`.\n\n```pycon\n>>> f(1)\n2\n```\n\n    a < b')
