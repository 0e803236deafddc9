"""Figures: what is drawn where, read back from the axes and from the pixels; files and notebook outputs."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from tt_lib.errors import BadValue
from tt_lib.figures import pictures, results, style
from tt_lib.timing import Timing

TIMES = (1.0, 0.8, 0.5, 0.5, 0.2)


def timing(ratio=1.0) -> Timing:
    """A timing of Heun's kind: it asks twice at one time."""
    return Timing("a", tuple(ratio * t for t in TIMES), TIMES, "m", "linear", "heun", {}, "uniform", (1.0, 0.5, 0.2))


def rendered(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(style.png_bytes(figure))).convert("RGB"))


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axes) -> list:
    """The lines that are drawn; seaborn adds empty ones for its legend."""
    return [line for line in axes.lines if len(line.get_xdata())]


def noise(count: int, channels: int = 3, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, channels, size, size), dtype=np.uint8)


# ---- style


def test_fixed_looks_differ_in_colour_marker_and_dashes():
    for values in zip(*style.LOOKS, strict=True):
        assert len(set(values)) == len(style.LOOKS)
    assert len({look.marker for look in style.KINDS.values()}) == len(style.KINDS)


def test_looks_keep_fixed_meanings_and_never_repeat():
    names = ["constant-0.98", "constant-0.95", "untuned", "other", "consistency-parallel-lr0.01", "constant"]
    looks = style.looks(names)
    assert list(looks) == names and len(set(looks.values())) == len(names)
    assert looks["untuned"] == style.FIXED["untuned"] and looks["constant"] == style.FIXED["constant"]
    assert looks["consistency-parallel-lr0.01"] == style.FIXED["consistency-parallel"]
    many = style.looks(f"line {i}" for i in range(28))
    assert len(set(many.values())) == 28
    with pytest.raises(BadValue, match="too many"):
        style.looks(f"line {i}" for i in range(40))


def test_the_style_is_undone_and_pyplot_keeps_no_figure():
    with matplotlib.rc_context({"font.size": 7.5}):
        figure = results.timing_plot({"untuned": timing()})
        assert matplotlib.rcParams["font.size"] == 7.5
    assert pyplot.get_fignums() == []
    assert figure.axes[0].xaxis.label.get_size() == style.STYLE["axes.labelsize"]


@pytest.mark.parametrize(
    "low, high", [(2.8, 3.7), (3.0, 3.0), (0.007, 12), (13.1, 450), (1, 1e6), (101, 103), (4.1, 48)]
)
def test_log_ticks_are_plain_and_enough(low, high):
    axes = matplotlib.figure.Figure().add_subplot()
    style.log_axis(axes, "y", [low, high])
    bottom, top = axes.get_ylim()
    assert bottom < low <= high < top
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert 2 <= len(ticks) <= 12
    assert not any("e" in label.get_text() or "$" in label.get_text() for label in axes.get_yticklabels())


# ---- pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_image_grid_draws_each_pixel_as_whole_pixels(channels, scale):
    pixels = noise(5, channels)
    drawn = rendered(pictures.image_grid(pixels, columns=3, scale=scale))
    side = 2 * scale  # savefig.dpi is twice figure.dpi
    step = 8 * side + 8
    assert drawn.shape[:2] == (2 * step + 8, 3 * step + 8)
    for k, picture in enumerate(pixels):
        top, left = 8 + step * (k // 3), 8 + step * (k % 3)
        whole = np.repeat(np.repeat(picture.transpose(1, 2, 0), side, 0), side, 1)
        assert (drawn[top : top + 8 * side, left : left + 8 * side] == whole).all()
    assert (drawn[-step:, -step:] == 255).all()  # the sixth place is empty


@pytest.mark.parametrize(
    "pixels",
    [noise(2).astype(np.float32), noise(2)[0], noise(2, 2), noise(2)[:0], noise(2).transpose(0, 2, 3, 1)],
)
def test_image_grid_refuses_other_pixels(pixels):
    with pytest.raises(BadValue, match="uint8"):
        pictures.image_grid(pixels)


@pytest.mark.parametrize("options", [{"columns": 0}, {"scale": 0}])
def test_image_grid_refuses_other_options(options):
    with pytest.raises(BadValue, match="at least 1, got 0"):
        pictures.image_grid(noise(2), **options)


def test_compare_rows_labels_rows_of_arrays_or_tensors():
    rows = {"untuned": noise(4), "a much longer name": torch.from_numpy(noise(4))}
    figure = pictures.compare_rows(rows)
    assert [text.get_text() for text in figure.axes[0].texts] == list(rows)
    drawn = rendered(figure)
    assert (drawn[:, :4] == 255).all(), "the longest label is not cut"
    half = len(drawn) // 2
    assert (drawn[:half, -150:] == drawn[half - 4 : -4, -150:]).all()


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"a": noise(4), "b": noise(3)}, "same seeds"),
        ({"a": noise(4), "b": noise(4) / 255}, "row 'b'"),
        ({}, "no rows"),
    ],
)
def test_compare_rows_refuses_rows_that_do_not_match(rows, message):
    with pytest.raises(BadValue, match=message):
        pictures.compare_rows(rows)


