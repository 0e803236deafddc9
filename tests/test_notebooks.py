"""Guards over the notebooks: executed, clean, described, and linked to things that exist."""

import re
from pathlib import Path

import nbformat
import pytest

from tt_lib.files import PACKAGE_ROOT
from tt_lib.links import colab_badge

PATHS = sorted((PACKAGE_ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|home|tmp)[/\w]")


@pytest.fixture(params=PATHS, ids=lambda path: path.name)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(book):
    return [(cell, output) for cell in code(book) for output in cell.outputs]


def test_there_is_a_first_notebook():
    assert PATHS and PATHS[0].name == "00_start_here.ipynb"


def test_stored_executed_from_top_to_bottom(notebook):
    _, book = notebook
    cells = code(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_no_stored_error_or_warning(notebook):
    _, book = notebook
    for _, output in outputs(book):
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output


def test_no_widget_without_state(notebook):
    _, book = notebook
    assert "widgets" not in book.metadata or "state" in next(iter(book.metadata.widgets.values()))


def test_every_picture_has_alt_text(notebook):
    _, book = notebook
    pictures = [output for _, output in outputs(book) if "image/png" in output.get("data", {})]
    assert pictures
    for output in pictures:
        assert len(output.metadata["image/png"]["alt"]) > 20


def test_begins_with_badge_and_what_it_teaches_needs_and_takes(notebook):
    path, book = notebook
    top = book.cells[0].source
    assert colab_badge(path.name) in top
    for heading in ("**What it teaches.**", "**What it needs.**", "**How long it takes.**"):
        assert heading in top


def test_install_cell_is_guarded_and_pins_nothing(notebook):
    _, book = notebook
    first = code(book)[0].source
    assert 'find_spec("tt_lib") is None' in first
    assert not re.search(r"==\d|torch[<>=]", first)


def test_names_no_path_of_a_machine(notebook):
    path, _ = notebook
    assert not MACHINE_PATH.findall(path.read_text(encoding="utf-8"))


def test_relative_links_lead_somewhere(notebook):
    path, book = notebook
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", cell.source):
                assert (path.parent / Path(target)).exists(), target
