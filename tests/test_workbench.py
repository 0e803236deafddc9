"""The workbench: what loading a model leaves alone, the images it tunes on, and a timing that nothing was tuned for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_evaluate import sampler, tiny_project  # noqa: F401 - a fixture
from test_tables import TABLE, no_git, parts, project  # noqa: F401 - fixtures

from tt_lib.datasets import load_dataset, to_float
from tt_lib.errors import BadValue
from tt_lib.metrics.reference import reference_path
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.study.cells import Cell, find_timing, parse_timing
from tt_lib.study.workbench import constant_timing, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


def test_loading_a_model_changes_nothing_global(tmp_path_factory, monkeypatch):
    flags = {"benchmark": True, "allow_tf32": True}
    for name, value in flags.items():
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    with tiny_project(tmp_path_factory):
        make_bench("tiny")
        with pytest.raises(BadValue, match="batch must be at least 1, got 0"):
            make_bench("tiny", batch=0)
    assert {name: getattr(torch.backends.cudnn, name) for name in flags} == flags


def test_tuning_images_are_of_what_is_asked_for(parts, monkeypatch):  # noqa: F811
    bench = replace(parts[0], images={})
    images = bench.tuning_images("real", 5, "digits", None)
    assert bench.tuning_images("real", 5, "digits", None) is images
    pixels = load_dataset("digits", "train")
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:5]
    assert torch.equal(images, to_float(pixels.pixels[rows]))
    other = replace(pixels, pixels=255 - pixels.pixels)
    monkeypatch.setattr("tt_lib.study.workbench.load_dataset", lambda name, split, root: other)
    for dataset, data in (("others", None), ("digits", "elsewhere")):
        assert not torch.equal(bench.tuning_images("real", 5, dataset, data), images)
    monkeypatch.setattr(bench, "model", replace(bench.model, shape=(1, 9, 9)))
    with pytest.raises(BadValue, match=r"tiny takes images of \[1, 9, 9\], those of digits are \[1, 8, 8\]"):
        bench.tuning_images("real", 6, "digits", None)
    with pytest.raises(BadValue, match="images must be at least 1, got 0"):
        bench.tuning_images("real", 0, "digits", None)


def test_one_ratio_for_all_steps_but_the_last(sampler):  # noqa: F811
    timing = constant_timing(sampler, 0.95)
    assert timing.name == "constant-0.95" and timing.times == sampler.grid.times[:-1]
    assert timing.ratios[:-1] == pytest.approx([0.95] * (len(timing.taus) - 1)) and timing.ratios[-1] == 1
    replace(sampler, timing=timing)  # it belongs to this sampler
    high, low = constant_timing(sampler, 5.0), constant_timing(sampler, 1e-9)
    assert max(high.taus) == 1 and set(low.taus[:-1]) == {sampler.schedule.t_min}, "within the network's range of times"


def test_one_ratio_as_a_cell(project):  # noqa: F811
    cells = tuple(Cell("ddim", "uniform", 3, timing) for timing in ("untuned", "constant-0.9", "constant-1"))
    table = replace(TABLE, cells=cells)
    rows = {row["timing"]: row["value"] for row in project.run(table)}
    assert rows["constant-1"] == rows["untuned"] != rows["constant-0.9"]
    assert find_timing("tiny", cells[1]).tuning == {"objective": "constant", "ratio": 0.9, "freeze_last": 1}
    assert project.run(table) == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16)])
def test_learning_in_features_of_other_images(tmp_path_factory, shape):
    with tiny_project(tmp_path_factory):
        bench = make_bench("tiny")
        bench.model = replace(bench.model, shape=shape)
        own = FeatureStatistics(2, "digits-resnet").update(torch.rand(4, 2))
        own.shape = (1, 8, 8)
        own.save(reference_path("digits", "train", "digits-resnet"))
        with pytest.raises(BadValue, match=r"tiny has images of \[.*digits-resnet was trained on .*loss=pixels"):
            bench.learn(Cell("ddim", "learned", 4, "learned-grid"), parse_timing("learned-grid"), "digits", Path("no"))
