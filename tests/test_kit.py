"""What the notebooks are written with."""

import pytest

from tt_lib.errors import BadValue
from tt_lib.lessons import check, fact, prose, scale, scaled


def test_scale_picks_sizes(monkeypatch):
    monkeypatch.delenv("TT_SCALE", raising=False)
    assert scale() == "ci" and scaled(1, 2, 3) == 1
    for name, size in (("laptop", 2), ("full", 3)):
        monkeypatch.setenv("TT_SCALE", name)
        assert scaled(1, 2, 3) == size
    monkeypatch.setenv("TT_SCALE", "huge")
    with pytest.raises(BadValue, match=r"TT_SCALE.*huge.*ci"):
        scaled(1, 2, 3)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fd.csv").write_text(
        "solver,nfe,value,what\nddim,5,17.5432,a long name\nddim,10,8.0,another\n"
    )
    monkeypatch.setenv("TT_DATA", str(tmp_path))


def test_a_fact_is_a_rows_number(rows):
    assert fact("fd", solver="ddim", nfe=5) == "17.54"
    assert fact("fd", "nfe", 0, what="long") == "5"


@pytest.mark.parametrize(
    "file, where, message",
    [
        ("df", {}, "no rows 'df'; choose one of fd"),
        ("fd", {"order": 1}, "no column 'order'"),
        ("fd", {"solver": "ddim"}, "2 rows of fd.csv fit solver='ddim'"),
        ("fd", {"nfe": 7}, "0 rows.*measure the row first"),
    ],
)
def test_a_fact_that_no_single_row_holds_is_an_error(rows, file, where, message):
    with pytest.raises(BadValue, match=message):
        fact(file, **where)


def test_prose_is_markdown_and_text(capsys):
    prose("Ten steps give **8.07**.")
    assert "Ten steps give **8.07**." in capsys.readouterr().out


def test_checks_say_how_it_went(capsys):
    def wrong():
        raise AssertionError("the sign is wrong")

    def unsolved():
        raise NotImplementedError("your code here")

    for name, test in {"one": lambda: None, "two": wrong, "three": unsolved, "four": lambda: 1 / 0}.items():
        assert check(name, test) is None, "a notebook shows what the last line of a cell gives"
    said = capsys.readouterr().out
    for words in (
        "one: well done",
        "two: not yet. the sign is wrong",
        "three: not written yet",
        "four: stopped with ZeroDivisionError",
    ):
        assert words in said
