"""The pages and the list of files say what the rows and the files say, and nothing else."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from test_compare import direction_rows, fd_rows

from tt_lib.errors import CorruptFile
from tt_lib.figures.results import fd_against_nfe
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import DIRECTION_COLUMNS, FD_COLUMNS, read_rows
from tt_lib.study.page import (
    END_MARK,
    FIGURE,
    MARK,
    insert_block,
    main_table,
    manifest,
    results_block,
    results_page,
    write_report,
)

DATA = PACKAGE_ROOT / "data"
TWO = (
    ("ddim", "uniform", 5, "untuned", 10.0, 9.9, 10.1),
    ("ddim", "uniform", 5, "consistency-parallel", 7.5, 7.3, 7.7),
)
CEILING = ("ddim", "uniform", 200, "untuned", 4.0, 3.9, 4.1)
FLOOR = ("floor", "", 0, "floor", 0.2667, 0.2167, 0.3167)
STUDY = (
    ("ddim", "uniform", 5, "untuned", 17.54),
    ("ddim", "uniform", 5, "consistency-parallel", 14.7),
    ("ddim", "uniform", 5, "truncation-parallel", 15.7),
    ("ddim", "uniform", 5, "truncation-parallel,seed=1", 14.5),
    ("ddim", "uniform", 5, "constant-0.95", 14.4),
    ("dpmpp-2m", "uniform", 5, "untuned", 6.58),
    ("dpmpp-2m", "uniform", 5, "consistency-parallel", 48.36),
    ("ddim", "uniform", 20, "untuned", 5.3),
    ("ddim", "uniform", 20, "truncation-parallel", 5.35),
    ("heun", "uniform", 5, "truncation-parallel", 9.0),
    ("ddim", "uniform-trailing", 5, "untuned", 17.0),
)


def cells(text: str) -> list[list[str]]:
    """The lines of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_what_is_committed_is_what_the_rows_and_files_give():
    folder = DATA / "results"
    frame, directions = read_rows(folder / "fd.csv", FD_COLUMNS), read_rows(folder / "direction.csv", DIRECTION_COLUMNS)
    assert set(frame["model"]) == {"cifar10-ddpm-w96", "test images"}, "the shipped network, or the floor"
    assert ((frame["model"] == "test images") == (frame["solver"] == "floor")).all()
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == results_page(frame, directions), "run `tt card` and commit"
    readme = (PACKAGE_ROOT / "README.md").read_text(encoding="utf-8")
    assert insert_block(readme, results_block(frame)) == readme, "run `tt card` and commit"
    assert (DATA / "MANIFEST.csv").read_text(encoding="utf-8") == manifest(DATA), "run `tt card` and commit"
    assert (PACKAGE_ROOT / FIGURE).is_file() and len(page.split()) <= 5_000
    linked = set(re.findall(r"\]\(#([\w-]+)\)", page))
    assert linked == {line[3:].lower().replace(" ", "-") for line in page.splitlines() if line.startswith("## ")}


@pytest.mark.parametrize(
    ("tuned", "value", "gain"),
    [
        ((7.5, 7.3, 7.7), "7.50 ± 0.20", "25 %"),
        ((11, 10.9, 11.1), "11.00 ± 0.10", "−10 %"),
        ((9.85, 9.7, 10), "", "none seen"),
    ],
    ids=["gain", "loss", "overlap"],
)
def test_the_main_table(tuned, value, gain):
    [_, line] = cells(main_table(fd_rows(TWO[0], (*TWO[1][:4], *tuned), CEILING)))
    best = f"{value or '9.85 ± 0.15'} consistency-parallel"
    assert line == ["ddim, uniform", "5", "10.00 ± 0.10", best, gain, "", "", ""], "and no line for a ceiling"


def test_the_main_table_is_of_tuned_deterministic_samplers():
    others = [
        ("ddim", "uniform", 5, "epsilon-1.005", 6.0),
        ("ddim", "uniform", 5, "constant-0.97", 6.5),
        ("ddpm", "uniform", 5, "untuned", 6.0),
        ("ddpm", "uniform", 5, "consistency-parallel", 5.0),
        ("heun", "uniform", 5, "untuned", 5.0),
    ]
    assert main_table(fd_rows(*TWO, *others)) == main_table(fd_rows(*TWO))
    second = fd_rows(*TWO, features="cifar10-simclr")
    second[["value", "low", "high"]] /= 20
    [_, line] = cells(main_table(pd.concat([fd_rows(*TWO), second, fd_rows(*TWO, n=10_000)])))
    assert line[5:] == ["0.500 ± 0.005", "0.375 ± 0.010 consistency-parallel", "25 %"], "side by side, on its own scale"


