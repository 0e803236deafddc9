"""The script that drives a browser: what can be tested without one (`make browser` runs it)."""

import os
import runpy
import subprocess
import sys

from tt_lib.files import PACKAGE_ROOT

SCRIPT = PACKAGE_ROOT / "tests" / "browser" / "explorer.py"


def test_its_notebook_is_there():
    assert runpy.run_path(str(SCRIPT))["DEFAULT"].exists()


def test_without_a_browser_it_says_why_it_is_skipped_and_fails_only_if_told(tmp_path):
    (tmp_path / "playwright.py").write_text("")
    env = {name: value for name, value in os.environ.items() if name != "CHROMIUM"} | {
        "PATH": str(tmp_path),
        "PYTHONPATH": str(tmp_path),
    }
    for options, code in (([], 0), (["--strict"], 1)):
        answer = subprocess.run([sys.executable, SCRIPT, *options], env=env, capture_output=True, text=True)
        assert answer.returncode == code and "skipped: no Chromium is installed" in answer.stdout, answer.stderr
