"""Swapped frequencies: which go where, what is measured of the hybrids, the command, and its section of the results page."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from test_cli import fails, project, succeeds  # noqa: F401 - a fixture

from tt_lib.bands import Hybrid, measure_hybrids, pixel_noise, plan_hybrids, run_bands, swap_bands
from tt_lib.bands_table import TITLE, bands_section
from tt_lib.bench import Bench, Cell, make_bench
from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue, MissingFile
from tt_lib.evaluating import measure
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.yardsticks import load_yardstick
from tt_lib.noise import SampleNoise
from tt_lib.plots_bands import bands_figure
from tt_lib.results import BANDS_COLUMNS, FD_COLUMNS, read_rows
from tt_lib.sampling import Sampler

pytestmark = pytest.mark.usefixtures("one_thread", "project")
SHAPES = [(2, 3, 8, 8), (2, 1, 6, 9), (1, 2, 49, 5)]
NAMES = ("digits-resnet", "digits-simclr")
TIMING = "epsilon-1.05"
COMMAND = ("bands", "--model", "tiny", "--nfe", "2", "--dataset", "digits", "--n", "20", "--batch", "10", "--timing", TIMING, "--cut", "1", "--cut", "3")
BOTH = ("--features", NAMES[0], "--features", NAMES[1])


def pair(shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


# Swapping


@pytest.mark.parametrize("shape", SHAPES)
def test_cut_0_takes_the_mean_alone(shape):
    a, b = pair(shape)
    found = swap_bands(a, b, 0)
    means = (x.mean((2, 3), keepdim=True) for x in (a, b))
    assert torch.allclose(found, b + next(means) - next(means), atol=1e-5) and found.shape == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_beyond_all_frequencies_takes_everything(shape):
    a, b = pair(shape)
    largest = math.hypot(shape[2] // 2, shape[3] // 2)
    assert torch.allclose(swap_bands(a, b, largest + 1e-6), a, atol=1e-5)
    # A side of odd length has no frequency of half a pixel's cycle, but this one it has.
    assert not torch.allclose(swap_bands(a, b, largest - 0.01), a, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", [0, 1, 2.5, 3])
def test_both_hybrids_hold_all_there_is(shape, cut):
    a, b = pair(shape)
    assert torch.allclose(swap_bands(a, b, cut) + swap_bands(b, a, cut), a + b, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "down", "across"), [(32, 32, 0, 3), (32, 32, 3, 0), (32, 32, 3, 4), (49, 20, 24, 0), (12, 20, 2, 10)])
def test_a_cosine_lands_on_its_side(height, width, down, across):
    y, x = torch.arange(height, dtype=torch.float64)[:, None] / height, torch.arange(width, dtype=torch.float64) / width
    wave = torch.cos(2 * torch.pi * (down * y + across * x) + 0.3)[None, None]
    size = math.hypot(down, across)
    for cut, kept in ((size - 0.01, 0.0), (size, 1.0), (size + 0.01, 1.0)):
        assert torch.allclose(swap_bands(wave, torch.zeros_like(wave), cut), kept * wave, atol=1e-9), cut


def test_bands_that_cannot_be_swapped():
    a, _ = pair((2, 3, 8, 8))
    with pytest.raises(BadValue, match=r"of one shape .*\[2, 3, 8, 8\] and \[1, 3, 8, 8\]"):
        swap_bands(a, a[:1], 1)
    with pytest.raises(BadValue, match=r"\[3, 8, 8\] and \[3, 8, 8\]"):
        swap_bands(a[0], a[0], 1)
    for cut in (-1, math.nan):
        with pytest.raises(BadValue, match=f"0 or more, got {cut}"):
            swap_bands(a, a, cut)


# Hybrids


def test_what_is_measured():
    found = plan_hybrids(["a", "b"], [1, 3], [0.01, 0])
    assert found[:3] == [Hybrid("untuned", "untuned"), Hybrid("a", "a"), Hybrid("b", "b")] and len(found) == len(set(found)) == 12
    assert {(each.below, each.above) for each in found if each.cut == 3} == {("a", "untuned"), ("untuned", "a"), ("b", "untuned"), ("untuned", "b")}
    assert found[-1] == Hybrid("untuned", "untuned", noise=0.01), "noise of 0 is the whole image"
    with pytest.raises(BadValue, match="leave it out"):
        plan_hybrids(["untuned"], [1], [])
    with pytest.raises(BadValue, match=r"got -0\.1"):
        plan_hybrids(["a"], [1], [-0.1])
    with pytest.raises(BadValue, match="got -2"):
        plan_hybrids(["a"], [-2], [])


@pytest.fixture(scope="module")
def bench(project) -> Bench:  # noqa: F811
    for name in NAMES:
        succeeds("stats", "--dataset", "digits", "--features", name)
    return make_bench("tiny", batch=7)


@pytest.fixture(scope="module")
def yardsticks(bench):
    return [load_yardstick(name, "digits", "cpu") for name in NAMES]


@pytest.fixture(scope="module")
def samplers(bench) -> dict[str, Sampler]:
    return {name: bench.sampler(Cell("ddim", "uniform", 2, name)) for name in ("untuned", TIMING)}


def test_hybrids_are_what_their_parts_give(samplers, yardsticks):
    hybrid, noisy = Hybrid(TIMING, "untuned", 2), Hybrid("untuned", "untuned", noise=0.5)
    found = measure_hybrids(samplers, {hybrid: yardsticks, noisy: yardsticks[:1]}, 40, first_seed=3, batch=3)
    images = {name: sampler(range(3, 43)).x.clamp(-1, 1) for name, sampler in samplers.items()}
    made = {
        hybrid: swap_bands(images[TIMING], images["untuned"], 2),
        noisy: images["untuned"] + 0.5 * pixel_noise(range(3, 43), (1, 8, 8)),
    }
    for each, measured in found.items():
        for by, one in zip(yardsticks, measured, strict=False):
            statistics = FeatureStatistics(by.features.dimension, by.features.name, by.features.sha256)
            statistics.update(by.features(to_uint8(made[each])))
            assert one.value == pytest.approx(frechet_distance(statistics, by.reference), rel=1e-3)
            assert one.low < one.value < one.high and one.nfe == 2
    assert [len(measured) for measured in found.values()] == [2, 1]


def test_a_sampler_that_nothing_needs_is_not_run(samplers, yardsticks, monkeypatch):
    run, names = Sampler.__call__, []
    monkeypatch.setattr(Sampler, "__call__", lambda self, *a, **k: names.append(self.correction) or run(self, *a, **k))
    measure_hybrids(samplers, {Hybrid("untuned", "untuned"): yardsticks[:1]}, 20)
    assert names == [None] * 10


def test_pixel_noise_is_the_samples_own_and_not_their_start():
    """Of the stream that x_T comes from, it would be the image's own beginning."""
    noise, start = pixel_noise(range(50), (1, 8, 8)), SampleNoise(range(50)).start((1, 8, 8))
    assert torch.equal(noise[20:30], pixel_noise(range(20, 30), (1, 8, 8)))
    together = torch.corrcoef(torch.stack([noise.flatten(), start.flatten()]))[0, 1]
    assert abs(together) < 0.1 and noise.std() == pytest.approx(1, abs=0.05)


