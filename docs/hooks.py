"""What the site has beyond the pages of docs/, made as mkdocs builds it; nothing of it is committed.

- pages: the command line from the program itself, the Python names from their docstrings, what was
  measured from bench/RESULTS.md, the changelog
- the tables of findings.md, from the CSV files in bench/findings
- links that point out of docs/, and work so on a code host: to those pages, or to a page with the file
- formulas as MathML, which browsers draw themselves
"""

from __future__ import annotations

import html
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.append(str(ROOT / "bench"))  # last: it has files with names of packages

# now: mkdocs puts sys.path back once this file is loaded
from findings.experiments import FIGURES  # noqa: E402
from findings.tables import markdown  # noqa: E402

# files outside of docs/ that have a page of their own
PAGES = {"bench/RESULTS.md": "measured.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_FENCED = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_KINDS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".md": "markdown"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and one for each file that a page links to."""
    made = {
        "measured.md": ("bench", (ROOT / "bench/RESULTS.md").read_text(encoding="utf-8")),
        "changelog.md": (".", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
        "reference/cli.md": ("docs/reference", command_line()),
        "reference/python.md": ("docs/reference", python_names()),
    }
    pages = {name: moved(text, Path(place), Path(name).parent) for name, (place, text) in made.items()}
    for file in files.documentation_pages():
        text = with_tables(file.content_string)
        pages[file.src_uri] = moved(
            text, Path("docs") / Path(file.src_uri).parent, Path(file.src_uri).parent
        )
    for linked in sorted({name for text in pages.values() for name in linked_files(text)}):
        pages[f"files/{linked}.md"] = shown_file(linked)
    for name, text in pages.items():
        if (there := files.get_file_from_path(name)) is not None:
            there.content_string = text
        else:
            files.append(File.generated(config, name, content=text))
    return files


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML."""
    content = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _block, content, flags=re.DOTALL)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.DOTALL)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """A name for the search's dialog, which the theme gives none."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def _block(found: re.Match[str]) -> str:
    return f'<div class="math-block" tabindex="0">{mathml(found[1], "block")}</div>'


def _inline(found: re.Match[str]) -> str:
    return mathml(found[1], "inline")


# what latex2mathml 3.81 takes for names, and are operators with space around them
_REPAIRS = {
    "<mi>&#x0007E;</mi>": "<mo>&#x223C;</mo>",
    "<mi>&#x027F9;</mi>": "<mo>&#x27F9;</mo>",
    "<mi>log</mi>": '<mi>log</mi><mspace width="0.167em" />',
}


def mathml(latex: str, display: str) -> str:
    """A formula as MathML. Raises ValueError where it holds something that is not known."""
    made = convert(html.unescape(latex).strip(), display=display)
    if "\\" in made:
        raise ValueError(f"a formula is not known to latex2mathml: {latex}")
    for wrong, right in _REPAIRS.items():
        made = made.replace(wrong, right)
    return made


# --- findings

_TABLES = re.compile(r"^<!-- tables: (\S+) -->$", re.MULTILINE)


def with_tables(text: str) -> str:
    """A page with a figure's tables where it says `<!-- tables: tokens -->`, on a line of its own."""
    return _TABLES.sub(lambda found: markdown(FIGURES[found[1]]), text)


# --- links


def moved(text: str, place: Path, page: Path) -> str:
    """A text of a folder of the repository, `place`, with links as from `page`, a folder of the site."""

    def link(found: re.Match[str]) -> str:
        title, target, anchor = found[1], found[2], found[3] or ""
        path = Path(os.path.normpath(place / target)).as_posix()
        if not (ROOT / path).exists():
            return found[0]  # mkdocs will say so
        if (ROOT / path).is_dir():
            return title
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            path = PAGES.get(path, f"files/{path}.md")
        return f"[{title}]({os.path.relpath(path, page)}{anchor})"

    parts, at = [], 0
    for block in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[at : block.start()]), block[0]]
        at = block.end()
    return "".join([*parts, _LINK.sub(link, text[at:])])


