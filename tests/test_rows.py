"""Rows of results: added, replaced by key, never lost, and what they say about where they come from."""

from __future__ import annotations

import csv
import datetime
import math
import multiprocessing
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tt_lib import rows as results
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.rows import (
    SPEED_COLUMNS,
    SPEED_KEY,
    command_line,
    device_name,
    git_commit,
    provenance,
    read_rows,
    results_folder,
    write_rows,
)

COLUMNS, KEY = ("model", "nfe", "value", "commit"), ("model", "nfe")


def row(model="a", nfe=10, value=1.0, commit="abc"):
    return {"model": model, "nfe": nfe, "value": value, "commit": commit}


def write(path, *rows):
    write_rows(path, rows, COLUMNS, KEY)


def cells(path: Path) -> list[list[str]]:
    """The text of a file's cells, as no reader has interpreted it."""
    with open(path, newline="") as stream:
        return list(csv.reader(stream))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results" / "rows.csv"


# Adding and replacing


def test_rows_are_added_and_replaced(path):
    write(path, row("a", 5, 1.5), row("b", 5, 2.5))
    write(path, row("b", 5, 3.5), row("a", 10, 4.5))
    assert cells(path) == [
        list(COLUMNS),
        ["a", "5", "1.5", "abc"],
        ["b", "5", "3.5", "abc"],
        ["a", "10", "4.5", "abc"],
    ]
    frame = read_rows(path, COLUMNS)
    assert frame.nfe.tolist() == [5, 5, 10] and frame.value.tolist() == [1.5, 3.5, 4.5]
    # Neither temporary files nor anything that git would take for a result.
    assert {file.name for file in path.parent.iterdir()} == {"rows.csv", ".rows.csv.lock"}


def test_numbers_of_one_value_are_one_key(path):
    for value, nfe in enumerate((10, 10.0, "10", "10.0", torch.tensor(10).item())):
        write(path, row(nfe=nfe, value=-1), row(nfe=nfe, value=value))
    assert [line[2] for line in cells(path)[1:]] == ["4"]
    write(path, row(nfe=10.5, value=5))
    assert [line[2] for line in cells(path)[1:]] == ["4", "5"]


def test_names_that_look_like_numbers_are_names(path):
    """Two networks whose names are one number are two networks."""
    names = ["10", "10.0", "1e1", "010", "nan", "inf"]
    for name in names:
        write(path, row(name))
    assert read_rows(path, COLUMNS).model.tolist() == names and len(read_rows(path).query("model == '10'")) == 1


def test_nothing_is_one_key(path):
    for value, nothing in enumerate((None, math.nan, "")):
        write(path, row(nothing, value=value))
    write(path, row("0", value=3))
    assert [[line[0], line[2]] for line in cells(path)[1:]] == [["", "2"], ["0", "3"]]
    assert read_rows(path, COLUMNS).model.isna().tolist() == [True, False]


def test_words_that_look_like_nothing_stay(path):
    write(path, row("None"), row("nan"), row("NA"), row("a,b"), row('"q"\nline'))
    write(path, row("x"))
    assert read_rows(path, COLUMNS).model.tolist() == ["None", "nan", "NA", "a,b", '"q"\nline', "x"]


def test_other_rows_keep_their_text(path):
    """A commit of digits is no number: 12345678e901 would become infinity, and 001... lose its noughts."""
    commits = ["12345678e901", "001234567890", "123456789012"]
    for place, commit in enumerate(commits):
        write(path, row("a", place, 0.1 + 0.2, commit))
        before = path.read_text()
        write(path, row("b", place, 1, commit), row("c", 0, 1, commit))
        assert path.read_text().startswith(before.partition("c,")[0])
    text = {line[0] + line[1]: line for line in cells(path)[1:]}
    for place, commit in enumerate(commits):
        assert text[f"a{place}"] == ["a", str(place), "0.30000000000000004", commit]
        assert text[f"b{place}"] == ["b", str(place), "1", commit]


def test_no_rows_keep_the_header(path):
    write(path)
    assert cells(path) == [list(COLUMNS)]
    write(path, row())
    write(path)
    assert cells(path) == [list(COLUMNS), ["a", "10", "1.0", "abc"]]


# What is refused


@pytest.mark.parametrize("bad", [{"model": "a", "nfe": 1, "value": 1}, row() | {"nef": 1}, {}])
def test_rows_with_other_columns(path, bad):
    write(path, row())
    before = path.read_bytes()
    with pytest.raises(BadValue, match=r"needs exactly the columns .*'model', 'nfe', 'value', 'commit'"):
        write(path, row("b"), bad)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "", "many", True, "2.", "1_0", " 1"])
