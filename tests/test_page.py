"""The page of results says what the rows say, and nothing else."""

import re

import pandas as pd
import pytest
from test_report import rows

from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import CORRELATION_COLUMNS, DIRECTION_COLUMNS, FD_COLUMNS, read_rows
from tt_lib.study.compare import (
    BETTER,
    CONSTANT,
    CORRECTED,
    JOINT_SEARCH,
    PLAIN,
    SAME,
    WORSE,
    base_name,
    changes,
    family,
)
from tt_lib.study.page import rank_correlations, rank_table, results_page

NONE = tuple(pd.DataFrame(columns=columns) for columns in (CORRELATION_COLUMNS, DIRECTION_COLUMNS))
FLOOR = ("floor", "", 0, "floor", 0.2667, 0.2, 0.3)


def study(*cells, n=10_000, features="cifar10-resnet") -> pd.DataFrame:
    frame = rows(*cells).assign(n=n, features=features, metric=f"FD ({features})")
    frame.loc[frame["solver"] == "floor", "model"] = "test images"
    return frame


SOLVERS = (
    ("ddim", "uniform", 5, "untuned", 17.54, 17.4, 17.7),
    ("ddim", "uniform", 5, "consistency-parallel", 14.7, 14.6, 14.8),
    ("ddim", "uniform", 5, "truncation-parallel", 15.7, 15.6, 15.8),
    ("dpmpp-2m", "uniform", 5, "untuned", 6.58, 6.5, 6.6),
    ("dpmpp-2m", "uniform", 5, "consistency-parallel", 48.36, 48.0, 48.7),
    ("ddim", "uniform", 20, "untuned", 5.3, 5.2, 5.4),
    ("ddim", "uniform", 20, "truncation-parallel", 5.35, 5.3, 5.45),
    FLOOR,
)
ASKED = (
    ("ddim", "uniform", 5, "untuned", 17.54, 17.4, 17.7),
    ("ddim", "uniform", 5, "truncation-parallel", 15.7, 15.6, 15.8),
    ("ddim", "uniform", 5, "truncation-parallel,seed=1", 15.5, 15.4, 15.6),
    ("ddim", "uniform", 5, "truncation-parallel,seed=2", 15.9, 15.8, 16.0),
    ("ddim", "uniform", 5, "constant-0.95", 16.0, 15.9, 16.1),
    ("ddim", "uniform", 5, "epsilon-1.01", 17.0, 16.9, 17.1),
)


def test_page_in_the_repository_is_what_the_rows_give():
    folder = PACKAGE_ROOT / "data/results"
    tables = {"fd.csv": FD_COLUMNS, "correlation.csv": CORRELATION_COLUMNS, "direction.csv": DIRECTION_COLUMNS}
    parts = [read_rows(folder / name, columns) for name, columns in tables.items()]
    assert (folder / "README.md").read_text(encoding="utf-8") == results_page(*parts), "run `tt card` and commit"


def test_changes_tell_better_worse_and_neither():
    found = changes(study(*SOLVERS[:-1])).set_index(["solver", "nfe", "timing"])
    assert found["verdict"].to_dict() == {
        ("ddim", 5, "consistency-parallel"): BETTER,
        ("ddim", 5, "truncation-parallel"): BETTER,
        ("ddim", 20, "truncation-parallel"): SAME,
        ("dpmpp-2m", 5, "consistency-parallel"): WORSE,
    }
    assert found["change"].is_monotonic_increasing and found["change"].iloc[0] == pytest.approx(14.7 / 17.54 - 1)


@pytest.mark.parametrize(
    "timing, asked",
    [
        ("truncation-parallel", PLAIN),
        ("frechet-joint", PLAIN),
        ("end-joint,tries=40", PLAIN),
        ("frechet-joint,tries=40", "Tries of a joint tuning"),
        ("constant-0.95", CONSTANT),
        ("epsilon-1.01", CORRECTED),
        ("time-shift", CORRECTED),
        ("frechet-joint,optimiser=cma-es,tries=240", JOINT_SEARCH),
        ("truncation-parallel,images=16", "Number of images"),
        ("consistency-parallel-freeze2", "Steps at the end that keep their own time"),
        ("consistency-sequential,iterations=50,optimiser=adam", "Adam, its iterations and learning rate"),
        ("truncation-parallel,gate=true", "A gate for each step"),
    ],
)
def test_a_timing_answers_one_question(timing, asked):
    assert family(timing) == asked
    assert base_name("consistency-parallel-freeze2,images=4") == "consistency-parallel"


