"""Figures: what is drawn where, read back from the axes and from the pixels; files and notebook outputs."""

from __future__ import annotations

import base64
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from tt_lib.errors import BadValue
from tt_lib.figures import pictures, results, style

TIMES = np.linspace(1, 0, 6)


def rendered(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(style.png_bytes(figure))).convert("RGB"))


def noise(count: int, channels: int = 3, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, channels, size, size), dtype=np.uint8)


def fd_rows(**changes) -> pd.DataFrame:
    base = {
        "dataset": "cifar10",
        "model": "m",
        "solver": "ddim",
        "grid": "uniform",
        "nfe": 10,
        "eta": 0.0,
        "timing": "untuned",
        "metric": "FD",
        "features": "classifier",
        "reference": "test",
        "n": 1000,
        "value": 4.0,
        "low": 3.9,
        "high": 4.2,
    }
    frame = pd.DataFrame(
        {**base, "timing": timing, "nfe": nfe, "value": value, "low": value - 0.1, "high": value + 0.2}
        for timing, values in {"untuned": (9.9, 3.7), "truncation-parallel": (7.0, 3.1)}.items()
        for nfe, value in zip((5, 10), values, strict=True)
    )
    return frame.assign(**changes)


def fd_line(word: str, value: float, **changes) -> pd.DataFrame:
    return fd_rows(solver=word, grid="", timing="untuned", value=value).head(1).assign(**changes)


# ---- style