def test_cells_and_timings_that_cannot_be_measured(bench, yardsticks, tmp_path):
    def run(cell: Cell, timing: str, n: int = 20):
        run_bands(bench, cell, [timing], [1], [], yardsticks, n, tmp_path / "bands.csv", dataset="digits")

    with pytest.raises(BadValue, match=r"must be untuned, got epsilon-1\.05"):
        run(Cell("ddim", "uniform", 2, TIMING), TIMING)
    with pytest.raises(MissingFile, match=r"ddim-uniform-2-truncation-parallel\.json.*tt tune"):
        run(Cell("ddim", "uniform", 2), "truncation-parallel")
    with pytest.raises(BadValue, match=r"multiple of 10 .*got 25"):
        run(Cell("ddim", "uniform", 2), TIMING, n=25)
    assert not (tmp_path / "bands.csv").exists()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_whole_images_are_what_an_evaluation_measures(bench, yardsticks, tmp_path, eta):
    cell = Cell("ddim", "uniform", 2, eta=eta)
    rows = run_bands(bench, cell, [TIMING], [], [], yardsticks, 20, tmp_path / "bands.csv", dataset="digits", seed=5)
    assert [(row["below"], row["features"]) for row in rows] == [(timing, name) for timing in ("untuned", TIMING) for name in NAMES]
    for row in rows:
        by = next(each for each in yardsticks if each.features.name == row["features"])
        sampler = bench.sampler(Cell("ddim", "uniform", 2, row["below"], eta))
        expected = measure(sampler, by.features, by.reference, 20, first_seed=5, batch=7)
        assert [row[name] for name in ("value", "low", "high")] == pytest.approx([expected.value, expected.low, expected.high], abs=1e-5)


# The command