def test_the_page():
    parts = [fd_rows(*TWO, CEILING), fd_rows(FLOOR, model="test images"), fd_rows(*STUDY, n=10_000)]
    frame = pd.concat(parts, ignore_index=True)
    errors = [*direction_rows("untuned", (0.3, 0.2), n=256), *direction_rows("consistency-parallel", (0.2, 0.1), n=256)]
    page = results_page(frame, pd.DataFrame(errors))
    assert "- ceiling, ddim, uniform, 200 evaluations untuned: 4.00 ± 0.10 (`cifar10-resnet`)" in page
    assert "- floor, 50,000 test images: 0.267 ± 0.050 (`cifar10-resnet`)" in page
    sections = {part.split("\n")[0]: cells(part) for part in re.split(r"^## ", page, flags=re.M)[1:]}
    assert sections["Every solver"] == [
        ["solver", "5", "20"],
        ["ddim", "17.54 → 14.70 c", "**5.30** → 5.35 t"],
        ["dpmpp-2m", "**6.58** → 48.36 c", ""],
    ], "without options, without baselines, and no sampler without its untuned row"
    assert sections["Ablations"][:3] == [
        ["timing", "cifar10-resnet, NFE 5"],
        ["untuned", "17.54"],
        ["consistency-parallel", "14.70"],
    ]
    assert sections["Ablations"][-2:] == [
        ["truncation-parallel,seed=1", "14.50"],
        ["half of the interval, median", "0.1"],
    ]
    assert ["constant-0.95", "**14.40**"] in sections["Ablations"]
    assert sections["Direction errors"][1:] == [
        ["ddim, 5", "untuned", "1.50°", "0.0000", "0.2000", "10.00", ""],
        ["ddim, 5", "consistency-parallel", "1.50°", "0.0000", "0.1000", "7.50", ""],
    ]
    learned = ("learned-timing", "uniform"), ("learned-gain", "uniform"), ("learned-grid-timing", "learned")
    more = [
        fd_rows(*(("ddim", grid, nfe, name, 1.0) for nfe in (5, 20)), n=n)
        for name, grid in learned
        for n in (50_000, 10_000)
    ]
    more_errors = [row for name, _ in learned[:2] for row in direction_rows(name, (0.01, 0.01), n=256)]
    assert results_page(pd.concat([frame, *more]), pd.DataFrame([*errors, *more_errors])) == page, (
        "of tuned timings alone"
    )
    assert results_block(pd.concat([frame, *more])) == results_block(frame)
    changed = frame.assign(value=frame["value"].replace(14.7, 13.37))
    assert "13.37" in results_page(changed, pd.DataFrame(errors)) and "13.37" not in page


@pytest.mark.filterwarnings("ignore:An input array is constant", "ignore:All-NaN slice")
def test_rank_correlations_stand_below_the_errors():
    samplers = [("ddim", "uniform", nfe, "untuned", 10.0 / nfe) for nfe in range(2, 8)]
    errors = [row for name in samplers for row in direction_rows("untuned", (1 / name[2],), n=256, nfe=name[2])]
    page = results_page(pd.concat([fd_rows(*samplers), fd_rows(*STUDY, n=10_000)]), pd.DataFrame(errors))
    assert (
        "Rank correlation of the accumulated error with the distance: in `cifar10-resnet` 1.00 (1.00 to 1.00) among all"
        in page
    )


def test_the_report(tmp_path, monkeypatch):
    """One NFE makes no curve, and the ceiling is a line."""
    drawn = []
    monkeypatch.setattr(
        "tt_lib.figures.results.fd_against_nfe", lambda frame: drawn.append(frame) or fd_against_nfe(frame)
    )
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    ten, heun = ("ddim", "uniform", 10, "untuned", 8.0), ("heun", "uniform", 5, "untuned", 9.0)
    frame = fd_rows(*TWO, ten, heun, CEILING)
    with pytest.raises(CorruptFile, match="lacks the markers"):
        write_report(tmp_path, frame)
    (tmp_path / "README.md").write_text(f"before {MARK}old{END_MARK} after", encoding="utf-8")
    write_report(tmp_path, frame)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("before ") and page.endswith(" after") and "old" not in page and "25 %" in page
    assert (tmp_path / FIGURE).stat().st_size > 1000
    assert drawn[-1][["solver", "timing", "nfe"]].to_numpy().tolist() == [
        ["ddim", "untuned", 5],
        ["ddim", "consistency-parallel", 5],
        ["ddim", "untuned", 10],
        ["", "ceiling", 200],
    ]


def test_every_shipped_file_names_the_command_that_made_it(tmp_path):
    files = pd.read_csv(DATA / "MANIFEST.csv")
    assert files["command"].str.startswith(("tt ", "torchrun ")).all() and not files["path"].duplicated().any()
    assert files.loc[files["path"].str.startswith("pretrained/"), "bytes"].max() <= 45e6, "small enough for a clone"
    assert manifest(tmp_path) == "path,bytes,sha256,command\n", "a folder that is not there yet is no error"
    (tmp_path / "gamma").mkdir()
    (tmp_path / "gamma" / "a.json").write_text("{}")
    assert manifest(tmp_path).splitlines()[1].startswith("gamma/a.json,2,") and manifest(tmp_path).endswith(",\n")
