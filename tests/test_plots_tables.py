"""Figures of whole tables, checked by the numbers that they are drawn from."""

import pandas as pd
import pytest
from test_report import rows

from tt_lib.errors import BadValue
from tt_lib.lessons.tables import (
    OTHERS,
    features_scatter,
    gain_map,
    judges_figure,
    judges_map,
    kind,
    ranking,
    ranking_figure,
)
from tt_lib.study.compare import AGREED_BETTER, AGREED_WORSE, UNDECIDED, changes_in_both, paired_gains

FRAME = rows(
    ("ddim", "uniform", 5, "untuned", 10.0, 9.9, 10.1),
    ("ddim", "uniform", 5, "truncation-parallel", 7.5, 7.3, 7.7),
    ("dpmpp-2m", "uniform", 5, "untuned", 7.6, 7.4, 7.8),
    ("dpmpp-2m", "uniform", 5, "truncation-parallel", 38.0, 37.0, 39.0),
    ("ddim", "uniform", 10, "untuned", 5.0, 4.9, 5.1),
)
TIMINGS = ("untuned", "truncation-parallel")
TWO = ("cifar10-resnet", "cifar10-simclr")


def in_other_features(frame, **values):
    """The same rows in the second kind of features, on a scale of its own; ``values`` of a timing in place of a tenth of the first."""
    found = frame.assign(features=TWO[1], metric=f"FD ({TWO[1]})")
    for column in ("value", "low", "high"):
        found[column] = found[column] / 10
    for timing, (value, half) in values.items():
        own = found["timing"].str.startswith(timing)
        found.loc[own, ["value", "low", "high"]] = value, value - half, value + half
    return found