def test_values_that_are_no_numbers(path, value):
    """NaN was written as nothing, and nothing is left out of tables."""
    write(path, row())
    before = path.read_bytes()
    with pytest.raises(BadValue, match=r"cannot be written: value is .* must be a number"):
        write(path, row("b", 5, 1.5), row("c", value=value))
    assert path.read_bytes() == before


def test_a_value_that_was_cut_lies_outside_of_its_interval(path):
    columns = ("model", "value", "low", "high")
    write_rows(path, [dict(zip(columns, ("a", 17.54, 17.4, 17.7), strict=True))], columns, ("model",))
    write_rows(path, [dict(zip(columns, ("b", 0.7, math.nan, math.nan), strict=True))], columns, ("model",))
    assert read_rows(path, columns).value.tolist() == [17.54, 0.7]
    path.write_text(path.read_text().replace("17.54", "7.54"))
    with pytest.raises(CorruptFile, match=r"line 2: its value 7.54 lies outside of its interval \[17.4, 17.7\]"):
        read_rows(path, columns)
    with pytest.raises(BadValue, match="outside of its interval"):
        write_rows(path, [dict(zip(columns, ("a", 2, 0, 1), strict=True))], columns, ("model",))


@pytest.mark.parametrize("model", ["a\rb", "a\r\n", "\udcff", "\0", "x" * 200_000])
def test_a_text_that_could_not_be_read_back_is_not_written(path, model):
    """One carriage return, and nobody could read the file any more."""
    write(path, row())
    before = path.read_bytes()
    with pytest.raises(BadValue, match=r"cannot be written: model is .*which a row cannot hold"):
        write(path, row(model))
    assert path.read_bytes() == before


def test_an_interval_has_two_ends(path):
    columns = ("model", "value", "low", "high")
    with pytest.raises(BadValue, match=r"its interval \[1, \] has one end only"):
        write_rows(path, [dict(zip(columns, ("a", 2, 1, None), strict=True))], columns, ("model",))


