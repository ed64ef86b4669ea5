"""`femtune view` in a browser: on a phone and a desk, by light and dark, without a fault."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from ..views import HOSTILE, Folder, make_folder, make_hostile, start

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
QUIET = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE_RUN = "<img src=x onerror=alert(1)>"
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Three sound runs and a hostile one."""
    made = make_folder(tmp_path_factory.mktemp("view") / "runs")
    make_hostile(made.root / HOSTILE_RUN)
    return made


@pytest.fixture(scope="module")
def address(folder: Folder) -> Iterator[str]:
    """Where `femtune view` serves them."""
    process, said = start(str(folder.root))
    yield said
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        yield started
        started.close()


class Visit:
    """A tab in which nothing may be said at the console, and no dialog may open."""

    def __init__(self, browser: playwright.Browser, address: str, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        self.tab, self.faults = context.new_page(), list[str]()
        self.tab.on("console", lambda message: self.faults.append(message.text))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.tab.on("request", self._requested)
        self.base = address.partition("/?")[0]
        self.tab.goto(address)

    def _requested(self, request: playwright.Request) -> None:
        if not request.url.startswith(f"{self.base}/"):
            self.faults.append(f"went to {request.url}")

    def go(self, path: str) -> playwright.Page:
        self.tab.goto(self.base + path)
        return self.tab

    def check(self) -> None:
        """No fault so far, nothing wider than the window, nothing that axe finds serious."""
        assert self.faults == []
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not self.tab.evaluate(wide), self.tab.url
        found = axe.Axe().run(self.tab).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert serious == [], self.tab.url


def paths(folder: Folder) -> list[str]:
    """A page of each sort, hostile ones among them."""
    first = folder.draws[0]
    id = first.draw.key.problem_id
    other = next(each for each in folder.draws if each.draw.key.problem_id == id and each is not first)
    made = [
        "/",
        "/draws",
        "/draws?run=pps&kept=no&text=is&sort=-logprob",
        "/draws?text=nothing+has+this",
        f"/draw?name={quote(first.name)}&kind=eval",
        f"/problem?id={id}",
        f"/difference?a={quote(first.name)}&b={quote(other.name)}",
        "/draws?text=" + quote("<script>alert(1)</script>"),
    ]
    names = [f"{HOSTILE_RUN}/draws/1/0/0/{HOSTILE[number]}{number}" for number in (1, 2)]
    made += [f"/draw?name={quote(name)}" for name in names]
    made += [f"/problem?id={quote(HOSTILE[1])}1"]
    made += [f"/difference?a={quote(names[0])}&b={quote(names[1])}"]
    return made


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_pages_have_no_fault(
    size: str, scheme: str, browser: playwright.Browser, address: str, folder: Folder
) -> None:
    visit = Visit(browser, address, size, scheme)
    for path in paths(folder):
        tab = visit.go(path)
        assert "can’t be shown" not in tab.content(), path
        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        visit.check()


def test_a_reader_gets_around_by_clicks(
    browser: playwright.Browser, address: str, folder: Folder
) -> None:
    visit = Visit(browser, address, "desk", "light")
    tab = visit.tab
    tab.get_by_role("link", name="All draws").first.click()
    tab.get_by_label("Text has").fill("CLEAR")
    tab.get_by_label("Sorted by").select_option("most tokens")
    tab.get_by_role("button", name="Show", exact=True).click()
    assert "text=CLEAR" in tab.url and "sort=-tokens" in tab.url
    assert tab.locator("mark").first.inner_text().lower() == "clear"
    tab.locator(".facets").get_by_role("link", name="not kept").click()
    assert "kept=no" in tab.url
    tab.locator(".draws h3 a").first.click()
    assert tab.get_by_role("heading", name="Rationale").is_visible()
    tab.get_by_role("link", name="Next").click()
    tab.locator("h1 a").click()
    assert tab.url.startswith(f"{visit.base}/problem?id=")
    tab.locator("input[name=a]").first.check()
    tab.locator("input[name=b]").last.check()
    tab.get_by_role("button", name="Show the difference").click()
    assert tab.get_by_role("heading", name="Difference", exact=True).is_visible()
    tab.goto(f"{visit.base}/draws?kept=no")
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="JSON lines").click()
    lines = Path(waiting.value.path()).read_text().splitlines()
    shown = tab.locator("h1").inner_text().split()[0].replace(",", "")
    assert len(lines) == int(shown) > 0
    assert visit.faults == []


def test_filters_are_folded_on_a_phone_and_open_at_a_desk(
    browser: playwright.Browser, address: str
) -> None:
    for size, seen in (("desk", True), ("phone", False)):
        tab = Visit(browser, address, size, "light").go("/draws")
        assert tab.get_by_label("Problem id has").is_visible() == seen
        if not seen:
            tab.get_by_text("Filters", exact=True).click()
            assert tab.get_by_label("Problem id has").is_visible()


def test_the_keyboard_suffices(browser: playwright.Browser, address: str) -> None:
    visit = Visit(browser, address, "desk", "light")
    tab = visit.tab
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#main")
    visit.go("/draws")
    tab.get_by_label("Text has").focus()
    tab.keyboard.type("clear")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**text=clear*")
    assert visit.faults == []
