"""Pages of the built site in headless Chromium with the network off: formulas show, a toy moves, no file is asked for.

``python tests/browser/page.py build/site`` (`make site` ends with it). It needs what explorer.py needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from explorer import chromium, missing

FIRST = "notebooks/site/index.html"
PAGES = ("notebooks/01_the_integral_view.html", "notebooks/site/reference.html", FIRST)
"""One with formulas, one made from docstrings, and the first, with its toy."""
MOVE = """() => {
    const slider = document.querySelector("#tt-toy input"), end = document.querySelector("#tt-toy .step");
    const before = end.getAttribute("x2");
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    return end.getAttribute("x2") !== before;
}"""
OFF = "--host-resolver-rules=MAP * ~NOTFOUND"


def open_page(path: Path) -> tuple[int, list[str], bool]:
    """The number of formulas that are set, the files that were asked for elsewhere, and whether a toy moves."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", OFF])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri(), wait_until="load", timeout=60_000)
        page.evaluate("window.MathJax && window.MathJax.startup ? window.MathJax.startup.promise : null")
        formulas = page.locator("mjx-container").count()
        moves = page.locator("#tt-toy").count() == 1 and page.evaluate(MOVE)
        browser.close()
    # The badge of Colab is a picture, and shows its words where it cannot be had.
    asked = [url for url in asked if not url.startswith(("file:", "data:")) and "colab-badge" not in url]
    return formulas, asked, moves


def main(site: Path) -> None:
    if why := missing():
        print(f"skipped: {why}")
        return
    for name in PAGES:
        formulas, asked, moves = open_page(site / name)
        assert not asked, f"{name} asks for {asked}"
        assert formulas or name != PAGES[0], f"{name} shows no formula"
        assert moves == (name == FIRST), f"the toy of {name} stands still"
        print(f"{name}: {formulas} formulas without a network{', and the toy moves' if moves else ''}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
