"""Draw the package's rooms and what they import, from the code itself: docs/assets/rooms.svg.

    python scripts/draw_rooms.py           # draw it again
    python scripts/draw_rooms.py --check   # fail where the picture is not of today's code

Rows are the layers that pyproject.toml gives to import-linter: a room imports only from rows below its
own. An arrow that follows from two others is left out, so that the picture can be read.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

import grimp
import networkx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "assets" / "rooms.svg"
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 760, 64, 150, 34  # pixels

# what each room is, as its first line says it
SAID = {
    "cli": "the command line",
    "comparison": "schemes beside baselines",
    "api": "public functions",
    "tools": "check, verify, replay, ...",
    "workflows": "what each command does",
    "run_folder": "where a run lies",
    "sampler": "from settings to an engine",
    "resolve": "settings into inputs",
    "reporting": "terminal, report, browser",
    "loop": "filtered EM, K times",
    "selection": "examples into prompts",
    "model_info": "femtune.json",
    "evaluation": "metrics of judges",
    "config": "settings",
    "estep": "draw, grade, store",
    "mstep": "examples into weights",
    "rewards": "when an answer is right",
    "engines": "who writes completions",
    "data": "rows, prompts, answers",
    "schemes": "what a draw counts for",
    "runs": "the run directory",
    "_util": "text, files, signals",
    "types": "the nouns",
    "mstep_schedule": "when M-steps restart",
    "metric_types": "measures by name",
    "errors": "the error tree",
}


def main() -> int:
    """Write or check the picture; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    made = draw(read_layers(), read_imports())
    if check and (not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != made):
        print(f"{PICTURE.relative_to(ROOT)} is not of today's code: run python scripts/draw_rooms.py.")
        return 1
    if not check:
        PICTURE.write_text(made, encoding="utf-8")
    return 0


def read_layers() -> list[list[str]]:
    """Return the rooms of each layer, the highest first, from import-linter's contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    return [[name.strip().removeprefix("femtune.") for name in layer.split("|")] for layer in layers]


def read_imports() -> networkx.DiGraph:
    """Return which room imports which, without arrows that follow from others."""
    graph = grimp.build_graph("femtune")
    rooms = networkx.DiGraph()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            ends = [name.split(".")[1] for name in (importer, imported) if "." in name]
            if len(ends) == 2 and ends[0] != ends[1]:
                rooms.add_edge(*ends)
    rooms.remove_nodes_from([name for name in ("__main__",) if name in rooms])
    return networkx.transitive_reduction(rooms)


def draw(layers: list[list[str]], imports: networkx.DiGraph) -> str:
    """Return the picture as SVG: a row a layer, a box a room, a line an import."""
    places = {
        name: (WIDTH * (number + 1) / (len(layer) + 1), ROW * row + BOX_HEIGHT)
        for row, layer in enumerate(layers)
        for number, name in enumerate(layer)
    }
    height = ROW * len(layers) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-label="The rooms of the package and what they import">',
        "<style>rect{fill:#f4f6f8;stroke:#5b6b7b}path{fill:none;stroke:#8a97a5;stroke-width:1.2}"
        "text{font:12px system-ui,sans-serif;fill:#1d2733;text-anchor:middle}"
        ".name{font-weight:600;font-size:13px}.said{font-size:10px}</style>",
    ]
    for importer, imported in sorted(imports.edges):
        (x, y), (to_x, to_y) = places[importer], places[imported]
        top, bottom = y + BOX_HEIGHT / 2, to_y - BOX_HEIGHT / 2
        bend = (bottom - top) / 2
        side = 0 if bottom - top < ROW or x != to_x else WIDTH / 5  # round the rows in between
        parts.append(
            f'<path d="M{x:.0f},{top:.0f} C{x + side:.0f},{top + bend:.0f} '
            f'{to_x + side:.0f},{bottom - bend:.0f} {to_x:.0f},{bottom:.0f}"/>'
        )
    for name, (x, y) in places.items():
        left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
        parts.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
            f'<text class="name" x="{x:.0f}" y="{y - 2:.0f}">{escape(name)}</text>'
            f'<text class="said" x="{x:.0f}" y="{y + 12:.0f}">{escape(SAID[name])}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    sys.exit(main())
