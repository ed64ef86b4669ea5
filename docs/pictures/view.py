"""Take the pictures in docs/view.md: the page of runs and a list of draws (Playwright, Chromium).

femtune view runs/demo
python docs/pictures/view.py ADDRESS RUN ITERATION
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def main() -> None:
    address, run, iteration = sys.argv[1:]
    pages = {"view-runs": "/", "view-draws": f"/draws?run={run}&iteration={iteration}"}
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1160, "height": 700}, color_scheme="light")
        page.goto(address)  # its token becomes a cookie
        for name, path in pages.items():
            page.goto(address.partition("/?")[0] + path)
            picture = FOLDER / f"{name}.png"
            page.screenshot(path=picture)
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
