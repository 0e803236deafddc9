"""Learned samplers by their names: in cells, on the command line, with the grid that they bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_cli import fails, project, succeeds  # noqa: F401 - a fixture

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.metrics.evaluate import fingerprint
from tt_lib.rows import read_rows
from tt_lib.study.cells import Cell, Origin, Recipe, brings_grid, parse_timing, spell_timing
from tt_lib.study.workbench import make_bench
from tt_lib.timing import load_timing
from tt_lib.tuning.learn import LearnConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("learned-grid-timing", Recipe(LearnConfig())),
        ("learned-gain,seed=3", Recipe(LearnConfig(("gain",), seed=3))),
        (
            "learned-grid-timing-gain,learning_rate=0.01,noises=256,start=logsnr,loss=pixels",
            Recipe(LearnConfig(("grid", "timing", "gain"), noises=256, lr=0.01), loss="pixels", start="logsnr"),
        ),
        ("learned-gits", Recipe("gits")),
        ("learned-ld3,loss=pixels", Recipe("ld3", loss="pixels")),
        (
            "learned-grid,of_nfe=5,of_solver=unipc+final=lower,start=logsnr",
            Recipe(
                LearnConfig(("grid",)),
                start="logsnr",
                origin=Origin("learned-grid,start=logsnr", "unipc,final=lower", 5),
            ),
        ),
        ("learned-gits,of_model=other", Recipe("gits", origin=Origin("learned-gits", model="other"))),
    ],
)
def test_a_name_is_a_recipe(name, recipe):
    assert parse_timing(name) == recipe
    assert parse_timing(spell_timing(name)) == recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learned-timing-grid", "unknown timing"),
        ("learned-grid-freeze2", "leave -freeze2 out"),
        ("learned-gits,start=logsnr", "learned-gits takes no option"),
        ("learned-grid,images=16", "'images=16' is not an option"),
        ("learned-grid,start=spiral", "unknown start grid 'spiral'"),
        ("learned-grid,loss=taste", "unknown loss 'taste'"),
        ("learned-grid,of_nfe=0", "of_nfe must be at least 1, got 0"),
        ("truncation-parallel,of_nfe=5", "'of_nfe=5' is not an option"),
        ("learned-grid,noises=0", "noises of learning must be at least 1"),
    ],
)
def test_names_that_stand_for_nothing(name, message):
    with pytest.raises(BadValue, match=message):
        spell_timing(name)


def test_a_learned_grid_and_its_timing_go_together():
    assert [brings_grid(name) for name in ("learned-grid-gain", "learned-ld3", "learned-timing", "untuned")] == [
        True,
        True,
        False,
        False,
    ]
    cell = Cell("unipc", "learned", 6, "learned-grid-timing,start=quadratic")
    assert cell.start == "quadratic" and cell.label == "unipc-learned-6-learned-grid-timing,start=quadratic"
    assert Cell("ddim", "logsnr", 6, "learned-timing").start == "logsnr"
    for grid, timing in (("uniform", "learned-grid"), ("learned", "untuned"), ("learned", "learned-timing")):
        with pytest.raises(BadValue, match="do not go together"):
            Cell("ddim", grid, 6, timing)


# ---- on the command line

TINY = ("--model", "tiny", "--nfe", "4", "--solver", "ddim")


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    """Fewer evaluations: what converges is tested elsewhere."""
    monkeypatch.setattr("tt_lib.tuning.learn.CONVERGED_STEPS", 8)
    monkeypatch.setattr("tt_lib.tuning.ld3.PAIRS", 4)


def test_learned_and_used_by_its_name(project):  # noqa: F811
    name = "learned-grid-timing,iterations=6,loss=pixels,noises=128,validation=32"
    succeeds("tune", *TINY, "--timing", name)
    path = f"data/timings/tiny/ddim-learned-4-{name}.json"
    timing = load_timing(path)
    assert (timing.name, timing.grid) == (name, "learned")
    assert timing.tuning["validation_learned"] < timing.tuning["validation_start"]
    assert not list(project.glob("data/timings/tiny/*.state"))
    digits = ("--dataset", "digits", "--features", "digits-resnet", "--n", "20")
    succeeds("stats", *digits[:4])
    succeeds("evaluate", *TINY, *digits, "--timing", name, "--results", "runs/named.csv")
    succeeds("evaluate", *TINY, *digits, "--timing", path, "--results", "runs/file.csv")
    rows = [read_rows(f"runs/{file}.csv").iloc[0] for file in ("named", "file")]
    assert [(row["grid"], row["timing"]) for row in rows] == [("learned", name)] * 2
    assert rows[0]["value"] == rows[1]["value"]
    error = fails("evaluate", *TINY, *digits, "--timing", name, "--grid", "uniform", "--results", "runs/no.csv")
    assert "'uniform' do not go together" in error
    # Its grid would be run all the same, under the name of another number.
    for words in (("sample", "--out", "runs/no.png"), ("evaluate", *digits, "--results", "runs/no.csv")):
        error = fails(*words, "--model", "tiny", "--timing", path, "--nfe", 5)
        assert "learned for 4 evaluations in 4 steps and is used with 5 evaluations in 5" in error
    assert "knobs must be one or more of grid, timing, gain" in fails("learn", *TINY, "--knobs", "grid,tau")
    assert "ddpm: it draws noise" in fails("learn", "--model", "tiny", "--solver", "ddpm")


def test_learned_once_and_used_with_another_sampler(project):  # noqa: F811
    options = "iterations=6,loss=pixels,noises=127"
    learned = f"learned-grid-timing,{options},validation=32"
    other = f"learned-grid-timing,{options},of_nfe=4,of_solver=ddim,validation=32"
    unipc = ("--model", "tiny", "--nfe", "6", "--solver", "unipc")
    assert f"ddim-learned-4-{learned}.json; make it with" in fails("tune", *unipc, "--timing", other)
    succeeds("tune", *TINY, "--timing", learned)
    succeeds("tune", *unipc, "--timing", other)
    own, read = (
        load_timing(f"data/timings/tiny/{cell}.json")
        for cell in (f"ddim-learned-4-{learned}", f"unipc-learned-6-{other}")
    )
    assert (read.name, read.solver, read.nfe) == (other, "unipc", 6)
    assert (read.grid_times[0], read.taus[-1]) == pytest.approx((own.grid_times[0], own.taus[-1]))
    replace(own, weights="0" * 64).save(f"data/timings/tiny/ddim-learned-4-{learned}.json")
    assert "learned for other weights of tiny" in fails("tune", *unipc, "--timing", other, "--force")


def test_gains_are_part_of_what_is_measured(project):  # noqa: F811
    """A killed run does not go on with the samples of other gains."""
    sampler = make_bench("tiny").sampler(Cell("ddim", "uniform", 4))
    features = SimpleNamespace(sha256="x")
    names = set()
    for gains in ((), (1.1,) * 4, (0.9,) * 4):
        timing = sampler.make_timing("x", [each.t for each in sampler.evaluations], gains=gains)
        names.add(fingerprint(replace(sampler, timing=timing), features, range(4)))
    assert len(names) == 3


def test_the_options_of_learning_are_those_of_the_name(project, monkeypatch):  # noqa: F811
    """``tt learn`` and ``tt tune`` are one."""
    names = []

    def learn(bench, cell, recipe, dataset, state, progress):
        names.append((cell.grid, cell.timing, recipe))
        return replace(bench.sampler(cell).make_timing("x", [1.0, 0.7, 0.4, 0.1]), grid=cell.grid)

    monkeypatch.setattr("tt_lib.study.workbench.Bench.learn", learn)
    options = ("--noises", "128", "--seed", "3", "--loss", "pixels", "--start", "logsnr", "--out", "runs/x.json")
    succeeds("learn", *TINY, "--knobs", "grid,gain", *options)
    succeeds("learn", *TINY, "--knobs", "timing", *options, "--force")
    config = LearnConfig(("grid", "gain"), noises=128, seed=3)
    name = "learned-grid-gain,loss=pixels,noises=128,seed=3,start=logsnr"
    assert names[0] == ("learned", name, Recipe(config, loss="pixels", start="logsnr"))
    assert names[1][:2] == ("logsnr", "learned-timing,loss=pixels,noises=128,seed=3")


@pytest.mark.parametrize("method", ["gits", "ld3,loss=pixels"])
def test_other_ways_to_learn(project, method):  # noqa: F811
    succeeds("tune", *TINY, "--timing", f"learned-{method}", "--out", f"runs/{method}.json")
    timing = load_timing(f"runs/{method}.json")
    assert (timing.name, timing.grid, timing.nfe) == (f"learned-{method}", "learned", 4)


def test_a_shortest_path_is_measured_without_bfloat16():
    bench = make_bench(str(PACKAGE_ROOT / "data/pretrained/cifar10-ddpm-w96"), batch=4, bf16=True)
    seen = []

    def exact(x, t, tau):
        seen.append(len(x))
        return torch.zeros_like(x)

    cell = Cell("ddim", "learned", 4, timing="learned-gits")
    replace(bench, tuner_predictor=exact).learn(cell, Recipe("gits"), "cifar10", Path("none"))
    assert set(seen) == {256}, "all noises, see Bench.learn"
