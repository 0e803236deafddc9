"""The README's results come from the rows, all of them and nothing else."""

import pandas as pd
import pytest

from tt_lib.errors import CorruptFile
from tt_lib.figures.results import fd_against_nfe
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.page import (
    BEGIN,
    END,
    FIGURE,
    both_table,
    insert_block,
    results_block,
    results_table,
    write_report,
)


def shipped() -> pd.DataFrame:
    return read_rows(PACKAGE_ROOT / "data/results/fd.csv", FD_COLUMNS)


def rows(*cells) -> pd.DataFrame:
    base = dict.fromkeys(FD_COLUMNS, "") | {
        "dataset": "cifar10",
        "model": "cifar10-ddpm-w64",
        "eta": 0.0,
        "metric": "FD (cifar10-resnet)",
        "features": "cifar10-resnet",
        "reference": "train",
        "n": 50_000,
    }
    names = ("solver", "grid", "nfe", "timing", "value", "low", "high")
    return pd.DataFrame([base | dict(zip(names, cell, strict=True)) for cell in cells])


TWO = (
    ("ddim", "uniform", 5, "untuned", 10.0, 9.9, 10.1),
    ("ddim", "uniform", 5, "consistency-parallel", 7.5, 7.3, 7.7),
)


def test_readme_shows_the_rows():
    page = (PACKAGE_ROOT / "README.md").read_text(encoding="utf-8")
    assert insert_block(page, results_block(shipped())) == page, "run `tt card` and commit README.md"
    assert (PACKAGE_ROOT / FIGURE).is_file()


def test_every_shipped_row_is_of_the_shipped_network_or_the_floor():
    frame = shipped()
    assert set(frame["model"]) == {"cifar10-ddpm-w64", "test images"}
    assert ((frame["model"] == "test images") == (frame["solver"] == "floor")).all()


def test_a_table_is_of_one_kind_of_features():
    """Samplers have a row in each, on a scale of its own."""
    floor = ("floor", "", 0, "floor", 1.5, 1.4, 1.6)
    first = rows(*TWO, floor)
    first.loc[2, "model"] = "test images"
    second = first.assign(features="cifar10-simclr", metric="FD (cifar10-simclr)")
    second[["value", "low", "high"]] /= 10
    both = pd.concat([first, second], ignore_index=True)
    assert results_table(both) == results_table(first) and "The floor, 50,000 test images: 1.50" in results_table(first)
    other = results_table(both, "cifar10-simclr")
    assert "| ddim, uniform | 5 | 1.00 ± 0.01 | **0.75 ± 0.02** | 25 % |  |" in other and other.count("The floor") == 1


def test_gains_in_both_features_stand_side_by_side():
    large = rows(*TWO)
    small = [
        large.assign(n=10_000, features=name, metric=f"FD ({name})") for name in ("cifar10-resnet", "cifar10-simclr")
    ]
    small[1].loc[1, ["value", "low", "high"]] = 10.12, 9.95, 10.2
    extra = small[0].iloc[[1]].assign(timing="truncation-parallel,seed=3")  # not in the README's table
    frame = pd.concat([large, *small, extra], ignore_index=True)
    assert (
        both_table(frame)
        == "| sampler | NFE | n | consistency-parallel |\n| --- | ---: | ---: | ---: |\n| ddim, uniform | 5 | 10,000 | 25 / ~−1 |\n"
    )
    assert both_table(frame) in results_block(frame)
    assert both_table(large) == "" and "Per cent" not in results_block(large)
    more = large.assign(features="cifar10-simclr", metric="FD (cifar10-simclr)")
    more.loc[1, ["value", "low", "high"]] = 6.0, 5.9, 6.1
    assert both_table(pd.concat([frame, more])).endswith("| ddim, uniform | 5 | 50,000 | 25 / 40 |\n"), (
        "more samples, where both have them"
    )


def test_what_is_not_tuned_and_what_draws_noise_have_tables_of_their_own(tmp_path):
    others = [
        ("ddim", "uniform", 5, "epsilon-1.005", 6.0, 5.9, 6.1),
        ("ddim", "uniform", 5, "constant-0.97", 6.5, 6.4, 6.6),
        ("ddpm", "uniform", 5, "untuned", 6.0, 5.9, 6.1),
    ]
    assert results_table(rows(*TWO, *others)) == results_table(rows(*TWO))
    ending = ("unipc,final=lower", "uniform", 5, "untuned", 5.8, 5.7, 5.9)
    assert "| unipc,final=lower, uniform | 5 | **5.80 ± 0.10** |" in results_table(rows(*TWO, ending))


def test_one_budget_makes_no_curve(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}")
    drawn = []
    monkeypatch.setattr(
        "tt_lib.figures.results.fd_against_nfe", lambda frame: drawn.append(frame) or fd_against_nfe(frame)
    )
    ten, heun = ("ddim", "uniform", 10, "untuned", 8.0, 7.9, 8.1), ("heun", "uniform", 5, "untuned", 9.0, 8.9, 9.1)
    write_report(tmp_path, rows(*TWO, ten, heun, ("ddim", "uniform", 200, "untuned", 4.0, 3.9, 4.1)))
    assert drawn[0][["solver", "timing", "nfe"]].to_numpy().tolist() == [
        ["ddim", "untuned", 5],
        ["ddim", "consistency-parallel", 5],
        ["ddim", "untuned", 10],
        ["", "ceiling", 200],
    ]
    assert "heun" in (tmp_path / "README.md").read_text()


def test_table_marks_the_best_and_gives_the_gain():
    table = results_table(rows(*TWO))
    assert "| ddim, uniform | 5 | 10.00 ± 0.10 | **7.50 ± 0.20** | 25 % |  |" in table


def test_table_says_so_where_tuning_harms():
    worse = ("ddim", "uniform", 5, "consistency-parallel", 11.0, 10.9, 11.1)
    assert "| **10.00 ± 0.10** | 11.00 ± 0.10 | -10 % |  |" in results_table(rows(TWO[0], worse))


def test_table_claims_no_gain_within_the_intervals():
    same = ("ddim", "uniform", 5, "consistency-parallel", 9.85, 9.7, 10.0)
    assert "| **9.85 ± 0.15** | none seen |  |" in results_table(rows(TWO[0], same))


def test_table_says_how_much_of_the_gap_is_closed():
    ceiling = ("ddim", "uniform", 200, "untuned", 5.0, 4.9, 5.1)
    assert "| 25 % | 50 % |" in results_table(rows(*TWO, ceiling))
    worse = ("ddim", "uniform", 5, "consistency-parallel", 11.0, 10.9, 11.1)
    assert "| -10 % |  |" in results_table(rows(TWO[0], worse, ceiling))


def test_ceiling_stands_below_the_table():
    table = results_table(rows(*TWO, ("ddim", "uniform", 200, "untuned", 4.0, 3.9, 4.1)))
    assert "ceiling with ddim, uniform, 200 steps, untuned: 4.00 ± 0.10." in table and "| 200 |" not in table


def test_write_report_needs_the_markers(tmp_path):
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(CorruptFile, match="lacks the markers"):
        write_report(tmp_path, rows(*TWO))


def test_write_report_writes_page_and_figure(tmp_path):
    (tmp_path / "README.md").write_text(f"before {BEGIN}old{END} after", encoding="utf-8")
    frame = rows(*TWO, ("ddim", "uniform", 200, "untuned", 4.0, 3.9, 4.1))
    write_report(tmp_path, frame)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("before ") and page.endswith(" after") and "old" not in page and "25 %" in page
    assert (tmp_path / FIGURE).stat().st_size > 1000
