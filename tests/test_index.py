"""The index of the notebooks, their badges and install cells are what metadata and one address give."""

import index
import index as links
import nbformat
import pytest
from index import colab_badge, install_cell

from tt_lib.errors import BadValue


def put(path, **tt):
    book = nbformat.v4.new_notebook(metadata={"tt": tt})
    book.cells = [
        nbformat.v4.new_markdown_cell(f"# A\n\n{colab_badge('elsewhere.ipynb')}"),
        nbformat.v4.new_code_cell(install_cell()),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notebooks"
    put(folder / "00_a.ipynb", title="First", teaches="One thing.", needs=[], minutes_cpu=0.4, number="00")
    put(folder / "01_b.ipynb", title="Second", teaches="Another.", needs=["00"], minutes_cpu=2.2, number="01")
    put(folder / "exercises" / "01_b.ipynb")
    put(folder / "exercises" / "01_b_solutions.ipynb")
    (tmp_path / "README.md").write_text(f"before\n{index.BEGIN}\nold\n{index.END}\nafter\n", encoding="utf-8")
    return folder


def test_page_and_table_say_what_each_notebook_is(folder):
    page = index.page(folder)
    for words in (
        "## [01 Second](01_b.ipynb)",
        "Another.",
        "- Needs: [00](00_a.ipynb)",
        "- Time: 2 min",
        colab_badge("01_b.ipynb"),
        "[exercises](exercises/01_b.ipynb), [solutions](exercises/01_b_solutions.ipynb)",
        "under 1 min",
        "nothing before it",
    ):
        assert words in page
    row = "| [01 Second](notebooks/01_b.ipynb) | Another. | 2 min | [exercises](notebooks/exercises/01_b.ipynb), [solutions](notebooks/exercises/01_b_solutions.ipynb) |"
    assert index.with_block((folder.parent / "README.md").read_text(), index.block(folder)).splitlines()[-3:] == [
        row,
        index.END,
        "after",
    ]


def test_addresses_are_written_into_the_notebooks_from_one_variable(folder, monkeypatch):
    assert [path.name for path, _ in index.stale(folder)] == ["00_a.ipynb", "01_b.ipynb"] + [
        "01_b.ipynb",
        "01_b_solutions.ipynb",
    ] + ["README.md"] * 2
    for path, content in index.stale(folder):
        path.write_text(content, encoding="utf-8")
    assert index.stale(folder) == []
    assert colab_badge("exercises/01_b.ipynb") in nbformat.read(folder / "exercises" / "01_b.ipynb", 4).cells[0].source
    monkeypatch.setattr(links, "REPOSITORY", "some/where")
    found = {path.relative_to(folder.parent).as_posix(): content for path, content in index.stale(folder)}
    assert len(found) == 5  # four notebooks and their index; the project's README names files only
    assert all("some/where" in content and "timetuner-lessons" not in content for content in found.values())


def test_what_is_missing_is_named(folder):
    put(folder / "02_c.ipynb", title="Third")
    with pytest.raises(BadValue, match=r"02_c\.ipynb has no metadata tt\.teaches"):
        index.page(folder)
    with pytest.raises(BadValue, match="put in two lines"):
        index.with_block("no marks", "")


def test_the_stored_index_badges_and_install_cells_are_up_to_date(capsys):
    assert [str(path) for path, _ in index.stale()] == []
    assert index.main(["--check"]) == 0 and index.main(["--chekc"]) == 2
    assert "usage" in capsys.readouterr().err