# ---- results


def test_timing_plot_draws_ratios_in_the_order_of_the_calls_from_noise_to_data():
    figure = results.timing_plot({"untuned": timing(), "other": timing(0.9)})
    (axes,) = figure.axes
    untuned, other = lines(axes)[:2]
    np.testing.assert_allclose(other.get_ydata(), 0.9)
    np.testing.assert_allclose(other.get_xdata(), TIMES)
    assert untuned.get_color() == style.FIXED["untuned"].color and legend(figure) == ["untuned", "other"]
    left, right = axes.get_xlim()
    assert left > 1 and -0.05 < right < 0
    with pytest.raises(BadValue, match="no row to draw"):
        results.timing_plot({})


# ---- files and outputs


@pytest.fixture
def figure():
    return results.timing_plot({"untuned": timing()})


def test_save_figure_writes_words_and_opaque_white(figure, tmp_path):
    with matplotlib.rc_context({"savefig.transparent": True, "savefig.facecolor": "black"}):
        path = style.save_figure(figure, tmp_path / "new folder" / "a.png", "The  ratio τ/t", "One line\nat one.")
    with Image.open(path) as image:
        assert image.info["Title"] == "The ratio τ/t" and image.info["Description"] == "One line at one."
        assert "Software" not in image.info
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all() and tuple(pixels[0, 0, :3]) == (255, 255, 255)
    assert list(path.parent.iterdir()) == [path]
    first = path.read_bytes()
    style.save_figure(figure, path, "The ratio τ/t", "One line at one.")
    assert path.read_bytes() == first


@pytest.mark.parametrize("name, caption, alt", [("a.png", "", "x"), ("a.png", "x", " \n"), ("a.pdf", "x", "x")])
def test_save_figure_asks_for_words_and_png(figure, tmp_path, name, caption, alt):
    with pytest.raises(BadValue):
        style.save_figure(figure, tmp_path / name, caption, alt)
    assert not list(tmp_path.iterdir())


def test_show_stores_the_text_alternative(figure, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: sent.append((data, options)))
    style.show(figure, 'Under "one" & <two>.')
    (image, options), (words, _) = sent
    stored = options["metadata"]["image/png"]
    assert image["text/plain"] == '<Figure: Under "one" & <two>.>' and stored["alt"] == 'Under "one" & <two>.'
    assert "Under &quot;one&quot; &amp; &lt;two&gt;." in words["text/html"]
    with Image.open(io.BytesIO(base64.b64decode(image["image/png"]))) as png:
        assert png.size == (2 * stored["width"], 2 * stored["height"])
    with pytest.raises(BadValue, match="alt text"):
        style.show(figure, "")


def test_words_of_a_heat_map_are_white_on_dark_colours_alone(figure):
    table = pd.DataFrame([[-1.0, -0.5, 0.0, 0.5, 1.0]])
    axes = figure.subplots()
    style.heat_map(axes, table, table.map(str), 1.0)
    assert [text.get_color() for text in axes.texts] == ["white", "black", "black", "black", "white"]
