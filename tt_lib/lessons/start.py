"""Interactive explorers for the notebooks, each a plain function of its settings with sliders on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from tt_lib.engine import drive
from tt_lib.grids import Grid
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_flow, two_modes_1d

STEPS = (2, 3, 4, 5, 7, 10, 15, 20)
START, END = 0.9, 0.05


def explorer(controls: Sequence[Any], figure: Callable[..., Figure], width: int = 640) -> Any:
    """The controls (ipywidgets) above the figure of their values, which is drawn again when one of them changes.

    Args:
        figure: a function of the controls' values, in their order.
        width: of the picture, in pixels.
    """
    import ipywidgets

    from tt_lib.figures.style import png_bytes

    picture = ipywidgets.Image(format="png", width=width)

    def draw(_change: Any = None) -> None:
        picture.value = png_bytes(figure(*(control.value for control in controls)))

    for control in controls:
        control.observe(draw, names="value")
    draw()
    return ipywidgets.VBox([*controls, picture])


def constant_ratio_errors(ratio: float, steps: Sequence[int] = STEPS, points: int = 65) -> list[float]:
    """How far DDIM with tau = ratio * t ends from the exact end, on a mixture of two Gaussians in one dimension.

    Args:
        ratio: tau / t, the same at every step (tau is kept in the network's range of times).
        steps: numbers of DDIM steps, evenly spaced in time from 0.9 to 0.05.
        points: starting points, spread evenly over the noise's quantiles from 1 % to 99 %.

    Returns:
        Root mean square distance over the points, one number for each of ``steps``.
    """
    schedule = linear_betas()
    mixture = two_modes_1d()
    predictor = MixturePredictor(mixture, schedule)
    quantiles = torch.linspace(0.01, 0.99, points, dtype=torch.float64)
    start = torch.special.ndtri(quantiles)[:, None]
    exact = exact_flow(mixture, start, START, END, schedule, rtol=1e-8)
    errors = []
    for count in steps:
        grid = Grid("even", tuple(torch.linspace(START, END, count + 1, dtype=torch.float64).tolist()))
        taus = [min(max(ratio * t, schedule.t_min), 1.0) for t in grid.times[:-1]]
        end = drive(make_solver("ddim")(start, grid, schedule), predictor, taus).x
        errors.append((end - exact).square().mean().sqrt().item())
    return errors


def ratio_figure(ratios: Sequence[float], steps: Sequence[int] = STEPS) -> Figure:
    """A figure of :func:`constant_ratio_errors` against the number of steps, one line a ratio."""
    from tt_lib.figures.style import line_styles, style

    with style():
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
        named = {f"tau / t = {ratio:g}": ratio for ratio in ratios}
        for index, (label, drawn) in enumerate(line_styles(list(named)).items()):
            # Marked apart by shape too, so that the figure reads without colours.
            drawn = drawn._replace(marker="osD^vPX*"[index % 8])
            axes.plot(steps, constant_ratio_errors(named[label], steps), label=label, **drawn._asdict())
        axes.set(xscale="log", yscale="log", xlabel="DDIM steps", ylabel="RMS distance from the exact end")
        axes.set_xticks(list(steps), [str(count) for count in steps])
        axes.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
        axes.minorticks_off()
        axes.legend()
    return figure


def ratio_explorer() -> Any:
    """A slider for one constant ratio tau / t, and the figure that it gives beside that of tau = t."""
    import ipywidgets

    slider = ipywidgets.FloatSlider(value=0.97, min=0.85, max=1.15, step=0.01, description="tau / t")
    return explorer([slider], lambda ratio: ratio_figure([1.0] if ratio == 1 else [1.0, ratio]))
