"""Notebooks are run and stored, the seconds of their cells kept; larger scales give rows."""

import nbformat
import pytest
import times
from books import read, write

from tt_lib.errors import BadValue
from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, read_rows, write_rows

SLEEP = "import os, time; time.sleep(0.6); print(os.environ['TT_SCALE'])"


def make(folder, *sources):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell("# 01 A"), *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(book, folder / "01_a.ipynb")
    return folder / "01_a.ipynb"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    return tmp_path / "results" / "speed.csv"


def test_a_run_is_stored_with_the_seconds_of_each_code_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = make(tmp_path, "import sys", "", SLEEP)
    times.save({"00_gone.ipynb": [1.0]}, tmp_path)
    times.measure_cells([path], tmp_path)
    ((name, (first, second)),) = times.load(tmp_path).items()
    assert name == "01_a.ipynb" and first < second and second >= 0.6
    cells = nbformat.read(path, as_version=4).cells[1:]
    assert [cell.execution_count for cell in cells] == [1, None, 2] and not any(cell.metadata for cell in cells)
    assert cells[2].outputs[0].text == "ci\n"


def test_a_notebook_may_be_stored_as_it_is_at_a_larger_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = make(tmp_path, "import os; print(os.environ['TT_SCALE'])")
    book = read(path)
    book.metadata["tt"] = {"stored": "laptop"}
    write(path, book)
    times.measure_cells([path], tmp_path)
    (cell,) = read(path).cells[1:]
    assert cell.outputs[0].text == "laptop\n" and cell.execution_count == 1 and not cell.metadata
    assert len(times.load(tmp_path)["01_a.ipynb"]) == 1


def test_a_lesson_is_run_at_a_larger_scale_and_has_a_row(tmp_path, results):
    path = make(tmp_path, SLEEP)
    before = path.read_bytes()
    times.measure_scale([path], "laptop", results)
    rows = read_rows(results, SPEED_COLUMNS)
    assert list(rows["what"]) == ["notebook 01_a, TT_SCALE=laptop"] and float(rows["ours"][0]) >= 0.6
    assert rows["command"][0] == "python notebooks/tools/times.py laptop" and path.read_bytes() == before
    with pytest.raises(BadValue, match="ends in an error"):
        times.measure_scale([make(tmp_path, "1 / 0")], "laptop", results)


def test_what_was_measured_is_a_sentence(tmp_path, results):
    path = make(tmp_path, SLEEP)
    times.save({"01_a.ipynb": [20.0, 12.0]}, tmp_path)
    seconds = {"full": (31.4, "NVIDIA H100 80GB HBM3"), "laptop": (250.0, "cpu (2 threads)")}
    rows = [
        dict.fromkeys(SPEED_COLUMNS, "")
        | {"what": times.label("01_a", scale), "ours": ours, "unit": "s", "device": device}
        for scale, (ours, device) in seconds.items()
    ]
    write_rows(results, [*rows, rows[0] | {"what": times.label("02_b", "full")}], SPEED_COLUMNS, SPEED_KEY)
    assert times.measured(path) == (
        "`TT_SCALE=ci` 30 s on 2 CPU cores, `TT_SCALE=laptop` 4 min on 2 CPU cores, "
        "`TT_SCALE=full` 30 s on a machine with an NVIDIA H100 80GB HBM3."
    )
    results.unlink()
    assert times.measured(path) == "`TT_SCALE=ci` 30 s on 2 CPU cores."
    book = read(path)
    book.metadata["tt"] = {"minutes": 25}
    write(path, book)
    assert times.measured(path) == "About 25 minutes to read. Its cells run in 30 s on 2 CPU cores."


@pytest.mark.parametrize("words", [("huge",), ("laptop", "nowhere.ipynb")])
def test_the_command_names_what_is_wrong(words, capsys):
    assert times.main(list(words)) == 1
    assert f"no notebook {words[-1]!r}; usage: " in capsys.readouterr().err
