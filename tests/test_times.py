"""Notebooks are run and stored, the seconds of their cells kept; what they take is a sentence."""

import nbformat
import pytest
import times
from books import INSTALL_MARK, read, write

SLEEP = "import os, time; time.sleep(0.6); print(os.environ['TT_SCALE'])"


def make(folder, *sources):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell("# 01 A"), *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(book, folder / "01_a.ipynb")
    return folder / "01_a.ipynb"


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


def test_what_was_measured_is_a_sentence(tmp_path):
    path = make(tmp_path, "x = 1\n" * 30, f"{INSTALL_MARK}\n" * 100)
    times.save({"01_a.ipynb": [20.0, 12.0]}, tmp_path)
    book = read(path)
    book.cells[0].source = "word " * 900
    book.cells[1].outputs = [nbformat.v4.new_output("display_data", data={"image/png": ""})] * 6
    assert times.reading(book) == 15, "6 minutes of words, 2 of code and 3 of figures, to the next five"
    write(path, book)
    assert times.measured(path) == "About 15 minutes to read. Its cells run in 30 s on 2 CPU cores."


@pytest.mark.parametrize("words", [("huge",), ("notebooks/00_start_here.ipynb", "nowhere.ipynb")])
def test_the_command_names_what_is_wrong(words, capsys):
    assert times.main(list(words)) == 1
    assert f"no notebook {words[-1]!r}; usage: " in capsys.readouterr().err
