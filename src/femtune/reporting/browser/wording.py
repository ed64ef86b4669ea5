"""The labels on the pages, and the links between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from urllib.parse import urlencode

import jinja2

from femtune.reporting.browser import texts
from femtune.reporting.browser.filters import Filter
from femtune.reporting.browser.store import Value

LONG = 20_000  # characters shown of a text; a link leads to the whole
SIDE = 1_500  # characters shown of a text beside others

TITLES = {
    "run": "Run",
    "kind": "Drawn in",
    "iteration": "Iteration",
    "stage": "Stage",
    "prompt": "Prompt",
    "kept": "Kept",
    "reason": "Why not kept",
    "finish": "Ended by",
    "answer": "Answer",
    "correct": "Correct answer",
}
ENDS = {
    "stop": "its end token",
    "answered": "its closed answer",
    "length": "the limit of tokens",
    "error": "an error of the engine",
}
SAID = {
    "finish": ENDS,
    "kind": {"draws": "the E-step", "eval": "evaluation"},
    "kept": {"yes": "kept", "no": "not kept"},
}
SORTED = {
    "stored": "as stored",
    "newest": "newest iteration",
    "shuffled": "shuffled",
    "problem": "problem",
    "reward": "lowest reward",
    "-reward": "highest reward",
    "logprob": "least likely",
    "-logprob": "likeliest",
    "-gain": "rationale helps most",
    "gain": "rationale helps least",
    "tokens": "fewest tokens",
    "-tokens": "most tokens",
}


def environment() -> jinja2.Environment:
    """Return a template environment that escapes values and makes special characters visible."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("femtune.reporting.browser"),
        autoescape=True,
        finalize=texts.shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": texts.number,
        "decimal": texts.decimal,
        "signed": texts.signed,
        "marked": texts.marked,
        "cut": texts.cut,
    }
    made.globals |= {"link": link, "LONG": LONG, "ENDS": ENDS}
    return made


@dataclass(frozen=True)
class Choice:
    """A value of a facet, with a link that selects or deselects it."""

    label: str
    num: int
    share: float  # percentage of the facet's most frequent value, 0 to 100
    kept: float  # the kept part of this percentage
    _: KW_ONLY
    chosen: bool
    link: str


def choices(asked: Filter, facets: Mapping[str, Sequence[Value]]) -> Iterator[tuple[str, list[Choice]]]:
    """Yield titles and values of facets, without facets of a single value."""
    for name, values in facets.items():
        chosen = getattr(asked, name)
        if not chosen and len(values) < 2:
            continue
        most = max((value.num for value in values), default=1)
        made = [
            Choice(
                label(name, each.value),
                each.num,
                100 * each.num / most,
                100 * each.num_kept / most,
                chosen=each.value in chosen,
                link="/draws?" + asked.toggled(name, each.value),
            )
            for each in values
        ]
        yield TITLES[name], made


def link(path: str, query: str = "", **values: object) -> str:
    """Return an address from a path, the page's own values and a filter's query string."""
    own = urlencode({name: str(value) for name, value in values.items()})
    return path + "?" + "&".join(filter(None, (own, query)))


def label(name: str, value: object) -> str:
    """Return a value of a facet in words."""
    return SAID.get(name, {}).get(str(value), str(value))


def chips(asked: Filter) -> Iterator[tuple[str, str]]:
    """Yield each active condition, and the address without it."""
    for name, value in asked.items():
        if name in ("text", "problem"):
            yield f"{name} has “{value}”", "/draws?" + asked.query(**{name: ""})
        elif name not in ("sort", "page"):
            own = next(each for each in getattr(asked, name) if str(each) == value)
            said = TITLES.get(name, name).lower()
            words = label(name, own) if name == "kept" else f"{said} {label(name, own)}"
            yield words, "/draws?" + asked.toggled(name, own)


def toggled(lanes: Sequence[str], name: str) -> str:
    """Return the query of runs side by side, with a run added, or removed if it was there."""
    more = [each for each in lanes if each != name] if name in lanes else [*lanes, name]
    return urlencode([("run", each) for each in more])
