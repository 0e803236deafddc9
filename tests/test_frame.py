"""The project's frame: README, environment.yml, Makefile, .ci/run, licence, citation agree with the code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from declared import DEPENDENCIES, EXTRAS, PROJECT, bounds, imported, undeclared
from nbval.plugin import get_sanitize_patterns

import tt_lib

ROOT = Path(__file__).resolve().parent.parent
# Distribution names that differ between PyPI and conda-forge.
CONDA_NAMES = {"torch": "pytorch"}
TARGETS = ("demo", "test", "lint", "lab", "browser", "site", "clean", "help")


def tracked() -> list[Path]:
    """The files that git tracks and that exist."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git clone")
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [path for name in answer.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


# ---- environments


def test_environment_yml_is_pyproject_in_conda_s_words():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "timetuner"
    assert environment["channels"][0] == "conda-forge"
    *conda, last = environment["dependencies"]
    assert last["pip"][-1] == "-e ."
    conda.remove("pip")
    found = bounds([*conda, *last["pip"][:-1]])
    wanted = {"python": PROJECT["requires-python"].removeprefix(">=")}
    for rows in (DEPENDENCIES, *EXTRAS.values()):
        wanted.update({CONDA_NAMES.get(name, name): bound for name, bound in rows.items()})
    assert found == wanted


def test_imported_knows_where_an_import_stands():
    source = "import a.b, os\nfrom . import c\ndef f():\n    from d import e\nif True:\n    import g\n"
    assert imported(source) == {("a", True), ("d", False), ("g", True)}
    assert undeclared("PIL", {"torch": "2"}) and not undeclared("PIL", {"pillow": "10"})
    assert undeclared("nowhere_to_be_found", DEPENDENCIES)


@pytest.mark.parametrize("path", sorted((ROOT / "tt_lib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_library_imports_only_what_is_declared(path):
    for name, _ in imported(path.read_text(encoding="utf-8")):
        assert not undeclared(name, DEPENDENCIES), f"{name} is imported but not declared in pyproject.toml"


# ---- README and the command line


def shell_commands(markdown: str) -> list[str]:
    """The commands in a page's shell blocks, without prompts, comments and environment variables."""
    commands = []
    for language, block in re.findall(r"(?ms)^ *```(\w*)[^\n]*\n(.*?)^ *```", markdown):
        if language not in ("", "bash", "sh", "shell", "console"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if not line or line.startswith("#"):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set("();<>|&"):
                    words.append(word)
                    continue
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    commands.append(shlex.join(words))
                words = []
    return commands


def test_shell_commands_reads_blocks():
    page = "```bash\n# note\nmake demo\nA=1 tt x --a 'b c' && tt y  # why\n$ tt z \\\n   --q\n```\n"
    page += "```python\ntt no\n```\n"
    assert shell_commands(page) == ["make demo", "tt x --a 'b c'", "tt y", "tt z --q"]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_begins_with_make_demo_and_make_test():
    assert shell_commands(readme())[:2] == ["make demo", "make test"]


def misused(command, words: list[str]) -> str | None:
    """What is wrong with a command line (the words after the program's name), if anything."""
    words, arguments = list(words), 0
    while words:
        word = words.pop(0)
        if word == "--help":
            return None
        if word == "--":
            arguments += len(words)
            break
        if word.startswith("-") and len(word) > 1:
            name, equals, _ = word.partition("=")
            option = next((p for p in command.params if name in (*p.opts, *p.secondary_opts)), None)
            if option is None:
                return f"{command.name} has no option {name}"
            if not equals and not getattr(option, "is_flag", False) and not getattr(option, "count", False):
                if len(words) < option.nargs:
                    return f"{command.name} {name} needs a value"
                del words[: option.nargs]
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"{command.name} has no sub-command {word}"
            command = command.commands[word]
        else:
            arguments += 1
    places = [p.nargs for p in command.params if p.param_type_name == "argument"]
    if -1 not in places and arguments > sum(places):
        return f"{command.name} takes {sum(places)} arguments, not {arguments}"
    return None


def app():
    import typer.main

    from tt_lib.cli import app

    return typer.main.get_command(app)


def test_misused_finds_what_is_wrong():
    import typer

    small = typer.Typer()

    @small.callback()
    def main(loud: bool = False):
        pass

    @small.command()
    def draw(model: str, steps: int = 3, fine: bool = False):
        pass

    command = typer.main.get_command(small)
    good = [
        "--loud draw a",
        "draw --steps 3 a --no-fine",
        "draw --steps=3 a",
        "--help",
        "draw --help",
        "draw",
    ]
    assert [misused(command, line.split()) for line in good] == [None] * len(good)
    for line in ("drew", "draw --stops 3", "draw a b", "draw a --steps", "--steps 3 draw a"):
        assert misused(command, line.split()), line


@pytest.mark.parametrize("page", ["README.md", "notebooks/commands.md", "data/README.md", ".github/CONTRIBUTING.md"])
def test_the_commands_of_a_page_exist(page):
    commands = [shlex.split(line) for line in shell_commands((ROOT / page).read_text(encoding="utf-8"))]
    assert commands
    for program, *words in commands:
        if program == "make":
            assert {word for word in words if "=" not in word} <= set(TARGETS), words
        if Path(program).name == "tt":
            assert misused(app(), words) is None, f"tt {shlex.join(words)}: {misused(app(), words)}"


# ---- make and CI


def make(*arguments: str) -> subprocess.CompletedProcess:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    # These tests may themselves run under make, whose variables would change what the inner one does.
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)


def test_make_alone_names_the_targets():
    answer = make()
    assert answer.returncode == 0, answer.stderr
    for target in TARGETS:
        assert re.search(rf"(?m)^ *make {target} ", answer.stdout), target


def test_make_test_ends_with_the_notebooks_under_pytest():
    lines = make("-n", "test").stdout.splitlines()
    assert "--nbval " in lines[-1] and lines[-1].endswith("notebooks/")
    assert re.search(r"\bTQDM_DISABLE=1\b", lines[-1])
    assert make("-n", "demo").stdout.splitlines()[-1] == ".venv/bin/tt demo"


def test_make_asks_for_a_python_that_will_do():
    answer = make("-B", "demo", "PYTHON=false")
    assert answer.returncode != 0
    assert "Python 3.11 or newer is needed" in answer.stderr
    assert "make demo PYTHON=" in answer.stderr


def test_ci_runs_make_test():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert re.search(r"(?m)^make test$", text)
    assert "set -euo pipefail" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_ci_finds_cifar10_beside_the_clone(tmp_path):
    clone, images = tmp_path / "a clone", tmp_path / "shared" / "cifar10"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", clone / ".ci" / "run")
    (clone / "make").write_text('#!/bin/sh\necho "$* [$TT_CIFAR10]"\n')
    (clone / "make").chmod(0o755)

    def run(**extra):
        env = {"PATH": f"{clone}{os.pathsep}{os.environ['PATH']}", **extra}
        return subprocess.run([clone / ".ci/run"], env=env, cwd="/", capture_output=True, text=True, check=True).stdout

    assert run() == "test []\nbrowser []\nsite []\n"
    images.mkdir(parents=True)
    assert run().startswith(f"test [{images}]\n")
    assert run(TT_CIFAR10="elsewhere").startswith("test [elsewhere]\n")


# ---- what nbval may overlook


@pytest.mark.parametrize(
    "one, other",
    [
        ("took 12.3 s", "took 4 s"),
        ("in 850 ms.", "in 91.25 µs."),
        ("1,204.5 images/s", "31 images/s"),
        ("100%|##| 5/5 [00:01<00:00, 2.1it/s]", "100%|##| 5/5 [00:12<00:10, 31.25it/s]"),
        ("<object object at 0x7f113195bb80>", "<object object at 0x10a2b3c4d>"),
        ("/tmp/ipykernel_12/345.py:1: UserWarning: x", "/var/a b/T/ipykernel_9/77.py:1: UserWarning: x"),
        (
            "/home/a/.venv/lib/python3.11/site-packages/torch/x.py:12: UserWarning: y",
            "/opt/my env/lib/python3.12/site-packages/torch/x.py:345: UserWarning: y",
        ),
        ("/home/a/main/tt_lib/engine.py:7: UserWarning: z", "/x/tt_lib/engine.py:9: UserWarning: z"),
    ],
)
def test_sanitiser_overlooks_machines_and_clocks(one, other):
    assert sanitised(one) == sanitised(other)


@pytest.mark.parametrize(
    "text",
    [
        "FD 3.72 (10 steps, 2 seeds)",
        "t = 0.5, tau/t = 0.98",
        "10 sample seeds",
        "shape (3, 32, 32)",
        "NFE 10 -> 12",
        "0x10",
        "1:2",
        "data/results/fd.csv",
        "https://arxiv.org/abs/2310.09469",
        "5 minimal, 3 half, 4 m",
        "3 s2",
    ],
)
def test_sanitiser_keeps_results(text):
    assert sanitised(text) == text


def sanitised(text: str) -> str:
    patterns = get_sanitize_patterns((ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8"))
    assert len(patterns) == 7
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text


# ---- licence, citation, files


def test_licence_and_citation():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License") and "The TimeTuner lessons authors" in licence
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["version"] == tt_lib.__version__
    changes = (ROOT / ".github" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (?!Unreleased$)(\S+)", changes, re.M)[1] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]["text"] == "MIT"
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Xia",
        "Shen",
        "Lei",
        "Zhou",
        "Yi",
        "Zhao",
        "Wang",
        "Liu",
    ]
    assert paper["year"] == 2024
    assert any(row["value"] == "arXiv:2310.09469" for row in paper["identifiers"])


def test_no_tracked_file_names_a_machine_s_path():
    machine = re.compile(r"(?<![\w.])/(?:work|farm|root|tmp/bash_jobs)[/\w]")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in [machine.search(text)] if match]
    assert not found, found


def test_no_tracked_file_is_too_big_for_a_clone():
    assert not [f"{path}: {path.stat().st_size} bytes" for path in tracked() if path.stat().st_size > 40 * 2**20]
