"""The install cell, alone in an empty folder as on Colab, with a torch that is newer than any release, and without a network.

The environment is fresh. Its packages are those of the environment that runs the tests, seen through links, but for three: no
tt_lib; of torch and torchvision only the claim to be version 99, which pip may not touch; and no `tabled`, a wheel in a folder, which the library is
made to need. GitHub is a local git repository, to which git's own configuration leads the address.
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
REPORT = """
import importlib.metadata as m, json, pathlib
import tt_lib, tt_lib.errors
print(json.dumps({"tt_lib": str(pathlib.Path(tt_lib.__file__).resolve()), "torch": m.version("torch"),
                  "all": sorted(f"{d.name}=={d.version}" for d in m.distributions())}))
"""


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel that holds one empty module."""
    info = f"{name}-{version}.dist-info"
    metadata = "".join(
        f"{line}\n"
        for line in [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {each}" for each in needs),
        ]
    )
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Run the cell and a report in an empty folder: ``colab(folder, needs)``."""
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
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    (site / "seen.pth").write_text(f"{seen}\n")
    for name in ("torch", "torchvision"):
        info = site / f"{name}-99.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("".join(f"{info.name}/{each},,\n" for each in ("METADATA", "INSTALLER", "RECORD")))

    wheels = base / "wheels"
    wheel(wheels, "torch", "98.0")
    wheel(wheels, "tabled", "1.0")
    wheel(wheels, "pinned", "1.0", "torch==98.0")  # as a torchvision pins its torch

    def run(folder: Path, needs: str | None = None):
        remote = folder / "remote"
        remote.mkdir(parents=True)
        shutil.copytree(PACKAGE_ROOT / "tt_lib", remote / "tt_lib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "LICENSE", "pyproject.toml"):
            shutil.copy(PACKAGE_ROOT / name, remote / name)
        if needs:
            text = (remote / "pyproject.toml").read_text(encoding="utf-8")
            assert "dependencies = [\n" in text
            (remote / "pyproject.toml").write_text(
                text.replace("dependencies = [\n", f'dependencies = [\n    "{needs}",\n', 1), encoding="utf-8"
            )
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
            subprocess.run(["git", *words], cwd=remote, check=True)
        work = folder / "empty"
        work.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "GIT_"))} | {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": repository_url(),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_BUILD_ISOLATION": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        return subprocess.run(
            [python, "-c", install_cell() + REPORT], cwd=work, env=env, capture_output=True, text=True
        )

    yield run, python
    # The links only; what they lead to is not ours.
    assert all(each.is_symlink() for each in seen.iterdir())


def installed(answer) -> dict:
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-4000:]
    return json.loads(answer.stdout.splitlines()[-1])


def test_the_install_cell_alone_in_an_empty_folder(colab, tmp_path):
    run, python = colab
    before = set(
        json.loads(
            subprocess.run(
                [
                    python,
                    "-c",
                    "import importlib.metadata as m, json; print(json.dumps([f'{d.name}=={d.version}' for d in m.distributions()]))",
                ],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            ).stdout
        )
    )
    assert "torch==99.0" in before and not any(each.startswith(("tt_lib", "tabled")) for each in before)

    first = installed(run(tmp_path / "one", needs="tabled>=1"))
    assert first["tt_lib"] == str((tmp_path / "one" / "empty" / "timetuner" / "tt_lib" / "__init__.py").resolve())
    assert first["torch"] == "99.0"
    assert {each.partition("==")[0] for each in set(first["all"]) - before} == {"tt_lib", "tabled"} and before <= set(
        first["all"]
    )

    # Where the library is there already, nothing happens: no clone and no pip.
    again = run(tmp_path / "two")
    assert installed(again)["all"] == first["all"] and not list((tmp_path / "two" / "empty").iterdir())

    # A dependency that wants an older torch is refused, and the torch that was there stays.
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "tt_lib"], check=True, capture_output=True)
    refused = run(tmp_path / "three", needs="pinned>=1")
    assert refused.returncode != 0 and "torch==99.0" in refused.stdout + refused.stderr
    version = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout == "99.0\n"


def test_the_cell_does_nothing_to_the_environment_of_these_tests():
    """It ran in the notebooks' tests, and would have cloned."""
    before = set(os.listdir())
    subprocess.run(
        [sys.executable, "-c", install_cell()],
        check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PATH": ""},
    )
    assert set(os.listdir()) == before