def test_study_of_every_solver():
    page = results_page(study(*SOLVERS), *NONE)
    assert "## Every solver, `cifar10-resnet`, 10,000 samples" in page
    assert (
        "| ddim | 17.54 → 14.70 c | **5.30 ± 0.10** → 5.35 t |" in page
        and "| dpmpp-2m | **6.58 ± 0.05** → 48.36 c |  |" in page
    )
    assert (
        "Of 4 timings and corrections 2 are better than untuned beyond the intervals, 1 are worse, and for 1 the intervals overlap."
        in page
    )
    assert "| dpmpp-2m, uniform | 5 | consistency-parallel | 6.58 | 48.36 | +635 % |" in page
    assert "on solvers with a history" in page and "in many steps" not in page, "only reasons of what is there"
    assert "10,000 test images: 0.267 ± 0.050" in page
    for absent in ("README's table", "Ablations", "Rank correlations", "Other measures"):
        assert absent not in page


def test_a_tuned_row_waits_for_its_untuned_one():
    rows = study(*SOLVERS)
    page = results_page(rows[(rows["solver"] != "dpmpp-2m") | (rows["timing"] != "untuned")], *NONE)
    assert "| ddim | 17.54 → **14.70 ± 0.10** c |" in page and "| dpmpp-2m |" not in page


def test_ablations_have_their_questions():
    page = results_page(study(*ASKED), *NONE)
    assert (
        "One constant ratio for all steps (ddim, uniform):" in page
        and "Corrections without tuning (ddim, uniform):" in page
    )
    assert "| truncation-parallel: mean and standard deviation of 3 seeds | 15.70 ± 0.20 |" in page
    assert "| timing | cifar10-resnet, NFE 5 |" in page
    seeds = page[page.index("Seeds of the tuning") :].split("\n\n")[1]
    assert (
        "| untuned | 17.54 |" in seeds
        and "| truncation-parallel | 15.70 |" in seeds
        and "| truncation-parallel,seed=1 | **15.50 ± 0.10** |" in seeds
    )


def test_features_and_numbers_of_samples_stay_apart():
    page = results_page(
        pd.concat(
            [study(*SOLVERS, n=50_000), study(*SOLVERS), study(*SOLVERS, features="cifar10-simclr")], ignore_index=True
        ),
        *NONE,
    )
    assert re.findall(r"^## .*", page, re.M)[:4] == [
        "## The README's table, `cifar10-resnet`, 50,000 samples",
        "## Every solver, `cifar10-resnet`, 10,000 samples",
        "## Every solver, `cifar10-simclr`, 10,000 samples",
        "## What improved and what got worse, `cifar10-resnet`, 50,000 samples",
    ]


def test_other_measures_and_correlations():
    kernel = study(SOLVERS[0]).assign(metric="kernel distance (cifar10-resnet)")
    found = pd.DataFrame(
        [
            dict.fromkeys(CORRELATION_COLUMNS, "")
            | {
                "what": "angle, Fréchet distance",
                "among": "all",
                "cells": 62,
                "n": 64,
                "spearman": 0.559,
                "low": 0.381,
                "high": 0.696,
            }
        ]
    )
    page = results_page(pd.concat([study(*SOLVERS), kernel], ignore_index=True), found, *NONE[1:])
    assert "In `cifar10-resnet`, 10,000 samples:" in page and "| sampler | NFE | timing | kernel distance |" in page
    assert "| ddim, uniform | 5 | untuned | 17.5 (17.4 to 17.7) |" in page
    assert "| angle, Fréchet distance | all | 62 | 64 | 0.56 | 0.38 to 0.70 |" in page


def test_a_changed_row_changes_the_page():
    frame = study(*SOLVERS)
    before = results_page(frame, *NONE)
    frame.loc[1, "value"] = 13.37
    assert "13.37" in results_page(frame, *NONE) and "13.37" not in before


