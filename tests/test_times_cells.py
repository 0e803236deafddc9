"""Time budgets of the notebooks' cells."""

import os
import subprocess
import sys

import nbformat
import pytest
import times as budgets

from tt_lib.files import PACKAGE_ROOT


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("About 30 seconds on 2 CPU cores.", [30]),
        ("A minute or two on a laptop CPU.", [60, 120]),
        ("half a minute", [30]),
        ("1 to 2 minutes, 5 s on a GPU", [60, 120, 5]),
        ("1.5 min", [90]),
        ("Two minutes", [120]),
        ("10 steps, 4 s2, a mince", []),
    ],
)
def test_durations_are_read_from_a_sentence(text, seconds):
    assert budgets.durations(text) == seconds


def test_a_reader_is_told_about_the_measured_time():
    assert budgets.agrees([30], 45) and budgets.agrees([60, 120], 15 + 30) and budgets.agrees([5], 20)
    assert not budgets.agrees([30], 90) and not budgets.agrees([120], 30) and not budgets.agrees([], 10)


def test_a_cell_may_take_some_times_its_budget_and_never_too_little():
    assert budgets.allowed(0.1) == budgets.LEAST and budgets.allowed(10) == 10 * budgets.MARGIN


def make(folder, *sources):
    book = nbformat.v4.new_notebook(metadata={"tt": {"minutes_cpu": 99, "number": "01"}})
    book.cells = [nbformat.v4.new_markdown_cell("# 01 A"), *(nbformat.v4.new_code_cell(each) for each in sources)]
    for number, cell in enumerate(book.cells[1:], start=1):
        cell.execution_count = number
    nbformat.write(book, folder / "01_a.ipynb")
    return folder / "01_a.ipynb"


def test_measuring_writes_a_budget_for_each_code_cell_and_the_minutes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = make(tmp_path, "import time", "time.sleep(0.6)")
    budgets.save({"00_gone.ipynb": [1.0]}, tmp_path)
    found = budgets.measure_cells([path], tmp_path)
    assert found == budgets.load(tmp_path) and list(found) == ["01_a.ipynb"]
    first, second = found["01_a.ipynb"]
    assert first < second and second >= 0.6
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata.tt.minutes_cpu == round((first + second) / 60, 1)
    assert [cell.execution_count for cell in stored.cells[1:]] == [1, 2]  # measuring stores no outputs


def test_a_cell_over_its_budget_fails_under_nbval(tmp_path):
    path = make(tmp_path, "x = 1", "import time; time.sleep(0.5)")
    budgets.save({"01_a.ipynb": [100.0, 0.0]}, tmp_path)
    plugin = "from tests.nbval_budgets import *; import times as b; b.LEAST = 0"
    (tmp_path / "impatient.py").write_text(plugin)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "impatient",
        "--nbval",
        path,
        "--nbval-budgets",
        tmp_path,
    ]
    paths = os.pathsep.join([str(PACKAGE_ROOT), str(tmp_path)])
    answer = subprocess.run(
        command, cwd=PACKAGE_ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert "1 failed, 1 passed" in answer.stdout, answer.stdout + answer.stderr
    assert "this cell took" in answer.stdout and "Cell 1" in answer.stdout


def test_the_command_names_a_notebook_that_is_not_there(capsys):
    assert budgets.main(["nowhere.ipynb"]) == 1
    assert "no notebook 'nowhere.ipynb'" in capsys.readouterr().err