def test_gain_map_writes_each_change_and_none_twice():
    figure = gain_map(FRAME, TIMINGS[1:])
    panel = figure.axes[0]
    assert sorted(text.get_text() for text in panel.texts) == ["+400", "-25"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["ddim, uniform", "dpmpp-2m, uniform"]
    with pytest.raises(BadValue, match="no row of end-joint"):
        gain_map(FRAME, ["end-joint"])


def test_ranking_says_who_ties_with_the_best():
    found = ranking(FRAME, 5, TIMINGS)
    assert found["value"].tolist() == [7.5, 7.6, 10.0, 38.0] and found["tied"].tolist() == [True, True, False, False]
    assert ranking(FRAME, 5, TIMINGS[:1])["solver"].tolist() == ["dpmpp-2m", "ddim"]
    with pytest.raises(BadValue, match="no row of NFE 7; choose one of 5, 10"):
        ranking(FRAME, 7, TIMINGS)
    axes = ranking_figure(FRAME, 5, TIMINGS).axes[0]
    assert next(label.get_text() for label in axes.get_yticklabels()) == "ddim, uniform"


def cells(*timings):
    """DDIM in 5 evaluations at 10 untuned, and each timing at the value given, all within 0.1."""
    return rows(
        ("ddim", "uniform", 5, "untuned", 10.0, 9.9, 10.1),
        *(("ddim", "uniform", 5, name, value, value - 0.1, value + 0.1) for name, value in timings),
    )


def test_two_judges_agree_disagree_or_cannot_tell():
    first = cells(
        ("truncation-parallel", 8.0),
        ("consistency-parallel", 8.0),
        ("frechet-joint", 12.0),
        ("constant-0.9", 12.0),
        ("epsilon-1.01", 8.0),
    )
    second = in_other_features(
        first,
        truncation=(0.5, 0.01),
        consistency=(1.5, 0.01),
        frechet=(0.5, 0.01),
        constant=(1.5, 0.01),
        epsilon=(1.0, 0.2),
    )
    both = pd.concat([first, second], ignore_index=True)
    found = changes_in_both(both, TWO, 50_000, "cifar10-ddpm-w64").set_index("timing")
    assert found["together"].to_dict() == {
        "truncation-parallel": AGREED_BETTER,
        "consistency-parallel": "better in cifar10-resnet only",
        "frechet-joint": "better in cifar10-simclr only",
        "constant-0.9": AGREED_WORSE,
        "epsilon-1.01": UNDECIDED,
    }
    assert found.loc["truncation-parallel", ["change_first", "change_second"]].tolist() == pytest.approx([-0.2, -0.5])
    with pytest.raises(BadValue, match="two different features"):
        changes_in_both(both, (TWO[0], TWO[0]), 50_000, "cifar10-ddpm-w64")

    axes = judges_figure(both, TWO, 50_000, "cifar10-ddpm-w64").axes[0]
    assert {text.get_text() for text in axes.texts} == {
        "better in both: 1",
        "better in cifar10-resnet only: 1",
        "better in cifar10-simclr only: 1",
        "worse in both: 1",
    }
    points = {
        line.get_label(): line.get_xydata().tolist() for line in axes.lines if not line.get_label().startswith("_")
    }
    assert points["truncation"] == [pytest.approx([0.8, 0.5])] and points[OTHERS] == [], (
        "what is not sure is drawn pale, without a name"
    )
    for figure in (judges_figure, features_scatter):
        with pytest.raises(BadValue, match="measure some"):
            figure(first, TWO, 50_000, "cifar10-ddpm-w64")


def test_scatter_holds_every_sampler_once():
    both = pd.concat([FRAME, in_other_features(FRAME)], ignore_index=True)
    axes = features_scatter(both, TWO, 50_000, "cifar10-ddpm-w64").axes[0]
    points = {line.get_label(): sorted(line.get_xydata().tolist()) for line in axes.lines}
    assert points == {"untuned": [[5.0, 0.5], [7.6, 0.76], [10.0, 1.0]], "truncation": [[7.5, 0.75], [38.0, 3.8]]}


def test_judges_map_has_a_panel_for_each_and_goes_grid_by_grid():
    frame = pd.concat([FRAME, FRAME.assign(grid="quadratic")])
    both = pd.concat([frame, in_other_features(frame, truncation=(0.5, 0.01))], ignore_index=True)
    figure = judges_map(both, "truncation-parallel", TWO, 50_000, "cifar10-ddpm-w64", ["quadratic", "uniform"])
    first, second = figure.axes[:2]
    lines = ["ddim, quadratic", "dpmpp-2m, quadratic", "ddim, uniform", "dpmpp-2m, uniform"]
    assert [label.get_text() for label in first.get_yticklabels()] == lines and first.get_title() == TWO[0]
    assert [text.get_text() for text in first.texts] == 2 * ["-25", "+400"]
    assert [text.get_text() for text in second.texts] == 2 * ["-50", "-34"]
    with pytest.raises(BadValue, match="measured in both"):
        judges_map(FRAME, "truncation-parallel", TWO, 50_000, "cifar10-ddpm-w64", ["uniform"])


@pytest.mark.parametrize(
    "timing, drawn_as",
    [
        ("untuned", "untuned"),
        ("consistency-sequential-freeze2,images=16", "consistency"),
        ("frechet-joint,tries=240", "frechet-joint"),
        ("constant-0.97", "constant"),
        ("epsilon-1.005", OTHERS),
        ("end-joint", OTHERS),
    ],
)
def test_kinds(timing, drawn_as):
    assert kind(timing) == drawn_as


def test_paired_gains_stand_beside_what_two_rows_say():
    plain = cells(("truncation-parallel", 9.9), ("frechet-joint", 9.0))
    gains = plain.iloc[1:].assign(
        metric="gain of FD (cifar10-resnet)", value=[0.1, 1.0], low=[0.05, 0.9], high=[0.15, 1.1]
    )
    found = paired_gains(pd.concat([plain, gains], ignore_index=True), TWO[0], 50_000, "cifar10-ddpm-w64").set_index(
        "timing"
    )
    assert found["unpaired"].tolist() == pytest.approx(2 * [0.1 * 2**0.5]) and found["half"].tolist() == pytest.approx(
        [0.05, 0.1]
    )
    assert found["sure"].tolist() == [True, True] and found["sure_unpaired"].tolist() == [False, True]


def test_only_the_best_are_drawn():
    axes = ranking_figure(FRAME, 5, TIMINGS, most=2).axes[0]
    assert len(axes.get_yticklabels()) == 2
