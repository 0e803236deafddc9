"""The script that drives a browser: what can be tested without one (`make browser` runs it)."""

import os
import runpy
import subprocess
import sys

from tt_lib.files import PACKAGE_ROOT

SCRIPT = PACKAGE_ROOT / "tests" / "browser" / "explorer.py"


def test_its_notebook_is_there_and_without_a_browser_it_says_why_it_is_skipped(tmp_path):
    assert runpy.run_path(str(SCRIPT))["DEFAULT"].exists()
    (tmp_path / "playwright.py").write_text("")
    paths = {"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    env = {name: value for name, value in os.environ.items() if name != "CHROMIUM"} | paths
    answer = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert answer.stdout == "skipped: no Chromium is installed: install it, or name it with CHROMIUM\n"
