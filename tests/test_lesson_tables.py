"""Notebook 07: figures of whole tables, checked by the numbers that they are drawn from."""

import numpy as np
import pandas as pd
import pytest

from tt_lib.errors import BadValue
from tt_lib.lessons.tables import (
    changes_scatter,
    features_scatter,
    gain_map,
    gain_map_in_both,
    kind,
    ranking,
    ranking_explorer,
    ranking_figure,
)
from tt_lib.rows import FD_COLUMNS

MODEL, N = "cifar10-ddpm-w96", 50_000
BOTH = ("cifar10-resnet", "other")
TIMINGS = ("untuned", "truncation-parallel")


def rows(*cells, features=BOTH[0]) -> pd.DataFrame:
    """Rows of ``fd.csv`` from (solver, NFE, timing, value, half an interval)."""
    base = dict.fromkeys(FD_COLUMNS, "") | {"dataset": "cifar10", "model": MODEL, "grid": "uniform", "eta": 0.0}
    base |= {"metric": f"FD ({features})", "features": features, "reference": "train", "n": N}
    return pd.DataFrame(
        base
        | {"solver": solver, "nfe": nfe, "timing": timing, "value": value, "low": value - half, "high": value + half}
        for solver, nfe, timing, value, half in cells
    )


def in_other_features(frame, **values):
    """The same rows in the second kind of features: values of kinds of timing, else a tenth of the first."""
    other = frame.assign(features=BOTH[1], metric=f"FD ({BOTH[1]})")
    other[["value", "low", "high"]] /= 10
    for name, (value, half) in values.items():
        other.loc[other["timing"].str.startswith(name), ["value", "low", "high"]] = value, value - half, value + half
    return other


FRAME = rows(
    ("ddim", 5, "untuned", 10.0, 0.1),
    ("ddim", 5, "truncation-parallel", 7.5, 0.2),
    ("dpmpp-2m", 5, "untuned", 7.6, 0.2),
    ("dpmpp-2m", 5, "truncation-parallel", 38.0, 1.0),
    ("ddim", 10, "untuned", 5.0, 0.1),
)
TWICE = pd.concat([FRAME, in_other_features(FRAME)], ignore_index=True)


def points(figure) -> list[list[float]]:
    return sorted(figure.axes[0].collections[0].get_offsets().tolist())


