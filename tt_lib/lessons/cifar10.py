"""Notebook 04: the timings that are shipped for the CIFAR-10 network, and the losses of one of its steps."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.errors import choose
from tt_lib.figures.style import BLACK, GREY, legend_below, style
from tt_lib.lessons.tuner import COLOURS
from tt_lib.study.cells import Cell, require_timing
from tt_lib.study.compare import MODEL
from tt_lib.timing import Timing

SOLVERS, GRIDS, NFES = ("ddim", "dpmpp-2m,final=lower", "unipc,final=lower"), ("quadratic", "uniform"), (5, 10)
SAMPLERS = [f"{solver} {grid} {nfe}" for solver in SOLVERS for grid in GRIDS for nfe in NFES]
"""The samplers that :func:`draw_timings` knows: solver, grid and number of evaluations."""
ALT = {
    "ten": "Three rows of four pictures, each column from one noise. Untuned: pale and blurred; the first and the last "
    "show no clear object. Tuned: the same four with more contrast; the first and the last are now cars. Converged: "
    "the same motifs, sharper.",
    "differences": "Two rows of difference pictures, black where a sample equals the converged one. The untuned row is "
    "bright in large areas, the tuned row mostly darker, with bright outlines.",
    "scan": "Two panels, a thin line for each of four images and a thick one for the mean loss, against the ratio of "
    "the first of five steps. Truncation: all lines have their minimum near 0.93, the mean at about a third of its "
    "value at 1. At the ratio shipped by consistency, 1.08, it is above 2. Consistency: the mean is nearly flat from "
    "0.92 to 1.15 and lowest at 1; one line has its minimum far below 1, the others near it, on both sides.",
    "strip": "Three panels, tau / t of each evaluation. DDIM with 5 quadratic steps: consistency begins at 1.08, "
    "truncation at 0.92. With 10: both begin below 1, consistency at 0.89, and return to 1; the last but one is above "
    "1 by consistency, far below by truncation. DPM-Solver++(2M), 5 uniform steps: consistency jumps to 1.3 at the "
    "last but one.",
    "player": "tau / t of each evaluation by both objectives; the slider goes through twelve samplers, three solvers "
    "on two grids with 5 and 10 evaluations.",
    "five": "Four rows of four pictures, each column from one noise. Untuned with five evaluations: pale and blurred. "
    "Tuned by consistency: paler still. Tuned by truncation: more contrast, but blurred. Converged: sharp, full of "
    "contrast, two cars among them.",
}
"""What the figures show, in words."""


@style()
def scan_figure(ratios: Tensor, losses: Mapping[str, Tensor]) -> Figure:
    """Losses of a step over tau / t, a thin line for each image and a thick one for the mean, as shares of untuned.

    The step is the first of five quadratic ones: the ratios that are shipped for it are marked.

    Args:
        ratios: [P], rising, 1 among them.
        losses: [P, images] by the names of :data:`tt_lib.lessons.tuner.COLOURS`.
    """
    figure = Figure(figsize=(9, 3.9))
    panels = figure.subplots(1, 2, sharey=True)
    untuned, legend = int((ratios - 1).abs().argmin()), {}
    for axes, (name, each) in zip(panels, losses.items(), strict=True):
        colour, line, marker = COLOURS[name]
        axes.axvline(1, color=BLACK, linewidth=1)
        legend["one image"] = axes.plot(ratios, each / each[untuned], color=GREY, linewidth=0.9, alpha=0.8)[0]
        share = each.mean(1) / each[untuned].mean()
        legend[f"mean {name} loss"] = axes.plot(ratios, share, color=colour, linestyle=line, linewidth=3)[0]
        lowest = int(share.argmin())
        axes.plot(ratios[lowest], share[lowest], color=colour, marker=marker, markersize=13)
        axes.plot(1, 1, "o", color=BLACK, markersize=5)
        for objective, (other, _, _) in COLOURS.items():
            ratio = shipped("ddim quadratic 5", objective).ratios[0]
            mark = axes.axvline(ratio, color=other, linestyle=":", linewidth=2)
            legend[f"shipped, tuned by {objective}"] = mark
        axes.set(title=f"{name} loss", xlabel="ratio τ / t", ylim=(0, 3), xlim=(ratios[0], ratios[-1]))
    panels[0].set_ylabel("loss (1 = untuned)")
    legend_below(figure, list(legend.values()), list(legend))
    return figure


def shipped(sampler: str, objective: str) -> Timing:
    """The timing that is shipped for one of :data:`SAMPLERS`, tuned in parallel by an objective.

    Raises:
        BadValue: another sampler.
    """
    choose("sampler", sampler, SAMPLERS)
    solver, grid, nfe = sampler.split(" ")
    timing = require_timing(MODEL, Cell(solver, grid, int(nfe), f"{objective}-parallel"))
    assert timing is not None
    return timing


def draw_timings(axes: Axes, sampler: str) -> None:
    """tau / t of each evaluation of one of :data:`SAMPLERS`, tuned by either objective."""
    axes.axhline(1, color=BLACK, linewidth=1, label="untuned")
    for objective, (colour, line, marker) in COLOURS.items():
        ratios = shipped(sampler, objective).ratios
        steps = range(1, len(ratios) + 1)
        axes.plot(steps, ratios, color=colour, linestyle=line, marker=marker, label=f"{objective} loss")
    solver, grid, nfe = sampler.split(" ")
    axes.set(ylim=(0.65, 1.35), xlim=(0.5, 10.5), xticks=[1, 5, 10])
    axes.set(xlabel="evaluation (1 is in the noise)", ylabel="τ / t", title=f"{solver.split(',')[0]}, {grid}, {nfe}")