def test_the_command(bench, monkeypatch):
    path = "runs/bands.csv"
    said = succeeds(*COMMAND, *BOTH, "--results", path)
    rows = read_rows(path, BANDS_COLUMNS)
    assert len(rows) == 2 * (2 + 4 + 2) and "16 rows written to runs/bands.csv" in said
    assert "epsilon-1.05 up to 3 cycles, untuned beyond: FD (digits-resnet)" in said and "untuned with noise 0.02: FD" in said
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert set(rows["command"].str[:8]) == {"tt bands"} and set(rows["nfe"]) == {2}

    evaluated = ("evaluate", *COMMAND[1:9], *BOTH, "--results", "runs/bands-fd.csv")
    for timing in ((), ("--timing", TIMING)):
        succeeds(*evaluated, *timing)
    whole = rows[rows["cut"].isna() & (rows["noise"] == 0)].rename(columns={"below": "timing"})
    both = whole.merge(read_rows("runs/bands-fd.csv", FD_COLUMNS), on=["timing", "metric", "solver", "grid", "nfe", "eta", "n", "seed"])
    assert len(both) == 4
    for name in ("value", "low", "high"):
        assert both[f"{name}_x"].to_numpy() == pytest.approx(both[f"{name}_y"].to_numpy(), abs=2e-6 + 1e-4 * both["value_x"].max())

    ran, run = [], Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda self, *a, **k: ran.append(self) or run(self, *a, **k))
    assert "all rows are in runs/bands.csv already; --force" in succeeds(*COMMAND, *BOTH, "--results", path)
    assert not ran
    pd.testing.assert_frame_equal(read_rows(path), rows)
    # A further cut costs both samplers, but only its own rows.
    assert "2 rows written" in succeeds(*COMMAND, "--cut", 2, "--features", NAMES[0], "--results", path)
    assert len(ran) == 2 * 10 and len(read_rows(path)) == 18
    assert "8 rows written" in succeeds(*COMMAND, "--features", NAMES[0], "--results", path, "--force")
    assert len(read_rows(path)) == 18


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--cut", -1), ("0 or more", "-1")), (("--noise", -0.5), ("0 (none) or more", "-0.5")), (("--n", 25), ("multiple of 10", "25")),
        (("--timing", "untuned"), ("untuned", "leave it out")), (("--timing", "consistency-parallel"), ("consistency-parallel.json", "tt tune")),
        (("--features", NAMES[0]), ("different names",)), (("--results", "a-file/x.csv"), ("a-file/x.csv", "choose another")),
        (("--batch", 0), ("batch", "0")),
    ],
)  # fmt: skip
def test_errors_are_one_line(bench, words, parts):
    message = fails(*COMMAND, *BOTH, *(() if "--results" in words else ("--results", "runs/never.csv")), *words)
    assert all(part in message for part in parts), message


# The page


def band_rows() -> pd.DataFrame:
    base = dict.fromkeys(BANDS_COLUMNS, "") | {
        "dataset": "cifar10", "model": "net", "solver": "ddim", "grid": "uniform", "nfe": 10, "eta": 0.0, "reference": "train", "n": 10_000, "seed": 0,
    }  # fmt: skip
    kinds = plan_hybrids(["frechet-joint"], [3, 10], [0.01])
    values = [8.0, 6.0, 7.5, 6.25, 6.5, 7.75, 8.125]
    return pd.DataFrame([
        base | {"below": one.below, "above": one.above, "cut": one.cut, "noise": one.noise, "features": features,
                "value": value / scale, "low": (value - 0.1) / scale, "high": (value + 0.1) / scale}
        for one, value in zip(kinds, values, strict=True) for features, scale in (("cifar10-resnet", 1), ("cifar10-simclr", 50))
    ])  # fmt: skip


def test_section_of_the_page():
    section = "\n".join(bands_section(band_rows()))
    assert section.startswith(TITLE) and "net, ddim, grid `uniform`, 10 evaluations, 10,000 samples:" in section
    for line in (
        "| whole images | cifar10-resnet | cifar10-simclr |", "| untuned | 8 ± 0.1 | 0.16 ± 0.002 |", "| frechet-joint | 6 ± 0.1 | 0.12 ± 0.002 |",
        "| untuned with noise 0.01 | 8.12 ± 0.1 | 0.163 ± 0.002 |",
        "| frechet-joint | 3 | 7.5 ± 0.1 | 6.5 ± 0.1 | 0.15 ± 0.002 | 0.13 ± 0.002 |",
        "| frechet-joint | 10 | 6.25 ± 0.1 | 7.75 ± 0.1 | 0.125 ± 0.002 | 0.155 ± 0.002 |",
    ):  # fmt: skip
        assert line in section.splitlines(), section
    assert "| timing | cut | cifar10-resnet: timing below, untuned above | cifar10-resnet: untuned below, timing above |" in section


def test_no_rows_no_section():
    assert not list(bands_section(pd.DataFrame(columns=BANDS_COLUMNS)))
    whole = band_rows()[lambda rows: rows["cut"].isna()]
    assert "cut |" not in "".join(bands_section(whole))


def test_figure_of_hybrids():
    rows = band_rows()
    figure = bands_figure(rows, ["frechet-joint"], ["cifar10-simclr", "cifar10-resnet"])
    first, second = figure.axes
    assert first.get_title() == "frechet-joint" and first.get_ylabel() == "FD (cifar10-simclr)" and second.get_xlabel() == "cut (cycles per image)"
    labels = first.get_legend_handles_labels()[1]
    assert labels[:2] == ["all waves untuned", "all waves the timing's"] and len(labels) == 4
    assert [line.get_ydata()[0] for line in second.lines[:2]] == [8.0, 6.0], "whole images, and no noise among them"
    bars = {bar.get_label().split()[0]: bar for bar in second.containers}
    hybrids = rows[(rows["features"] == "cifar10-resnet") & rows["cut"].notna()]
    for word, side in (("the", "below"), ("untuned", "above")):
        own = hybrids[hybrids[side] == "frechet-joint"]
        assert bars[word][0].get_xydata().tolist() == own[["cut", "value"]].to_numpy().tolist()
    with pytest.raises(BadValue, match="no hybrids of time-shift"):
        bands_figure(rows, ["time-shift"], ["cifar10-resnet"])
