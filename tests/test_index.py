"""The index of the notebooks, their badges, install cells and times are what metadata, one address and rows give."""

import index
import nbformat
import pytest
import times
from index import colab_badge, install_cell

from tt_lib.errors import BadValue

CELLS = {"00_a.ipynb": [1.0, 24.0], "01_b.ipynb": [130.0]}


def put(path, **tt):
    book = nbformat.v4.new_notebook(metadata={"tt": tt})
    top = f"# A\n\n{colab_badge('elsewhere.ipynb')}\n\n{index.TIME} Long.\nMore."
    book.cells = [nbformat.v4.new_markdown_cell(top), nbformat.v4.new_code_cell(f"{index.INSTALL_MARK}: pass")]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path / "data"))
    folder = tmp_path / "notebooks"
    put(folder / "00_a.ipynb", title="First", teaches="One thing.", needs=[])
    put(folder / "01_b.ipynb", title="Second", teaches="Another.", needs=["00"])
    put(folder / "exercises" / "01_b.ipynb")
    put(folder / "exercises" / "01_b_solutions.ipynb")
    times.save(CELLS, folder)
    (tmp_path / "README.md").write_text(f"before\n{index.BEGIN}\nold\n{index.END}\nafter\n", encoding="utf-8")
    return folder


def test_page_and_table_say_what_each_notebook_is(folder):
    page = index.page(folder)
    for words in (
        "## [01 Second](01_b.ipynb)\n\n" + colab_badge("01_b.ipynb") + "\n\nAnother.\n",
        "- Needs: [00](00_a.ipynb)\n- Time: About 5 minutes to read. Its cells run in 2 min on 2 CPU cores.\n",
        "- Practice: [exercises](exercises/01_b.ipynb), [solutions](exercises/01_b_solutions.ipynb)",
        "- Needs: nothing before it\n- Time: About 5 minutes to read. Its cells run in 20 s on 2 CPU cores.\n",
    ):
        assert words in page
    links = "[exercises](notebooks/exercises/01_b.ipynb), [solutions](notebooks/exercises/01_b_solutions.ipynb)"
    row = f"- [01 Second](notebooks/01_b.ipynb): {links}"
    readme = index.with_block((folder.parent / "README.md").read_text(), index.block(folder))
    assert readme.splitlines()[-5:] == ["- [00 First](notebooks/00_a.ipynb)", row, "", index.END, "after"]


def test_tops_of_notebooks_are_written_from_one_address_and_the_budgets(folder, monkeypatch):
    names = ["00_a.ipynb", "01_b.ipynb", "01_b.ipynb", "01_b_solutions.ipynb", "README.md", "README.md"]
    assert [path.name for path, _ in index.stale(folder)] == names
    for path, content in index.stale(folder):
        path.write_text(content, encoding="utf-8")
    assert index.stale(folder) == []
    lesson, exercise = (nbformat.read(folder / name, 4).cells for name in ("00_a.ipynb", "exercises/01_b.ipynb"))
    assert colab_badge("exercises/01_b.ipynb") in exercise[0].source and exercise[1].source == install_cell()
    assert lesson[0].source.endswith(
        f"\n\n{index.TIME} About 5 minutes to read. Its cells run in 20 s on 2 CPU cores. <!-- constant -->\nMore."
    )
    assert exercise[0].source.endswith(f"{index.TIME} Long.\nMore."), "an exercise takes as long as its reader"
    monkeypatch.setattr(index, "REPOSITORY", "some/where")
    files = {path.relative_to(folder.parent).as_posix(): content for path, content in index.stale(folder)}
    assert len(files) == 5  # four notebooks and their index; the project's README names files only
    assert all("some/where" in content and "timetuner-lessons" not in content for content in files.values())


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
