"""The figures of the Fréchet distance draw what they are given."""

import pandas as pd
import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.lessons.frechet import change_dots, distances_over_n, point_clouds


def test_distances_over_n_has_a_panel_for_each_network_and_the_predicted_slope():
    rows = [(kind, reference, n, 3 / n) for kind in ("a", "b") for reference in ("train", "test") for n in (10, 100)]
    figure = distances_over_n(
        pd.DataFrame(rows, columns=["features", "reference", "n", "distance"]), {"a": 3.0, "b": 6.0}
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    points, line, *_ = figure.axes[0].lines
    assert list(points.get_xdata()) == [0.1, 0.01]
    assert line.get_ydata()[0] == pytest.approx(0, abs=1e-12) and line.get_ydata()[1] == pytest.approx(0.3)
    with pytest.raises(BadValue, match="no distances"):
        distances_over_n(pd.DataFrame(columns=["features", "reference", "n", "distance"]), {})


def test_point_clouds_and_dots():
    assert len(point_clouds({"one": torch.zeros(3, 2), "two": torch.ones(3, 2)}).axes) == 2
    with pytest.raises(BadValue, match="no points"):
        point_clouds({})
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=["x", "y"])
    figure = change_dots(table, ["a", "b"])
    assert list(figure.axes[1].lines[0].get_xdata()) == [3.0, 4.0]
