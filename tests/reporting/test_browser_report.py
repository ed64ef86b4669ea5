"""The report in a browser: nothing in it runs, loads or overflows, and axe finds nothing serious.

Needs `pip install playwright` and a Chromium of the system; axe-core's axe.min.js from AXE_CORE, from
node_modules, or from axe-playwright-python.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from femtune.reporting.page.render import report

from ..made_runs import hostile_run, judge_runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium is installed", allow_module_level=True)

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a comparison of judges, and of a run whose texts are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "judges": report([judge_runs(folder / "judges")], folder / "judges.html"),
        "hostile": report([hostile_run(folder / "hostile")], folder / "hostile.html"),
    }


def opened(browser: Any, path: Path, size: str, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page with every fold open, and what it did that it must not."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: faults.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    page.wait_for_timeout(100)
    return page, [
        fault for fault in faults if fault not in (f"request: {path.as_uri()}", "request: data:,")
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["judges", "hostile"])
def test_nothing_runs_loads_or_overflows(
    browser: Any, pages: dict[str, Path], name: str, size: str
) -> None:
    page, faults = opened(browser, pages[name], size)
    assert faults == []
    assert page.evaluate("typeof window.pwned") == "undefined"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= SIZES[size][0]
    assert page.evaluate("document.scripts.length") == 0
    page.context.close()


def test_pointing_at_hostile_text_runs_nothing(browser: Any, pages: dict[str, Path]) -> None:
    page, faults = opened(browser, pages["hostile"], "desktop")
    for element in page.query_selector_all(".text, .id, bdi, summary")[:60]:
        element.hover(force=True)
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.url == pages["hostile"].as_uri()
    assert faults == []
    page.context.close()


def test_dark_is_dark_and_print_is_light(browser: Any, pages: dict[str, Path]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    stroke = "getComputedStyle(document.querySelector('figure svg text')).fill"
    found = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, pages["judges"], "desktop", scheme)
        found[scheme] = (page.evaluate(colour), page.evaluate(stroke))
        page.emulate_media(media="print")
        found[f"print {scheme}"] = (page.evaluate(colour), page.evaluate(stroke))
        page.context.close()
    assert found["light"] != found["dark"] and found["light"][1] != found["dark"][1]
    assert found["print dark"] == found["print light"] == found["light"]


def axe() -> Path | None:
    """axe-core's script, where it is installed."""
    places = [os.environ.get("AXE_CORE", ""), "node_modules/axe-core/axe.min.js"]
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is not None and spec.origin is not None:
        places.append(str(Path(spec.origin).parent / "axe.min.js"))
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["judges", "hostile"])
def test_axe_finds_nothing_serious(
    browser: Any, pages: dict[str, Path], name: str, size: str, scheme: str
) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe-core is not installed")
    page, _ = opened(browser, pages[name], size, scheme)
    # the page's own policy forbids scripts, axe's too: it comes in through the debugger
    client = page.context.new_cdp_session(page)
    client.send("Runtime.evaluate", {"expression": script.read_text()})
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    found = [
        f"{fault['impact']}: {fault['id']} at {fault['nodes'][0]['html'][:200]}"
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical", "moderate")
    ]
    assert found == []
    page.context.close()