def steps(timing: str, ends: tuple[float, ...], n: int = 64, **where) -> list[dict]:
    """Rows of ``direction.csv`` of one sampler whose errors at the ends of its steps are ``ends``."""
    base = dict.fromkeys(DIRECTION_COLUMNS, 0.0) | {
        "model": "cifar10-ddpm-w64",
        "solver": "ddim",
        "grid": "uniform",
        "nfe": 5,
        "n": n,
        "substeps": 8,
    }
    return [
        base
        | where
        | {
            "timing": timing,
            "step": step,
            "angle": 1.0 + step,
            "relative": 0.25,
            "accumulated": end,
            "doubt": 0.01 / (1 + step),
        }
        for step, end in enumerate(ends)
    ]


def directions(*parts) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_direction_errors_stand_beside_the_distances():
    """Among them a timing whose error is as it was, one measured twice, and one of another protocol, which is compared with nothing."""
    measured = directions(
        steps("untuned", (0.3, 0.2)),
        steps("consistency-parallel", (0.2, 0.1)),
        steps("truncation-parallel", (0.2, 0.199)),
        steps("untuned", (0.3, 0.5), n=8),
        steps("frechet-joint", (0.1, 0.9), n=8),
        steps("untuned", (0.1, 0.1), solver="dpmpp-2m"),
        steps("consistency-parallel", (0.5, 0.7), solver="dpmpp-2m"),
        steps("truncation-parallel", (1, 1), solver="heun"),
    )
    page = results_page(pd.concat([study(*SOLVERS), study(SOLVERS[0], features="cifar10-simclr")]), *NONE[:1], measured)
    section = page[page.index("## Direction errors beside the distances") : page.index("</details>\n\n## The floor")]
    assert "| ddim | 5 | untuned | 17.54 | 17.54 | 1.50° | 25.0 % | 0.2000 | 64 |" in section
    assert "| ddim | 5 | consistency-parallel | 14.70 |  | 1.50° | 25.0 % | 0.1000 | 64 |" in section
    assert "Grid uniform: 5 samplers and timings" in section and "heun" not in section and "frechet" not in section, (
        "no distance, no line"
    )
    assert (
        "| consistency | lower | 1 | 1 / 0 / 0 | 0 / 0 / 0 |" in section
        and "| consistency | higher | 1 | 0 / 0 / 1 | 0 / 0 / 0 |" in section
    )
    assert "| truncation | the same | 1 | 1 / 0 / 0 | 0 / 0 / 0 |" in section
    assert "over the 5 whose errors were measured on 64 samples with 8 substeps" in section, (
        "errors of different protocols are not compared"
    )
    assert "is in the median 5 % of the error at the end" in section
    # Five samplers are enough for a rank correlation; the second judge knows one of them.
    assert (
        "| NFE | 5 |" in section
        and "| samplers and timings | 5 |" in section
        and re.search(r"\| accumulated \| 0\.\d\d / - \|", section)
    )


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_ranks_of_each_budget():
    """Distances that fall as the angle rises, rise with the local error, and at another budget the other way round."""
    base = dict.fromkeys(("relative", "accumulated"), 0.0)
    measured = pd.DataFrame(
        [
            base | {"nfe": nfe, "angle": at, "local": -at, "relative": at % 2, "a": -at * sign, "b": (at - 2) ** 2}
            for nfe, sign in ((5, 1), (10, -1))
            for at in range(5)
        ]
    )
    found = rank_correlations(measured, ("a", "b"))
    assert found[5, "a"].tolist()[:3:2] == pytest.approx([-1, 1]) and found[10, "a"].tolist()[:3:2] == pytest.approx(
        [1, -1]
    )
    assert found[5, "b"]["angle"] == pytest.approx(0) and found[5, "a"].isna()["accumulated"]
    assert rank_table(measured, ("a",)).splitlines() == [
        "| NFE | 5 | 10 |",
        "| --- | ---: | ---: |",
        "| angle | -1.00 | 1.00 |",
        "| relative | 0.00 | 0.00 |",
        "| local | 1.00 | -1.00 |",
        "| accumulated | - | - |",
        "| samplers and timings | 5 | 5 |",
    ]


def test_no_directions_no_section():
    for measured in (
        NONE[1],
        directions(steps("untuned", (0.1,), model="another")),
        directions(steps("untuned", (0.1,), solver="heun")),
    ):
        assert "Direction errors" not in results_page(study(*SOLVERS), *NONE[:1], measured)
    alone = results_page(study(*SOLVERS), *NONE[:1], directions(steps("untuned", (0.1,))))
    assert "Direction errors beside" in alone and "What tuning does to the error" not in alone