def test_gain_map_writes_each_change_and_none_twice():
    panel = gain_map(FRAME, TIMINGS[1:]).axes[0]
    assert sorted(text.get_text() for text in panel.texts) == ["+400", "-25"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["ddim, uniform", "dpmpp-2m, uniform"]
    with pytest.raises(BadValue, match="no row of learned-grid"):
        gain_map(FRAME, ["learned-grid"])


def test_a_map_of_two_features_has_a_panel_for_each_and_goes_grid_by_grid():
    frame = pd.concat([FRAME, FRAME.assign(grid="quadratic")])
    both = pd.concat([frame, in_other_features(frame, truncation=(0.5, 0.01))], ignore_index=True)
    first, second = gain_map_in_both(both, TIMINGS[1], BOTH, N, MODEL, ["quadratic", "uniform"]).axes[:2]
    lines = ["ddim, quadratic", "dpmpp-2m, quadratic", "ddim, uniform", "dpmpp-2m, uniform"]
    assert [label.get_text() for label in first.get_yticklabels()] == lines and first.get_title() == BOTH[0]
    assert [text.get_text() for text in first.texts] == 2 * ["-25", "+400"]
    assert [text.get_text() for text in second.texts] == 2 * ["-50", "-34"]
    with pytest.raises(BadValue, match="measured in both"):
        gain_map_in_both(FRAME, TIMINGS[1], BOTH, N, MODEL, ["uniform"])


def test_the_scatter_of_two_features_holds_every_sampler_once():
    figure = features_scatter(TWICE, BOTH, N, MODEL)
    assert points(figure) == [[5.0, 0.5], [7.5, 0.75], [7.6, 0.76], [10.0, 1.0], [38.0, 3.8]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["untuned", "truncation"]


def test_changes_that_agree_disagree_or_cannot_be_told_are_counted():
    first = rows(
        ("ddim", 5, "untuned", 10.0, 0.1),
        ("ddim", 5, "truncation-parallel", 8.0, 0.1),
        ("ddim", 5, "consistency-parallel", 8.0, 0.1),
        ("ddim", 5, "learned-timing", 12.0, 0.1),
        ("ddim", 5, "constant-0.9", 12.0, 0.1),
        ("ddim", 5, "epsilon-1.01", 8.0, 0.1),
    )
    second = in_other_features(
        first,
        truncation=(0.5, 0.01),
        consistency=(1.5, 0.01),
        learned=(0.5, 0.01),
        constant=(1.5, 0.01),
        epsilon=(1.0, 0.2),
    )
    figure = changes_scatter(pd.concat([first, second], ignore_index=True), BOTH, N, MODEL)
    assert {text.get_text() for text in figure.axes[0].texts} == {
        "better in both: 1",
        "better in cifar10-resnet only: 1",
        "better in other only: 1",
        "worse in both: 1",
    }
    assert np.allclose(points(figure), [[0.8, 0.5], [0.8, 1.0], [0.8, 1.5], [1.2, 0.5], [1.2, 1.5]])
    alphas = figure.axes[0].collections[0].get_alpha()
    assert sorted(alphas) == [0.2, *4 * [0.85]], "what is not sure is pale"
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "corrections and others"


@pytest.mark.parametrize("figure", [changes_scatter, features_scatter])
def test_rows_in_one_kind_of_features_make_no_scatter(figure):
    with pytest.raises(BadValue, match="measure some"):
        figure(FRAME, BOTH, N, MODEL)


@pytest.mark.parametrize(
    "timing, drawn_as",
    [
        ("consistency-sequential-freeze2,images=16", "consistency"),
        ("learned-grid-timing,seed=1", "learned"),
        ("constant-0.97", "constant"),
        ("epsilon-1.005", "corrections and others"),
    ],
)
def test_kinds(timing, drawn_as):
    assert kind(timing) == drawn_as


def test_ranking_says_who_ties_with_the_best():
    table = ranking(FRAME, 5, TIMINGS)
    assert table["value"].tolist() == [7.5, 7.6, 10.0, 38.0] and table["tied"].tolist() == [True, True, False, False]
    assert ranking(FRAME, 5, TIMINGS[:1])["solver"].tolist() == ["dpmpp-2m", "ddim"]
    with pytest.raises(BadValue, match="no row of NFE 7; choose one of 5, 10"):
        ranking(FRAME, 7, TIMINGS)


@pytest.mark.parametrize("most, drawn", [(None, 4), (2, 2)])
def test_the_ranking_is_drawn_best_first(most, drawn):
    axes = ranking_figure(FRAME, 5, TIMINGS, most).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["ddim, uniform", "dpmpp-2m, uniform"] and len(labels) == drawn and axes.yaxis_inverted()


def test_the_explorer_follows_every_control():
    features, nfe, tuned, picture = ranking_explorer(TWICE, TIMINGS).children
    assert features.options == BOTH and nfe.options == (5, 10)
    seen = {bytes(picture.value)}
    for control, value in ((features, BOTH[1]), (tuned, False), (nfe, 10)):
        control.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 4 and all(each.startswith(b"\x89PNG") for each in seen)


def test_every_choice_has_something_to_draw():
    """An NFE that was measured in one of the features only, or tuned only, is not offered."""
    other = in_other_features(FRAME[FRAME["nfe"] == 5])
    assert ranking_explorer(pd.concat([FRAME, other]), TIMINGS).children[1].options == (5,)
    tuned_only = FRAME[(FRAME["nfe"] == 10) | (FRAME["timing"] != "untuned")]
    assert ranking_explorer(tuned_only, TIMINGS).children[1].options == (10,)