def test_importing_the_module_neither_chooses_a_backend_nor_loads_pyplot():
    code = (
        "import sys, tt_lib.figures.style as p, tt_lib.figures.results as r; t = [1.0, 0.5]; p.png_bytes(r.timing_plot({'untuned': (t, t)}));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_fixed_names_differ_in_colour_marker_and_dashes():
    for values in zip(*style.LINE_STYLES.values(), strict=True):
        assert len(set(values)) == len(style.LINE_STYLES)
    assert set(style.LINE_STYLES) <= set(style.COLOURS)


def test_line_styles_keep_fixed_meanings_and_never_repeat():
    names = ["constant-0.98", "constant-0.95", "untuned", "mine", "consistency-parallel-lr0.01", "constant"]
    found = style.line_styles(names)
    assert list(found) == names
    assert found["untuned"] == style.LINE_STYLES["untuned"]
    assert found["constant"] == style.LINE_STYLES["constant"]
    assert found["consistency-parallel-lr0.01"] == style.LINE_STYLES["consistency-parallel"]
    assert len(set(found.values())) == len(names)
    with pytest.raises(BadValue, match="too many"):
        style.line_styles([f"line {i}" for i in range(40)])


def test_style_is_undone_and_apply_style_stays():
    with matplotlib.rc_context():
        matplotlib.rcParams["font.size"] = 7.5
        with style.style():
            assert matplotlib.rcParams["savefig.transparent"] is False
            assert matplotlib.rcParams["font.size"] == style.STYLE["font.size"]
        assert matplotlib.rcParams["font.size"] == 7.5
        style.apply_style()
        assert matplotlib.rcParams["figure.facecolor"] == "white"


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


def test_image_grid_takes_tensors_and_titles():
    figure = pictures.image_grid(
        torch.from_numpy(noise(3)), columns=2, titles=["a", "b", "a long title, wider than it"]
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b", "a long title, wider than it"]
    assert (
        rendered(figure) == rendered(pictures.image_grid(noise(3), 2, ["a", "b", "a long title, wider than it"]))
    ).all()


@pytest.mark.parametrize(
    "pixels",
    [noise(2).astype(np.float32), noise(2)[0], noise(2, 2), noise(2)[:0], noise(2).transpose(0, 2, 3, 1)],
)
def test_image_grid_refuses_other_pixels(pixels):
    with pytest.raises(BadValue, match="uint8"):
        pictures.image_grid(pixels)


def test_image_grid_refuses_other_arguments():
    for arguments in ({"titles": ["one"]}, {"columns": 0}, {"scale": 0}):
        with pytest.raises(BadValue):
            pictures.image_grid(noise(2), **arguments)


def test_compare_rows_labels_rows_and_columns():
    figure = pictures.compare_rows({"untuned": noise(4), "a much longer name": noise(4)}, column_titles=list("abcd"))
    assert [text.get_text() for text in figure.axes[0].texts] == [*"abcd", "untuned", "a much longer name"]
    drawn = rendered(figure)
    assert (drawn[:, :4] == 255).all()  # the longest label is not cut
    assert len(figure.axes[0].images) == 8


def test_compare_rows_refuses_rows_that_do_not_match():
    with pytest.raises(BadValue, match="same seeds"):
        pictures.compare_rows({"a": noise(4), "b": noise(3)})
    with pytest.raises(BadValue, match="row 'b'"):
        pictures.compare_rows({"a": noise(4), "b": noise(4) / 255})
    with pytest.raises(BadValue):
        pictures.compare_rows({})
    with pytest.raises(BadValue, match="column titles"):
        pictures.compare_rows({"a": noise(4)}, column_titles=["x"])


# ---- plots


def test_timing_plot_draws_ratios_from_noise_to_data():
    figure = results.timing_plot({"untuned": (TIMES, TIMES[:-1]), "constant": (TIMES[:-1], 0.9 * TIMES[:-1])})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["constant"].get_ydata(), 0.9)
    np.testing.assert_allclose(lines["constant"].get_xdata(), TIMES[:-1])
    assert lines["untuned"].get_color() == style.COLOURS["untuned"]
    left, right = axes.get_xlim()
    assert left > 1 and -0.05 < right < 0  # noise on the left, and room for a marker at the data end
    assert "1 = noise, 0 = data" in axes.get_xlabel()


@pytest.mark.parametrize("timing", [(TIMES, TIMES), (TIMES, TIMES[:3]), (TIMES[:2], TIMES[:3]), (TIMES[None], TIMES)])
def test_timing_plot_refuses_times_that_do_not_match(timing):
    with pytest.raises(BadValue, match="'mine'"):
        results.timing_plot({"mine": timing})


def test_tuning_history_draws_a_line_for_each_step():
    rows = [
        {"step": k, "iteration": i, "loss": 10.0**k / (1 + i), "tau": t * (1 + 0.01 * i), "t": t}
        for k, t in enumerate((1.0, 0.5))
        for i in range(4)
    ]
    figure = results.tuning_history(pd.DataFrame(rows[::-1]))
    loss, ratio = figure.axes[:2]
    np.testing.assert_allclose(
        [line.get_ydata() for line in loss.lines], [[1, 1 / 2, 1 / 3, 1 / 4]] * np.array([[1], [10]])
    )
    np.testing.assert_allclose(ratio.lines[-1].get_ydata(), [1, 1.01, 1.02, 1.03])
    assert loss.get_yscale() == "log"
    style.png_bytes(results.tuning_history(pd.DataFrame(rows[:1]).assign(loss=0.0)))
    with pytest.raises(BadValue, match="lacks the columns tau"):
        results.tuning_history(pd.DataFrame(rows).drop(columns="tau"))
    with pytest.raises(BadValue, match="no row"):
        results.tuning_history(pd.DataFrame(rows).head(0))


def test_fd_against_nfe_draws_values_and_intervals():
    figure = results.fd_against_nfe(
        pd.concat([fd_rows(), fd_line("ceiling", 2.9), fd_line("floor", 2.0, n=50, model="")])
    )
    (axes,) = figure.axes
    assert axes.get_title() == "ddim · uniform"
    assert axes.get_ylabel() == "Fréchet distance\n(classifier features)"
    untuned = next(bar for bar in axes.containers if bar.lines[0].get_color() == style.COLOURS["untuned"])
    np.testing.assert_allclose(untuned.lines[0].get_ydata(), [9.9, 3.7])
    np.testing.assert_allclose(untuned.lines[0].get_xdata(), [5, 10], rtol=0.02)
    np.testing.assert_allclose(untuned.lines[2][0].get_segments()[0][:, 1], [9.8, 10.1])
    level = {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert {2.9, 2.0} <= level
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["untuned", "truncation-parallel", "ceiling", "floor"]
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10"]
    assert all(label.get_text() in {"2", "3", "5", "7", "10"} for label in axes.get_yticklabels())


def test_fd_against_nfe_has_a_panel_for_each_solver_eta_and_grid():
    frame = pd.concat(
        [
            fd_rows(),
            fd_rows(eta=1.0),
            fd_rows(solver="euler"),
            fd_rows(grid="quadratic"),
            fd_line("ceiling", 2.9, solver="ddim", grid="ceiling", eta=0.0),
        ]
    )
    figure = results.fd_against_nfe(frame.assign(metric="FID"))
    seen = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert set(seen) == {
        "ddim, η = 0 · uniform",
        "ddim, η = 1 · uniform",
        "ddim, η = 0 · quadratic",
        "euler · uniform",
    }
    with_ceiling = {t for t, axes in seen.items() if any(list(line.get_ydata()) == [2.9, 2.9] for line in axes.lines)}
    assert with_ceiling == {"ddim, η = 0 · uniform", "ddim, η = 0 · quadratic"}
    assert {axes.get_ylabel() for axes in seen.values()} == {"FID", ""}


def test_fd_against_nfe_refuses_what_cannot_be_compared():
    for column, other in {
        "features": "inception",
        "model": "x",
        "n": 50,
        "reference": "train",
        "dataset": "y",
    }.items():
        with pytest.raises(BadValue, match=f"differ in {column}"):
            results.fd_against_nfe(pd.concat([fd_rows(), fd_rows(timing="search", **{column: other})]))
    with pytest.raises(BadValue, match="several rows"):
        results.fd_against_nfe(pd.concat([fd_rows(), fd_rows()]))
    with pytest.raises(BadValue, match="ceilings and floors"):
        results.fd_against_nfe(fd_line("ceiling", 3))
    with pytest.raises(BadValue, match="lacks the columns eta"):
        results.fd_against_nfe(fd_rows().drop(columns="eta"))


def test_fd_without_interval_is_drawn_without_bars():
    figure = results.fd_against_nfe(fd_rows(low=np.nan, high=np.nan))
    assert np.isfinite(figure.axes[0].containers[0].lines[0].get_ydata()).all()
    style.png_bytes(figure)


@pytest.mark.parametrize("low, high", [(2.8, 3.7), (3.0, 3.0), (0.007, 12), (13.1, 450), (1, 1e6), (101, 103)])
def test_log_ticks_are_plain_and_enough(low, high):
    axes = matplotlib.figure.Figure().add_subplot()
    style._plain_log_axis(axes, "y", low, high)
    ticks = axes.get_yticks()
    assert 2 <= len(ticks) <= 12
    assert axes.get_ylim()[0] < low <= high < axes.get_ylim()[1]
    assert not any("e" in label.get_text() or "$" in label.get_text() for label in axes.get_yticklabels())


# ---- files and outputs


@pytest.fixture
def figure():
    return results.timing_plot({"untuned": (TIMES, TIMES[:-1])})


def test_save_figure_writes_words_and_opaque_white(figure, tmp_path):
    path = style.save_figure(figure, tmp_path / "new folder" / "a.png", "The  ratio τ/t", "One line\nat one.")
    with Image.open(path) as image:
        assert image.info["Title"] == "The ratio τ/t"
        assert image.info["Description"] == "One line at one."
        assert "Software" not in image.info
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert tuple(pixels[0, 0, :3]) == (255, 255, 255)
    assert list(path.parent.iterdir()) == [path]
    first = path.read_bytes()
    style.save_figure(figure, path, "The ratio τ/t", "One line at one.")
    assert path.read_bytes() == first


def test_figure_is_white_whatever_the_reader_s_own_style_is(figure, tmp_path):
    with matplotlib.rc_context({"savefig.transparent": True, "savefig.facecolor": "black"}):
        path = style.save_figure(figure, tmp_path / "a.png", "c", "a")
    with Image.open(path) as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_save_figure_asks_for_words_and_png(figure, tmp_path):
    for name, caption, alt in [("a.png", "", "x"), ("a.png", "x", " \n"), ("a.pdf", "x", "x")]:
        with pytest.raises(BadValue):
            style.save_figure(figure, tmp_path / name, caption, alt)
    assert not list(tmp_path.iterdir())


def test_figure_markdown():
    assert style.figure_markdown("docs/a.png", "Caption.", "A [b] c") == "![A \\[b\\] c](docs/a.png)\n\n*Caption.*\n"
    assert "(<my docs/a.png>)" in style.figure_markdown("my docs/a.png", "c", "a")


def test_show_stores_the_text_alternative(figure, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: sent.append((data, options)))
    style.show(figure, 'Under "one" & <two>.')
    (image, options), (words, _) = sent
    assert image["text/plain"] == '<Figure: Under "one" & <two>.>'
    assert options["metadata"]["image/png"]["alt"] == 'Under "one" & <two>.'
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert "Under &quot;one&quot; &amp; &lt;two&gt;." in words["text/html"]
    with Image.open(io.BytesIO(base64.b64decode(image["image/png"]))) as png:
        assert png.size == (
            2 * options["metadata"]["image/png"]["width"],
            2 * options["metadata"]["image/png"]["height"],
        )
    style.show(figure, "again", described=False)
    assert len(sent) == 3
    with pytest.raises(BadValue, match="alt text"):
        style.show(figure, "")


def test_colours_are_the_palette_s():
    palette = {
        style.BLACK,
        style.ORANGE,
        style.SKY,
        style.GREEN,
        style.BLUE,
        style.VERMILLION,
        style.PURPLE,
        style.GREY,
    }
    assert set(style.COLOURS.values()) <= palette
    assert all(len(to_rgb(colour)) == 3 for colour in palette)
