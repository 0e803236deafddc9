"""One drawing that depends on a value, shown three ways: a picture, a strip of a few, a player with a slider.

A drawing is a function ``draw(axes, *values)`` that labels its lines and adds no legend. :func:`player` works wherever
scripts run: JupyterLab, once the notebook is trusted, and the site. :func:`strip` is for where they do not.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.animation import FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import legend_below, style

Draw = Callable[..., None]
ICONS = {
    "fa-minus": "−",
    "fa-plus": "+",
    "fa-fast-backward": "|◂",
    "fa-fast-forward": "▸|",
    "fa-step-backward": "◂",
    "fa-step-forward": "▸",
    "fa-play fa-flip-horizontal": "◀",
    "fa-play": "▶",
    "fa-pause": "||",
}
"""Matplotlib's player takes its icons from a font on the network; these need none."""
DPI = 100


@style()
def picture(draw: Draw, *values: Any, size: tuple[float, float] = (7, 4)) -> Figure:
    """The drawing of one set of values, its legend below."""
    figure = Figure(figsize=size)
    draw(figure.subplots(), *values)
    _legend(figure)
    return figure


@style()
def strip(draw: Draw, values: Sequence[Any], size: tuple[float, float] = (2.3, 2.4)) -> Figure:
    """The drawings of a few values side by side, on the same axes.

    Args:
        size: of one of them, in inches.

    Raises:
        BadValue: no value.
    """
    if not len(values):
        raise BadValue("no value to draw; give one or more")
    figure = Figure(figsize=(size[0] * len(values), size[1]))
    panels = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)[0]
    for axes, value in zip(panels, values, strict=True):
        draw(axes, value)
        axes.label_outer()
        if axes is not panels[len(panels) // 2]:
            axes.set_xlabel("")
    _legend(figure)
    return figure


def player(draw: Draw, values: Sequence[Any], alt: str, size: tuple[float, float] = (6.4, 3.9)) -> None:
    """Show the drawings of many values, drawn beforehand, with a slider: matplotlib's ``to_jshtml``.

    It needs scripts and no kernel, and nothing from the network. The cell wants the tag ``nbval-ignore-output``.

    Raises:
        BadValue: no value.
    """
    from IPython.display import display

    text = player_html(draw, values, alt, size)
    display({"text/html": text, "text/plain": f"<Player: {alt}>"}, raw=True)


@style()
def player_html(draw: Draw, values: Sequence[Any], alt: str, size: tuple[float, float] = (6.4, 3.9)) -> str:
    """What :func:`player` shows; the same values give the same text."""
    if not len(values):
        raise BadValue("no value to draw; give one or more")
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.subplots()

    def frame(value: Any) -> list[Any]:
        axes.clear()
        draw(axes, value)
        return []

    frame(values[0])
    _legend(figure)
    animation = FuncAnimation(figure, frame, frames=list(values), init_func=lambda: [], interval=500)
    with matplotlib.rc_context({"savefig.dpi": DPI, "animation.embed_limit": 1.5}):
        text = animation.to_jshtml(default_mode="once")
    text = re.sub(r'<link rel="stylesheet"\s+href="[^"]*">', "", text)
    text = re.sub(r'<i class="fa ([\w -]+)"></i>', lambda match: ICONS[match[1]], text)
    # Random names would make a stored notebook differ from run to run.
    (name,) = set(re.findall(r"_anim_img(\w+)", text))
    text = text.replace(name, hashlib.sha256(alt.encode()).hexdigest()[:16])
    # The first picture stands there before a script runs.
    first = re.search(r'frames\[0\] = "([^"]*)"', text)
    assert first is not None
    source = first[1].replace("\\\n", "").replace("\\n", "")
    return text.replace(
        '<img id="_anim', f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="{source}" id="_anim', 1
    )


def _legend(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        legend_below(figure, handles, names)
