"""`femtune report`: runs -> one self-contained HTML file without scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from femtune._util.atomic_files import replacing
from femtune._util.extras import check_extra
from femtune.errors import RunError
from femtune.reporting.page import details, estep_section, ladder, predictions, sections
from femtune.reporting.page.difficulty import difficulty
from femtune.reporting.page.estep_section import EStepTallies
from femtune.reporting.page.parts import Section
from femtune.reporting.page.record import Found, Group, find
from femtune.reporting.page.summary import opening
from femtune.reporting.page.tally import DrawPicker, Tally, tally
from femtune.reporting.page.texts import cut, name, visible
from femtune.reporting.page.worth import worth

PICKS = 3  # draws shown for each prompt and reason


def report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the results of these runs as one HTML file and return its path.

        report([Path("runs/demo")])        # run directories, or folders of run directories

    The default path is report.html in the first of `runs`; an existing report is replaced.
    Nothing else is written. Raises RunError if there is no run, or the path is a directory, and
    ConfigError if vl-convert-python is not installed.
    """
    check_extra("femtune report", "vl_convert")
    if not runs:
        raise RunError("No run is given. Use `femtune report RUN`.")
    place = output if output is not None else runs[0] / "report.html"
    if place.is_dir():
        raise RunError(f"{place} is a directory. Give --output the name of a file.")
    text = render(find(runs))
    with replacing(place) as part:
        part.write_text(text, encoding="utf-8")
    return place


def render(found: Found) -> str:
    """Return the page of these runs as HTML."""
    notes = [*found.notes]
    looked = [look(number, group, notes) for number, group in enumerate(found.schemes)]
    looked = [each for each in looked if each.iterations]
    lead = details.lead_of(found)
    problems = predictions.eval_problems(lead, notes) if lead is not None else {}
    made = [
        ladder.ladder(found),
        sections.everyone(found),
        details.before_and_after(found, problems, notes),
        sections.learning(found),
        worth(found),
        details.judgements(found, problems, notes),
        estep_section.draws(found, looked),
        difficulty(found, looked),
        sections.lengths(found, looked),
        sections.cost(found),
        details.rationales(found, looked, notes),
        details.settings(found),
    ]
    shown: list[Section] = [each for each in made if each is not None]
    shown.append(details.sources(found, notes))
    return _template()(opening=opening(found), sections=shown).strip() + "\n"


def look(place: int, group: Group, notes: list[str]) -> EStepTallies:
    """Read the E-step shards of a group's runs; draws to show come from the first run.

    `place` is the group's position among the schemes, which sets its colour.
    """
    picker = DrawPicker(PICKS)
    tallies: dict[Any, dict[int, Tally]] = {}
    for run in group.runs:
        own = {}
        for folder in sorted(run.root.glob("iteration-[0-9]*/draws")):
            number = int(folder.parent.name.removeprefix("iteration-"))
            made = tally(folder, number, notes, picker if run is group.runs[0] else None)
            if made.counts:
                own[number] = made
        for number in [*own][1:-1]:  # only the first and last iteration need counts by problem
            own[number] = replace(own[number], problems=None)
        tallies[run.root] = own
    return EStepTallies(place, group, tallies, picker.picks(notes))


def _template() -> Callable[..., str]:
    """Return the template, which escapes all text except Markup and makes hidden characters visible."""
    environment = Environment(
        loader=PackageLoader("femtune.reporting.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters |= {"cut": cut, "short": name}
    style = files("femtune.reporting.page").joinpath("style.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)
    return environment.get_template("report.html.j2").render
