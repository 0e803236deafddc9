"""Notebook 03: what one conditioning time can repair, by the losses of one DDIM step over tau on toys."""

from __future__ import annotations

from typing import Any, NamedTuple

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, choose
from tt_lib.figures.style import BLACK, BLUE, GREY, VERMILLION, legend_below, style
from tt_lib.lessons.kit import explorer
from tt_lib.schedules import linear_betas
from tt_lib.solvers.ddim import ddim
from tt_lib.toy import GaussianMixture, MixturePredictor, exact_flow, ring_2d, single_gaussian, two_modes_1d
from tt_lib.tuning.objectives import squared_distance

TOYS: dict[str, GaussianMixture] = {
    "one Gaussian at 0": single_gaussian(0.0, 0.25),
    "one Gaussian at 0.5": single_gaussian(0.5, 0.25),
    "two modes": two_modes_1d(),
    "ring of eight": ring_2d(),
}
SAMPLES = 256
LOWEST = 0.02
"""The smallest tau that is tried."""


class StepLosses(NamedTuple):
    """Losses of one step for each tau that its network may be conditioned on; all float64."""

    taus: Tensor
    """[P], rising, the step's own time among them."""
    truncation: Tensor
    """[P], squared distance from the true end, mean over samples."""
    consistency: Tensor
    """[P], the paper's objective."""
    untuned: int
    """Where in ``taus`` the step's own time is."""

    def left(self, at: int) -> float:
        """The step's squared error with the tau at this place, as a share of its error without tuning."""
        return (self.truncation[at] / self.truncation[self.untuned]).item()


def step_losses(toy: str, t: float, s: float, points: int = 200) -> StepLosses:
    """Both objectives of one DDIM step from t to s, on diffused samples of a toy, over tau from :data:`LOWEST` to 1.

    Raises:
        BadValue: no such toy, or times that do not fall.
    """
    choose("toy", toy, tuple(TOYS))
    if not LOWEST < s < t < 1:
        raise BadValue(f"a step goes from a later time to an earlier one in ({LOWEST}, 1), got t = {t} and s = {s}")
    mixture, schedule = TOYS[toy], linear_betas()
    predictor = MixturePredictor(mixture, schedule)
    generator = torch.Generator().manual_seed(0)
    times = torch.tensor([t, s], dtype=torch.float64)
    noise = torch.randn(SAMPLES, mixture.dim, generator=generator, dtype=torch.float64)
    x = schedule.alpha(times[0]) * mixture.sample(SAMPLES, generator) + schedule.sigma(times[0]) * noise
    true, before = exact_flow(mixture, x, times[0], times[1], schedule), predictor(x, times[0], times[0])
    taus = torch.cat([torch.linspace(LOWEST, 1, points, dtype=torch.float64), times[:1]]).sort().values
    truncation, consistency = [], []
    for tau in taus:
        end = drive(ddim(x, times, schedule, None), predictor, [tau.item()]).x
        truncation.append(squared_distance(end, true).mean())
        consistency.append(squared_distance(predictor(end, times[1], times[1]), before).mean())
    return StepLosses(taus, torch.stack(truncation), torch.stack(consistency), int((taus == times[0]).nonzero()[0]))


@style()
def losses_figure(toy: str, t: float, s: float) -> Figure:
    """:func:`step_losses` drawn, each as a share of its value at tau = t, with its minimum."""
    losses = step_losses(toy, t, s)
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    axes.axvline(t, color=BLACK, linewidth=1, label=f"tau = t = {t:g}: untuned")
    axes.axvline(s, color=GREY, linewidth=1, linestyle=":", label=f"s = {s:g}: end of the step")
    for name, colour, line, marker in (("truncation", BLUE, "-", "D"), ("consistency", VERMILLION, "--", "^")):
        share = getattr(losses, name) / getattr(losses, name)[losses.untuned]
        place = int(share.argmin())
        axes.plot(losses.taus, share, color=colour, linestyle=line, label=name)
        axes.plot(losses.taus[place], share[place], color=colour, marker=marker, markersize=9)
    axes.set(xlabel="tau, the time that the network is conditioned on", ylabel="loss of the step\n(1 = untuned)")
    axes.set(xlim=(0, 1), ylim=(0, 2), title=toy)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def tuner_explorer() -> Any:
    """A choice of the toy, sliders for the step's times, and :func:`losses_figure`."""
    toy = ipywidgets.Dropdown(options=list(TOYS), value="two modes", description="data")
    slider = {"step": 0.02, "continuous_update": False}
    t = ipywidgets.FloatSlider(value=0.42, min=0.2, max=0.9, description="t", **slider)
    length = ipywidgets.FloatSlider(value=0.16, min=0.02, max=0.6, description="t - s", **slider)
    return explorer([toy, t, length], lambda toy, t, length: losses_figure(toy, t, max(t - length, 2 * LOWEST)))
