"""Figures of whole tables, checked by the numbers that they are drawn from."""

import pytest
from test_report import rows

from tt_lib.errors import BadValue
from tt_lib.plots_tables import gain_map, ranking, ranking_figure
from tt_lib.widgets_tables import ranking_explorer

FRAME = rows(
    ("ddim", "uniform", 5, "untuned", 10.0, 9.9, 10.1), ("ddim", "uniform", 5, "truncation-parallel", 7.5, 7.3, 7.7),
    ("dpmpp-2m", "uniform", 5, "untuned", 7.6, 7.4, 7.8), ("dpmpp-2m", "uniform", 5, "truncation-parallel", 38.0, 37.0, 39.0),
    ("ddim", "uniform", 10, "untuned", 5.0, 4.9, 5.1),
)  # fmt: skip
TIMINGS = ("untuned", "truncation-parallel")


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


def test_the_explorer_follows_both_controls():
    budget, tuned, picture = ranking_explorer(FRAME, TIMINGS).children
    seen = {bytes(picture.value)}
    budget.value = 10
    seen.add(bytes(picture.value))
    budget.value, tuned.value = 5, False
    seen.add(bytes(picture.value))
    assert len(seen) == 3 and all(each.startswith(b"\x89PNG") for each in seen)
