"""What larger scales take is measured, kept as rows, and told in a lesson's first cell."""

import os
import subprocess
import sys

import nbformat
import pytest
import times

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, read_rows, write_rows

FIRST = "# A\n\n**How long it takes.** A minute,\nor less.\n\nMore."


def lesson(source="import os, time; time.sleep(0.2); assert os.environ['TT_SCALE'] == 'laptop'"):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell(FIRST), nbformat.v4.new_code_cell(source)]
    return book


def row(name, scale, seconds, device):
    return dict.fromkeys(SPEED_COLUMNS, "") | {
        "what": times.label(name, scale),
        "ours": seconds,
        "unit": "s",
        "device": device,
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    return tmp_path / "results" / "speed.csv"


def test_a_lesson_is_run_at_a_scale_and_has_a_row(tmp_path, results):
    path = tmp_path / "01_a.ipynb"
    nbformat.write(lesson(), path)
    before = path.read_bytes()
    times.measure([path], "laptop", results)
    found = read_rows(results, SPEED_COLUMNS)
    assert list(found["what"]) == ["notebook 01_a, TT_SCALE=laptop"] and float(found["ours"][0]) >= 0.2
    assert found["command"][0] == "python notebooks/tools/times.py laptop" and path.read_bytes() == before
    with pytest.raises(BadValue, match="ends in an error"):
        times.measure([path], "ci", results)
    with pytest.raises(BadValue, match="TT_SCALE"):
        times.measure([path], "huge", results)


def test_what_was_measured_is_told_behind_how_long_it_takes(results):
    book = lesson()
    assert times.told("01_a") == "" and not times.set_times(book, "01_a")
    measured = [
        row("01_a", "full", 31.4, "NVIDIA H100 80GB HBM3"),
        row("01_a", "laptop", 250.0, "cpu (2 threads)"),
        row("02_b", "full", 9.0, "cpu (2 threads)"),
    ]
    write_rows(results, measured, SPEED_COLUMNS, SPEED_KEY)
    said = "`TT_SCALE=laptop` took 4 min on 2 CPU cores, `TT_SCALE=full` took 31 s on a machine with an NVIDIA H100 80GB HBM3."
    assert times.told("01_a") == said
    for changed in (True, False):
        assert times.set_times(book, "01_a") == changed
        assert (
            book.cells[0].source
            == f"# A\n\n**How long it takes.** A minute,\nor less.\n\n{times.HEADING} {said} <!-- constant -->\n\nMore."
        )
    results.unlink()
    assert times.set_times(book, "01_a") and book.cells[0].source == FIRST


@pytest.mark.parametrize(
    "words, error", [(("huge",), "no notebook 'huge'"), (("laptop", "nowhere.ipynb"), "no notebook 'nowhere.ipynb'")]
)
def test_the_command_names_what_is_wrong(words, error):
    done = subprocess.run(
        [sys.executable, "notebooks/tools/times.py", *words],
        capture_output=True,
        text=True,
        cwd=PACKAGE_ROOT,
        env=os.environ,
    )
    assert done.returncode == 1 and error in done.stderr
