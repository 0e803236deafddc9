"""Notebook 00: one step whose end follows the conditioning time, samples beside converged ones, and two rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from matplotlib.axes import Axes
from torch import Tensor

from tt_lib.errors import check_range
from tt_lib.figures.style import BLACK, BLUE, GREEN, ORANGE, VERMILLION
from tt_lib.schedules import linear_betas
from tt_lib.toy import exact_trajectory, two_modes_1d

T, S, START = 0.5, 0.1, 0.4
"""The step of :func:`draw_step`: its two times, and the state x that it starts from."""
RATIOS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
LARGEST = 1.3
AMPLIFIED = 4
"""Differences of :func:`differences` are shown so many times as large as they are."""
ALT = {
    "samples": "Four rows of four pictures of 32 by 32 pixels, enlarged, each column from one noise. The untuned row "
    "is pale and blurred. The tuned row has the same motifs and more contrast. The learned row shows the motifs of the "
    "converged row, two cars among them, as crisp and with a little more contrast.",
    "differences": "Three rows of grey difference pictures, black where a sample equals the converged one. The untuned "
    "row is brightest, the tuned row darker. The learned row is darkest, with some grey in its second picture.",
    "step": "A curved black path over rho, from noise on the left to nearly clean data on the right. A straight dashed "
    "line leaves it at its start, as its tangent, and lands far below the end of the path. An upright bar beside the "
    "two ends marks the gap between them.",
    "player": "The same path and its tangent, and a second straight line: the step conditioned on another time. The "
    "slider sets tau / t from 0.6 to 1.05. Below 1 the line lands higher. Near 0.75 it lands where the path ends, "
    "and further down it lands too high. The bar of the gap shrinks and grows again.",
    "strip": "Five panels of the end of the step, tau / t of 0.6, 0.7, 0.8, 0.9 and 1. The second line lands far above "
    "the end of the path, a little above it, a little below it, farther below it, and at 1 it is the tangent itself. "
    "The bar of the gap is shortest at 0.7 and 0.8.",
    "harm": "Three rows of four pictures from the same noise, all in five steps. Untuned: pale and blurred. Tuned by "
    "consistency: the same motifs, paler still. Tuned by truncation: more contrast and stronger colours.",
}
"""What the figures show, in words."""


@cache
def _path() -> tuple[Tensor, Tensor]:
    """rho [P] and y [P] along the true path of the step."""
    schedule, times = linear_betas(), torch.linspace(T, S, 201, dtype=torch.float64)
    x = exact_trajectory(two_modes_1d(), torch.tensor([[START]], dtype=torch.float64), times, schedule)[:, 0, 0]
    return schedule.rho(times), x / schedule.alpha(times)


def step_end(ratio: float) -> float:
    """Where the step lands, in y, if the network is conditioned on tau = ratio * t.

    Raises:
        BadValue: a ratio that is not above 0 or beyond :data:`LARGEST`.
    """
    check_range("ratio tau / t", ratio, 0.01, LARGEST)
    schedule, (rho, y) = linear_betas(), _path()
    state = torch.tensor([[START]], dtype=torch.float64)
    eps = two_modes_1d().eps(state, torch.tensor(ratio * T, dtype=torch.float64), schedule)[0, 0]
    return (y[0] + (rho[-1] - rho[0]) * eps).item()


def draw_step(axes: Axes, ratio: float = 1.0) -> None:
    """The true path of one step, its tangent, and the step that is conditioned on tau = ratio * t."""
    rho, y = _path()
    ends, start = [rho[0].item(), rho[-1].item()], y[0].item()
    tangent, landed = step_end(1.0), step_end(ratio)
    beside = [ends[1] - 0.14] * 2
    axes.plot(
        beside, [landed, y[-1].item()], color=ORANGE, linewidth=5, solid_capstyle="butt", label="error of the step"
    )
    axes.plot(rho, y, color=BLACK, label="the true path")
    axes.plot(ends, [start, tangent], color=VERMILLION, linestyle="--", label="untuned step: the tangent")
    axes.plot(ends[1], tangent, "X", color=VERMILLION, markersize=9)
    if ratio != 1:
        axes.plot(ends, [start, landed], color=BLUE, linestyle=(0, (9, 1.5)), label="step conditioned on τ")
        axes.plot(ends[1], landed, "D", color=BLUE, markersize=8)
    axes.plot(ends[0], start, "o", color=BLACK, markersize=9, label="start")
    axes.plot(ends[1], y[-1], "*", color=GREEN, markersize=14, label="right end")
    axes.set(xlabel="ρ = σ/α (noise left, data right)", ylabel="y = x/α", xlim=(3.6, 0.1), ylim=(0.3, 1.55))
    axes.set_title("τ = t" if ratio == 1 else f"τ = {ratio:g} t")


def draw_end(axes: Axes, ratio: float = 1.0) -> None:
    """:func:`draw_step`, its end only."""
    draw_step(axes, ratio)
    next(line for line in axes.lines if line.get_label() == "start").remove()
    axes.set(xlim=(1.5, 0.1))


def differences(samples: Mapping[str, Tensor], converged: Tensor) -> dict[str, Tensor]:
    """What samples [N, C, H, W] in [-1, 1] differ by from converged ones, as grey pictures: uint8 [N, 1, H, W].

    Black is no difference. It is :data:`AMPLIFIED` times the absolute difference, mean over colours; what would be
    brighter than white is white.
    """
    gaps = {name: (x.clamp(-1, 1) - converged.clamp(-1, 1)).abs() for name, x in samples.items()}
    wide = {name: AMPLIFIED * gap.mean(1, keepdim=True) for name, gap in gaps.items()}
    return {name: (255 / 2 * each).clamp(0, 255).round().to(torch.uint8) for name, each in wide.items()}
