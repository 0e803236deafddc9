"""The install cell alone in an empty folder, as on Colab: a torch that is newer than any release, and no network.

The environment is fresh. It sees the packages of the environment that runs the tests through links, but for three:
there is no tt_lib; of torch and torchvision only the claim to be version 99, which pip may not touch; and no `tabled`,
a wheel in a folder that the library is made to need. GitHub is a local repository, to which git's configuration leads.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from index import install_cell, repository_url

from tt_lib.files import PACKAGE_ROOT

HIDDEN = ("torch-", "torchvision-", "tt_lib-", "__editable__", "easy-install", "distutils-precedence", "__pycache__")
VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps([f'{d.name}=={d.version}' for d in m.distributions()]))"
)


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel that holds one empty module."""
    info = f"{name}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {n}" for n in needs),
    ]
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    words = {path: base64.urlsafe_b64encode(digest).rstrip(b"=").decode() for path, digest in hashes.items()}
    rows = [f"{path},sha256={words[path]},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """(the folder of everything, the fresh environment's Python)."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    base = tmp_path_factory.mktemp("colab")
    # Outside the environment's own folder, so that pip refuses to remove anything that it sees there.
    seen = base / "seen"
    seen.mkdir()
    for each in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not each.name.startswith(HIDDEN) and each.suffix != ".pth":
            (seen / each.name).symlink_to(each)
    venv.create(base / "fresh", with_pip=False, symlinks=True)
    python = base / "fresh" / "bin" / "python"
    site = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    (site / "seen.pth").write_text(f"{seen}\n")
    for name in ("torch", "torchvision"):
        info = site / f"{name}-99.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("".join(f"{info.name}/{each},,\n" for each in ("METADATA", "INSTALLER", "RECORD")))
    wheel(base / "wheels", "torch", "98.0")
    wheel(base / "wheels", "tabled", "1.0")
    wheel(base / "wheels", "pinned", "1.0", "torch==98.0")  # as a torchvision pins its torch
    yield base, python
    assert all(each.is_symlink() for each in seen.iterdir()), "what the links lead to is not ours"


def output(*command, **options) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


def run_cell(environment, folder: Path, needs: str) -> subprocess.CompletedProcess:
    """Run the cell in ``folder/empty``, of a project that needs one more package."""
    base, python = environment
    remote, work = folder / "remote", folder / "empty"
    work.mkdir(parents=True)
    shutil.copytree(PACKAGE_ROOT / "tt_lib", remote / "tt_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(PACKAGE_ROOT / name, remote / name)
    project = (remote / "pyproject.toml").read_text(encoding="utf-8")
    changed = project.replace("dependencies = [\n", f'dependencies = [\n    "{needs}",\n', 1)
    assert changed != project
    (remote / "pyproject.toml").write_text(changed, encoding="utf-8")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        output("git", *words, cwd=remote)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "GIT_"))} | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository_url(),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(base / "wheels"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    report = "\nimport tt_lib.errors; print(Path(tt_lib.__file__).resolve())"
    return subprocess.run([python, "-c", install_cell() + report], cwd=work, env=env, capture_output=True, text=True)


def test_the_install_cell_alone_in_an_empty_folder(environment, tmp_path):
    _, python = environment

    def versions() -> set[str]:
        return set(json.loads(output(python, "-c", VERSIONS, cwd=tmp_path)))

    before = versions()
    assert "torch==99.0" in before and not any(each.startswith(("tt_lib", "tabled")) for each in before)
    first = run_cell(environment, tmp_path / "one", "tabled>=1")
    assert first.returncode == 0, first.stdout + first.stderr
    library = tmp_path / "one" / "empty" / "timetuner" / "tt_lib" / "__init__.py"
    assert first.stdout.splitlines()[-1] == str(library.resolve())
    assert before <= versions() and {each.partition("==")[0] for each in versions() - before} == {"tt_lib", "tabled"}

    again = run_cell(environment, tmp_path / "two", "tabled>=1")
    assert again.stdout.splitlines()[-1] == str(library.resolve()), "the library is there already"
    assert not list((tmp_path / "two" / "empty").iterdir()), "so nothing is fetched"

    output(python, "-m", "pip", "uninstall", "-q", "-y", "tt_lib")
    refused = run_cell(environment, tmp_path / "three", "pinned>=1")
    assert refused.returncode != 0 and "torch==99.0" in refused.stdout + refused.stderr, "it wants an older torch"
    assert "torch==99.0" in versions()


def test_the_cell_does_nothing_to_the_environment_of_these_tests():
    """It ran in the notebooks' tests, and would have cloned."""
    before = set(os.listdir())
    output(sys.executable, "-c", install_cell(), env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PATH": ""})
    assert set(os.listdir()) == before