DAMAGED = {
    "empty": b"",
    "a number that is cut": b"model,nfe,value,commit\na,1,2.,x\na,2,3,x\n",
    "no number": b"model,nfe,value,commit\na,1,2,x\na,2,,x\n",
    "zeros of a disk": b"model,nfe,value,commit\na,1,2,x\na,2,3,\0\0\0\n",
    "more than a number holds": b"model,nfe,value,commit\na,1,2,x\na,2,1e999,x\n",
    "too many digits": b"model,nfe,value,commit\na,1,2,x\na," + b"9" * 5000 + b",3,x\n",
    "a row twice": b"model,nfe,value,commit\na,1,2,x\nb,1,2,x\na,1,2,x\n",
    "a column twice": b"model,nfe,value,value,commit\na,1,2,3,x\n",
    "a blank line": b"model,nfe,value,commit\na,1,2,x\n\na,2,3,x\n",
    "no text": b"\xff\xfe\x00\x81",
    "an open quote": b'model,nfe,value,commit\na,1,2,"x\n',
    "cut within the last cell": b"model,nfe,value,commit\na,1,2,x\na,2,3,61e52",
    "a short line": b"model,nfe,value,commit\na,1,2\na,2,3,x\n",
    "a long line": b"model,nfe,value,commit\na,1,2,x,y\n",
    "lacks a column": b"model,nfe,value\na,1,2\n",
    "has a column more": b"model,nfe,value,commit,note\na,1,2,x,y\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_neither_read_nor_written(path, content):
    """pandas alone would fill up short lines, and take a number that was cut for a number."""
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (lambda: read_rows(path, COLUMNS), lambda: write(path, row())):
        with pytest.raises(CorruptFile, match="restore it from git") as caught:
            use()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_what_is_wrong_is_named(path):
    """Columns are named once, lines by their number in the file, and of known files the key counts, not the row."""
    path.parent.mkdir()
    path.write_text("model,nef,value,value\n")
    with pytest.raises(CorruptFile) as caught:
        read_rows(path, COLUMNS)
    lacks, unknown = "lacks the columns 'commit', 'nfe'", "has unknown columns 'nef'"
    assert f"{path} {lacks} and {unknown} and has columns twice 'value'; restore" in str(caught.value)
    numbers = {"peer": "", "ratio": ""}
    speeds = [dict.fromkeys(SPEED_COLUMNS, "x") | {"what": f"{i}", "ours": i, **numbers} for i in range(3)]
    write_rows(path.with_name("s.csv"), speeds, SPEED_COLUMNS, SPEED_KEY)
    path.write_text(path.with_name("s.csv").read_text().replace("\n2,", "\n0,"))
    with pytest.raises(CorruptFile, match="lines 2 and 4 are of one and the same measurement"):
        read_rows(path, SPEED_COLUMNS)


def test_no_file_is_an_empty_table(path):
    assert read_rows(path, COLUMNS).columns.tolist() == list(COLUMNS) and len(read_rows(path, COLUMNS)) == 0
    assert len(read_rows(path)) == 0 and not path.parent.exists()


# Several writers


def write_twenty(path, name, together):
    for number in range(20):
        together.wait(60)
        write(path, row(name, number))


def test_two_processes_lose_no_row(path):
    fork = multiprocessing.get_context("fork")  # a spawned process would import torch for seconds
    together = fork.Barrier(2)
    processes = [fork.Process(target=write_twenty, args=(path, name, together)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    frame = read_rows(path, COLUMNS)
    assert sorted(zip(frame.model, frame.nfe, strict=True)) == [(name, number) for name in "ab" for number in range(20)]


# Where a row comes from


def test_provenance():
    fields = provenance()
    assert fields["versions"] == f"python {sys.version.split()[0]}, torch {torch.__version__}"
    today = datetime.datetime.now(datetime.UTC).date()
    assert today - datetime.date.fromisoformat(fields["date"]) in (datetime.timedelta(0), datetime.timedelta(1))
    assert fields["commit"] == git_commit() and fields["command"] == command_line()


@pytest.mark.parametrize("name", ["fd", "speed", "direction", "training"])
def test_shipped_rows_have_the_columns(name):
    columns, key = getattr(results, f"{name.upper()}_COLUMNS"), getattr(results, f"{name.upper()}_KEY")
    frame = read_rows(results_folder() / f"{name}.csv", columns)
    assert len(frame) > 8 and tuple(frame.columns) == columns and not frame.duplicated(list(key)).any()
    assert frame["commit"].map(type).eq(str).all()


def test_git_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("TT_COMMIT", raising=False)
    root = Path(results.__file__).parent.parent
    if (root / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
        assert re.fullmatch("[0-9a-f]{12,40}", git_commit()) and head.startswith(git_commit())
    # Where tt is started says nothing about its code.
    here = git_commit()
    monkeypatch.chdir(tmp_path)
    assert git_commit() == here
    monkeypatch.setattr(results, "PACKAGE_ROOT", tmp_path)
    assert git_commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"
    monkeypatch.setenv("TT_COMMIT", "0123456789ab")
    assert git_commit() == "0123456789ab"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """``started(argv, **environment)`` is the command line of a process started so in ``tmp_path / "here"``."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def start(argv, **environment):
        for name in ("TT_COMMAND", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", argv)
        return command_line()

    return start


BOTH = "torchrun --nproc_per_node 2 -m tt_lib train --out runs/a"


@pytest.mark.parametrize(
    ("program", "environment", "shown"),
    [
        ("/opt/env/bin/tt", {}, "tt train --out runs/a"),
        ("/srv/repo/tt_lib/__main__.py", {"WORLD_SIZE": "1"}, "tt train --out runs/a"),
        ("/srv/repo/tt_lib/__main__.py", {"WORLD_SIZE": "2"}, BOTH),
        ("tt", {"TT_COMMAND": "make digits"}, "make digits"),
        # A kernel's arguments name files of one machine and one session.
        ("/opt/env/lib/python3.12/site-packages/ipykernel_launcher.py", {}, "jupyter"),
        ("/opt/env/bin/pytest", {}, "pytest"),
    ],
)
def test_command_line(started, program, environment, shown):
    assert started([program, "train", "--out", "runs/a"], **environment) == shown


def test_command_line_can_be_typed_again_anywhere(started, tmp_path):
    """Arguments with blanks or signs of the shell are quoted, and no folder of this machine is shown."""
    arguments = ["tune", "--out", "runs/my run", "--note", "a;b $c 'd'", ""]
    assert shlex.split(started(["tt", *arguments])) == ["tt", *arguments]
    here = tmp_path / "here"
    arguments = ["sample", "--out", f"{here}/runs/a.png", f"--timing={here}/data/t.json", "--data", str(here)]
    shown = started([f"{here}/bin/tt", *arguments])
    assert shown == "tt sample --out runs/a.png --timing=data/t.json --data ."
    # A folder whose name only begins in the same way is another folder.
    assert started(["tt", "--out", f"{here}2/a"]) == f"tt --out {here}2/a"


def test_device_name():
    cpu = f"cpu ({torch.get_num_threads()} threads)"
    assert device_name("cpu") == device_name(torch.device("cpu")) == cpu and device_name("cpu", 2) == f"2 x {cpu}"
