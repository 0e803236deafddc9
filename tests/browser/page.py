"""A page of the built site in headless Chromium with the network off: its formulas show, and it asks nobody for a file.

``python tests/browser/page.py build/site`` (`make site` ends with it). It needs what explorer.py needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from explorer import chromium, missing

PAGES = ("notebooks/01_the_integral_view.html", "notebooks/site/reference.html")
"""One with formulas, one made from docstrings."""
OFF = "--host-resolver-rules=MAP * ~NOTFOUND"


def open_page(path: Path) -> tuple[int, list[str]]:
    """The number of formulas that are set, and the files that were asked for elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", OFF])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri(), wait_until="load", timeout=60_000)
        page.evaluate("window.MathJax && window.MathJax.startup ? window.MathJax.startup.promise : null")
        formulas = page.locator("mjx-container").count()
        browser.close()
    # The badge of Colab is a picture, and shows its words where it cannot be had.
    return formulas, [url for url in asked if not url.startswith(("file:", "data:")) and "colab-badge" not in url]


def main(site: Path) -> None:
    if why := missing():
        print(f"skipped: {why}")
        return
    for name in PAGES:
        formulas, asked = open_page(site / name)
        assert not asked, f"{name} asks for {asked}"
        assert formulas or name != PAGES[0], f"{name} shows no formula"
        print(f"{name}: {formulas} formulas without a network")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
