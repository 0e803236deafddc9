"""A notebook in a real browser: JupyterLab in headless Chromium, where its sliders move and the figures change.

First, with the notebook trusted as `make lab` does and nothing run, the player that is stored in it; then, run, the
slider that needs a kernel.

``python tests/browser/explorer.py [NOTEBOOK]`` (`make browser`); without a name it is 03_the_timestep_tuner.ipynb.
It needs Chromium or Chrome (``CHROMIUM`` names another) and the extra ``browser``; without them it only says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT = ROOT / "notebooks" / "03_the_timestep_tuner.ipynb"
SECONDS = 600
HANDLE = ".jupyter-widgets .noUi-handle"
PICTURE = ".jp-OutputArea img.widget-image, .jupyter-widgets .jp-OutputArea img"
PLAYER, SHOWN = ".animation input[type=range]", ".animation img"
IMAGE_BYTES = """async image => {
  const buffer = await (await fetch(image.src)).arrayBuffer();
  return Array.from(new Uint8Array(buffer));
}"""


def chromium() -> str | None:
    """The browser, if there is one."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def missing() -> str | None:
    """Why this cannot run here, if it cannot."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install -e '.[browser]'"
    return None if chromium() else "no Chromium is installed: install it, or name it with CHROMIUM"


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine only; yield the address with %s for a path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), folder / ".jupyter"
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # No setting, workspace or kernel of the user's own.
    environment = os.environ | {
        "PYTHONPATH": paths,
        "TT_SCALE": "ci",
        "TQDM_DISABLE": "1",
        "JUPYTER_CONFIG_DIR": str(own),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(own / "ipython"),
        "JUPYTER_TOKEN": token,
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.workspaces_dir={own / 'workspaces'}",
        "--LabApp.extension_manager=readonly",
    ]
    log = folder / "server.log"
    with open(log, "wb") as stream:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).close()
                break
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab/tree/%s?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


def trust(notebook: Path) -> None:
    """Trust a notebook as `make lab` does, in the folder that :func:`jupyterlab` gives its server."""
    environment = os.environ | {"JUPYTER_DATA_DIR": str(notebook.parent / ".jupyter" / "data")}
    command = [sys.executable, "-m", "nbformat.sign", str(notebook)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def picture(page) -> str:
    """A hash of the bytes of the figure below the slider."""
    return hashlib.sha256(bytes(page.locator(PICTURE).first.evaluate(IMAGE_BYTES))).hexdigest()


def move_a_slider(notebook: Path) -> None:
    """Open, move the player, run, move the slider; compare.

    Raises:
        AssertionError: a figure stays as it is.
        playwright's TimeoutError: there is no player, slider or figure.
    """
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="explorer") as name, sync_playwright() as play:
        folder = Path(name)
        shutil.copy(notebook, folder / notebook.name)  # a copy: JupyterLab saves what it opens
        trust(folder / notebook.name)
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        with jupyterlab(folder) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(SECONDS * 1000)
            page.goto(address % notebook.name)
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            page.get_by_text("| Idle").first.wait_for()  # the kernel has started
            slider = page.locator(PLAYER).first
            slider.wait_for(state="attached")
            slider.scroll_into_view_if_needed()
            stored = page.locator(SHOWN).first.get_attribute("src")
            slider.fill(slider.get_attribute("max"))
            moved = page.locator(SHOWN).first.get_attribute("src")
            assert moved != stored, "the player's slider moved, and its figure stayed as it was"
            page.locator(".lm-MenuBar").get_by_text("Run", exact=True).click()
            page.locator(".lm-Menu").get_by_text("Run All Cells", exact=True).click()
            handle = page.locator(HANDLE).first
            handle.wait_for(state="attached")
            page.locator(PICTURE).first.wait_for(state="attached")
            handle.scroll_into_view_if_needed()
            before = picture(page)
            handle.focus()
            page.keyboard.press("ArrowRight")
            end = time.monotonic() + SECONDS  # the kernel may still be running the cells below
            while picture(page) == before and time.monotonic() < end:
                page.wait_for_timeout(250)
            after = picture(page)
        browser.close()
    assert after != before, "the slider moved, and the figure stayed as it was"


def main(notebook: Path) -> None:
    if why := missing():
        print(f"skipped: {why}")
        return
    start = time.monotonic()
    move_a_slider(notebook)
    seconds = time.monotonic() - start
    print(f"{notebook.name} in {chromium()}: both sliders moved and their figures changed ({seconds:.0f} s)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)
