"""Completions as two people read them, without sight of the parser: bench/answer_strings.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

# read otherwise, with why: a list that may only shrink, but for new strings
MISREAD = {
    "o3": "percent is a unit: 35% is 35, not 0.35",
    "o23": "`exact` compares text: 4 is not IV",
    "o24": "`exact` compares text: 2 is not II",
    "o25": "`exact` compares text, not dates",
    "o29": "`exact` compares text: 12 is not twelve",
    "o34": "1/3 is not 0.333",
    "o70": "words within a box",
    "o118": "names both",
    "o168": "a correction within the answer",
    "o179": "percent is a unit: 0.5 is not 50%",
    "o180": "percent is a unit: 50% is not 0.5",
    "o195": "`exact` compares text: 20 is not twenty",
    "o196": "`exact` compares text, not sentences",
    "o197": "`exact` compares text: Paris is not Paris, France",
    "o249": "names both",
}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("answer_strings", ROOT / "bench/answer_strings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_completions_are_read_as_people_read_them(bench: ModuleType) -> None:
    rows = bench.load(bench.OURS)
    readings = {key: [bench.Reading(*each) for each in row["readers"]] for key, row in rows.items()}
    agreed = {key: said for key in rows if (said := bench.agreement(readings[key])) is not None}
    assert len(rows) == 284 and len(agreed) >= 282
    wrong = {
        key: found
        for key, said in agreed.items()
        if (found := bench.misread(rows[key], said, bench.femtune()))
    }
    assert sorted(wrong) == sorted(MISREAD), wrong
    # what two people could not read, or read as wrong, is never rewarded
    rewarded = [key for key, found in wrong.items() if any("rewarded" in each for each in found)]
    assert rewarded == []