def linked_files(text: str) -> list[str]:
    """Files of the repository that pages are made of, as `moved` has linked them."""
    return [name.removesuffix(".md") for name in re.findall(r"\]\((?:\.\./)*files/([^)#\s]+\.md)", text)]


def shown_file(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    kind = _KINDS.get(Path(name).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n"
    return f"{head}# {name}\n\n{ticks}{kind}\n{text.rstrip()}\n{ticks}\n"


# --- reference


# the commands by what they are for; each one is in a group
GROUPS = {
    "Decide": ("ladder", "check", "estimate"),
    "Train": ("train", "compare", "sample", "fit", "demos"),
    "Use": ("evaluate", "predict", "calibrate", "bias"),
    "Look": ("report", "view", "refilter", "replay", "verify"),
    "Share": ("merge", "push"),
    "Try": ("demo", "world"),
    "Set up": ("--install-completion",),
}


def command_line() -> str:
    """Every command with its flags, as the program itself knows them, by what it is for.

    Raises ValueError for a command that is in no group.
    """
    from femtune.cli.main import app

    # cyclopts writes how Python was started into the usage
    text = app.generate_docs(flatten_commands=True).replace(" -m mkdocs", "")
    text = text.replace(" *[default: ()]*", "").replace("**Parameters**:\n", "")
    head, *parts = re.split(r"^# femtune (?=\S)", text, flags=re.MULTILINE)
    verbs = {part.split(maxsplit=1)[0]: part for part in parts}
    if lost := verbs.keys() ^ {name for names in GROUPS.values() for name in names}:
        raise ValueError(f"docs/hooks.py: GROUPS and the commands differ by {', '.join(sorted(lost))}.")
    about = head.partition("## Table of Contents")[0].replace("# femtune\n", "# Command line\n", 1)
    about += (
        "\n`--config run.yaml` takes settings from a YAML file, under the names below (`accept_at: 1`); "
        "flags override it, and one file serves all commands. `--output_dir` is `--output-dir`.\n\n"
        "| command | what it does |\n|---|---|\n"
    )
    page = []
    for title, names in GROUPS.items():
        for name in names:
            about += f"| [{name}](#femtune-{name.lstrip('-')}) | {_first_line(verbs[name])} |\n"
        page += [f"## {title}\n", *(f"### femtune {verbs[name]}" for name in names)]
    return about + "\n" + "\n".join(page)


def _first_line(part: str) -> str:
    """Return the first line of a command's text, after its usage."""
    return part.split("```")[2].strip().splitlines()[0]


def python_names() -> str:
    """The public names: what is called, what rewards and schemes there are, the types, the errors."""
    import femtune

    def group(name: str) -> str:
        thing = getattr(femtune, name)
        if inspect.isclass(thing):
            return "Errors" if issubclass(thing, Exception) else "Types"
        room = thing.__module__.split(".")[1]
        return {"schemes": "Schemes", "rewards": "Rewards"}.get(room, "Functions")

    groups: dict[str, list[str]] = {
        "Functions": [],
        "Schemes": [],
        "Rewards": [],
        "Types": [],
        "Errors": [],
    }
    for name in femtune.__all__:
        groups[group(name)].append(name)
    parts = ["# Python", "Everything here is imported from `femtune` itself."]
    for title, names in groups.items():
        parts += [f"## {title}", *(f"::: femtune.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


class Doctests(griffe.Extension):
    """Examples in docstrings as code: Markdown takes >>> for a quotation. Text is Markdown already."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """A docstring with its doctests in fences, and < in its prose as a character.

    >>> print(fenced("One is <two>, `<three>`:\\n\\n>>> 1\\n1").replace("`", "'"))
    One is &lt;two>, '<three>':
    <BLANKLINE>
    '''pycon
    >>> 1
    1
    '''
    """
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(f"```pycon\n{p}\n```" if p.startswith(">>> ") else _prose(p) for p in paragraphs)


def _prose(paragraph: str) -> str:
    if paragraph.startswith("    "):  # code
        return paragraph
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], paragraph)
