"""The install cell in an empty folder, as on Colab: it fetches the library, and the torch that is there stays.

GitHub is a local repository, to which git's own configuration leads; pip is a stand-in that notes what it is asked for.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from index import install_cell, repository_url

from tt_lib.files import PACKAGE_ROOT

PIP = "import json, pathlib, sys; pathlib.Path('asked.json').write_text(json.dumps(sys.argv[1:]))"
REPORT = "\nimport tt_lib.errors; print(Path(tt_lib.__file__).resolve())"
# The library is installed where the tests run, in one of pip's two ways; the cell is to find it on PYTHONPATH alone.
HIDE = f"""\
import os, sys
sys.meta_path[:] = [each for each in sys.meta_path if "__editable__" not in str(each)]
sys.path[:] = [each for each in sys.path if each != {str(PACKAGE_ROOT)!r} or each in os.environ["PYTHONPATH"]]
"""


@pytest.fixture
def run_cell(tmp_path):
    """Run the cell in an empty folder with these on the path: (the folder, its output)."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    remote, stand_in, work = tmp_path / "remote", tmp_path / "stand-in", tmp_path / "empty"
    shutil.copytree(PACKAGE_ROOT / "tt_lib", remote / "tt_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=remote, check=True)
    (stand_in / "pip").mkdir(parents=True)
    (stand_in / "pip" / "__init__.py").touch()
    (stand_in / "pip" / "__main__.py").write_text(PIP)
    work.mkdir()

    def run(*paths):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GIT_"))} | {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": repository_url(),
            "PYTHONPATH": os.pathsep.join(map(str, (stand_in, *paths))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", HIDE + install_cell() + REPORT]
        answer = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return work, answer.stdout.strip()

    return run


def test_where_the_library_is_missing_it_is_fetched_and_the_torch_that_is_there_stays(run_cell):
    work, library = run_cell()
    assert library == str((work / "timetuner" / "tt_lib" / "__init__.py").resolve())
    asked = json.loads((work / "asked.json").read_text())
    assert asked == ["install", "-q", "-e", "./timetuner", f"torch=={version('torch')}"]


def test_where_the_library_is_nothing_happens(run_cell):
    work, library = run_cell(PACKAGE_ROOT)
    assert library == str(PACKAGE_ROOT / "tt_lib" / "__init__.py") and not list(work.iterdir())
