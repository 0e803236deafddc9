"""Solvers laid open: what each step is made of, how fast errors fall, what noise does to a Gaussian, and the figures of these.

A solver is a generator, so it can be driven by anything that answers. Answered by unit vectors, it gives its coefficients; answered
by the exact eps of a toy, its error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from tt_lib.engine import Request, drive
from tt_lib.errors import BadValue, choose
from tt_lib.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, LineStyle, style
from tt_lib.grids import make_grid
from tt_lib.lessons.start import explorer
from tt_lib.predictors import to_eps
from tt_lib.schedules import ContinuousLinearVP, Schedule, linear_betas
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d, two_modes_1d

START, END = 0.9, 0.1
"""Times between which weights are shown and orders measured: both ends of lambda are finite there."""
KINDS = {"eps": "answers eps", "x0": "data predictions x0"}
SPACINGS = ("even in lambda", "even in rho", "even in t", "long and short")
LADDER = (20, 40, 80, 160, 320)
SATURATED = 2.0
"""Weights beyond this have the map's last colour."""
LOOKS = [
    LineStyle(BLACK, "o", "-"),
    LineStyle(PURPLE, "s", (0, (5, 1.5))),
    LineStyle(BLUE, "D", "-"),
    LineStyle(VERMILLION, "^", (0, (6, 1.5, 1, 1.5))),
    LineStyle(SKY, "v", "-"),
    LineStyle(GREEN, "P", (0, (3, 1))),
    LineStyle(ORANGE, "X", "-"),
    LineStyle(GREY, "*", (0, (1.5, 1.5))),
    LineStyle(GREEN, "<", "-"),
    LineStyle(VERMILLION, "h", (0, (9, 1.5))),
]
FIXED = {
    "ddim": 0,
    "heun": 1,
    "dpmpp-2m": 2,
    "plms": 3,
    "ipndm-v": 4,
    "unipc": 5,
    "deis-tab": 6,
    "dpmpp-3m": 7,
    "dpmpp-3m,variant=exact": 8,
}
"""A solver looks alike in every figure; others take what is free."""


def float64(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def spaced(spacing: str, steps: int, schedule: Schedule, start: float = START, end: float = END) -> Tensor:
    """A grid's times [steps + 1] from ``start`` to ``end``: even in lambda, rho or t, or long and short steps in turn.

    The last is even in lambda but for its steps, of which every second is three times as long as the one before, however many there are.

    Raises:
        BadValue: no such spacing, or no step.
    """
    choose("spacing", spacing, SPACINGS)
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    ends = float64([start, end])
    if spacing == "even in t":
        return torch.lerp(ends[0], ends[1], place)
    if spacing == "even in rho":
        rho = schedule.rho(ends)
        times = schedule.time_of_lam(-torch.lerp(rho[0], rho[1], place).log())
    else:
        if spacing == "long and short":
            lengths = float64([1.0, 3.0] * steps)[:steps].cumsum(0)
            place = torch.cat([torch.zeros_like(place[:1]), lengths / lengths[-1]])
        lam = schedule.lam(ends)
        times = schedule.time_of_lam(torch.lerp(lam[0], lam[1], place))
    return torch.cat([ends[:1], times[1:-1], ends[1:]])


def with_run_up(times: Tensor, schedule: Schedule) -> Tensor:
    """The grid with its first step cut into ever shorter ones in lambda, each half of the next.

    A multistep solver begins with steps of low order. Cut so finely (two halvings for every doubling of the steps) their errors are
    smaller than those of order 4.
    """
    lam, count = schedule.lam(times[:2]), 2 * math.ceil(math.log2(len(times) - 1))
    places = torch.exp2(torch.arange(-count, 0, dtype=torch.float64))
    return torch.cat([times[:1], schedule.time_of_lam(torch.lerp(lam[0], lam[1], places)), times[1:]])


# ---- what solvers are


def evaluations(solver: Solver, times: Tensor, schedule: Schedule) -> list[Request]:
    """The requests of one run, made with a network that answers nothing but zeros. (An analytic solver must have its gamma.)"""
    start = torch.zeros(1, 1, dtype=torch.float64)
    return drive(
        solver(start, times, schedule, torch.zeros_like), lambda x, t, tau: torch.zeros_like(x), keep=True
    ).trajectory


def per_step(requests: Sequence[Request]) -> list[int]:
    """How many evaluations each step makes: a step begins with stage 0."""
    counts: list[int] = []
    for request in requests:
        counts = [*counts, 1] if request.stage == 0 else [*counts[:-1], counts[-1] + 1]
    return counts


def with_gamma(solver: Solver, steps: int) -> Solver:
    """A solver that needs gamma, with ones; any other as it is."""
    return make_solver(solver.name, **{**solver.options, "gamma": (1.0,) * steps}) if solver.needs_gamma else solver


def smallest_budget(solver: Solver, schedule: Schedule, most: int = 50) -> int:
    """The smallest number of evaluations that the solver can be asked for, tried one after the other and counted by the engine."""
    for nfe in range(1, most):
        try:
            fitted, steps = solver.for_nfe(nfe)
        except BadValue:
            continue
        times = float64(make_grid("logsnr", steps, schedule).times)
        if len(evaluations(with_gamma(fitted, steps), times, schedule)) == nfe:
            return nfe
    raise BadValue(f"{solver.name} spends no budget below {most} exactly")


def registry_table(steps: int = 6) -> pd.DataFrame:
    """Every solver of the registry on one grid of ``steps`` that ends at clean data: what the engine counts, and what it is like.

    Columns: solver, its ``family``, ``each step`` (evaluations of each step in turn), ``NFE`` (their number), ``smallest NFE``, and
    ``same as`` (the first name of the same function).
    """
    schedule, rows = linear_betas(), []
    times = float64(make_grid("logsnr", steps, schedule).times)
    first: dict[Any, str] = {}
    for name, solver in SOLVERS.items():
        counts = per_step(evaluations(with_gamma(solver, steps), times, schedule))
        same = first.setdefault(solver.function, name)
        rows.append(
            {
                "solver": name,
                "family": family(solver, counts),
                "each step": " ".join(map(str, counts)),
                "NFE": sum(counts),
                "smallest NFE": smallest_budget(solver, schedule),
                "same as": "" if same == name else same,
            }
        )
    return pd.DataFrame(rows)


def family(solver: Solver, counts: Sequence[int]) -> str:
    """In words: whether it looks back, whether it looks ahead (several evaluations a step), whether it draws noise."""
    words = ["multistep"] if solver.history else []
    words += ["several stages"] if max(counts) > 1 else []
    words += ["stochastic"] if solver.stochastic else []
    return ", ".join(words) or "one evaluation"


# ---- coefficients


@dataclass
class Weights:
    """What each step of a solver is made of.

    Attributes:
        table: [K, n], a row a step, a column an evaluation: the step's mean direction (``of`` eps) or the clean image
            that it moves towards (``of`` x0) is this mixture of the answers.
        rest: [K], what it takes from the start besides them: 0 for every solver here.
        asked: [n], the requests.
        of: ``eps`` or ``x0``.
    """

    table: Tensor
    rest: Tensor
    asked: list[Request]
    of: str


def step_weights(solver: Solver, times: Tensor, schedule: Schedule, of: str = "eps") -> Weights:
    """The weights of a solver, found by answering its n evaluations with n unit vectors.

    The state is a vector, too: its entry 0 counts the start, entry j evaluation j - 1. From one state at which the network is asked,
    y = x / alpha at t, to the next, at s,

    - ``of="eps"``: the answers are eps, and a row is ``(y_s - y_t) / (rho_s - rho_t)``, the direction;
    - ``of="x0"``: the answers are x0, and a row is D in ``y_s = (rho_s / rho_t) y_t + (1 - rho_s / rho_t) D``.

    Both are the same state, read in two ways. (A corrector, as UniPC's, changes the state before; it counts into the row after.)

    Raises:
        BadValue: neither eps nor x0.
    """
    choose("answers", of, tuple(KINDS))
    count = len(evaluations(solver, times, schedule))
    units = iter(torch.eye(count + 1, dtype=torch.float64)[1:, None])

    def answer(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return to_eps(of, next(units), x, t, schedule)

    start = torch.eye(count + 1, dtype=torch.float64)[:1]
    run = drive(solver(start, times, schedule), answer, keep=True)
    states = torch.cat([*(request.x for request in run.trajectory if request.stage == 0), run.x])
    y, rho = states / schedule.alpha(times)[:, None], schedule.rho(times)[:, None]
    if of == "eps":
        rows = y.diff(dim=0) / rho.diff(dim=0)
    else:
        kept = rho[1:] / rho[:-1]
        rows = (y[1:] - kept * y[:-1]) / (1 - kept)
    return Weights(rows[:, 1:], rows[:, 0], run.trajectory, of)


def draw_weights(axes: Axes, found: Weights, title: str) -> Any:
    """One heat map of weights with their values; returns the image, for a colour bar."""
    image = axes.imshow(found.table, cmap="PuOr_r", vmin=-SATURATED, vmax=SATURATED, aspect="auto")
    for i, row in enumerate(found.table.tolist()):
        for j, value in enumerate(row):
            if abs(value) >= 0.005:
                colour = "white" if abs(value) > 0.6 * SATURATED else BLACK
                axes.text(
                    j,
                    i,
                    f"{value:.2f}".replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=9 if len(row) < 8 else 7,
                    color=colour,
                )
    axes.set_yticks(range(len(found.table)), [str(k) for k in range(len(found.table))])
    axes.set_xticks(range(len(found.asked)), step_names(found.asked))
    axes.set(title=title, xlabel="evaluation", ylabel="step")
    axes.grid(False)
    return image


def step_names(asked: Sequence[Request]) -> list[str]:
    """Evaluations by the step that makes them: 0 1 2, and 0 0' 1 1' where a step makes two."""
    names, step = [], -1
    for request in asked:
        step += request.stage == 0
        names.append(f"{step}" + "'" * request.stage)
    return names


def weights_figure(names: Sequence[str], spacing: str, steps: int, of: str = "eps", columns: int = 4) -> Figure:
    """A heat map of :func:`step_weights` for each solver, on one grid from 0.9 to 0.1."""
    schedule = ContinuousLinearVP()
    times = spaced(spacing, steps, schedule)
    found = {name: step_weights(make_solver(name), times, schedule, of) for name in names}
    rows = math.ceil(len(names) / columns)
    with style():
        figure = Figure(figsize=(0.9 + 2.9 * min(columns, len(names)), 0.7 + 2.6 * rows))
        panels = figure.subplots(rows, min(columns, len(names)), squeeze=False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes, (name, weights) in zip(panels.flat, found.items(), strict=False):
            image = draw_weights(axes, weights, name)
        figure.colorbar(
            image, ax=panels, extend="both", label=f"weight of {'an answer eps' if of == 'eps' else 'a prediction x0'}"
        )
    return figure


def weights_explorer() -> Any:
    """Choices of a solver, a grid, its steps and the kind of answer, and the solver's weights."""
    import ipywidgets

    plain = [name for name, solver in SOLVERS.items() if not solver.stochastic]
    solver = ipywidgets.Dropdown(options=plain, value="dpmpp-2m", description="solver")
    spacing = ipywidgets.Dropdown(options=list(SPACINGS), value="even in t", description="grid")
    steps = ipywidgets.IntSlider(value=5, min=2, max=8, description="steps", continuous_update=False)
    of = ipywidgets.ToggleButtons(options=list(KINDS), value="eps", description="answers")
    return explorer([solver, spacing, steps, of], one_solver_figure)


def one_solver_figure(name: str, spacing: str, steps: int, of: str) -> Figure:
    """One solver's weights in a figure large enough for the sixteen evaluations that the largest of them makes."""
    schedule = ContinuousLinearVP()
    found = step_weights(make_solver(name), spaced(spacing, steps, schedule), schedule, of)
    with style():
        figure = Figure(figsize=(1.8 + max(4.0, 0.5 * len(found.asked)), 1.2 + 0.45 * steps))
        axes = figure.subplots()
        image = draw_weights(axes, found, f"{name}, {spacing}, NFE {len(found.asked)}")
        figure.colorbar(image, ax=axes, extend="both", label=f"weight of {of}")
    return figure


# ---- errors


def orders(errors: Sequence[float]) -> list[float]:
    """The order between each two errors, where the second is made with twice the steps."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def ladder_errors(
    solvers: Sequence[str | Solver],
    spacing: str = SPACINGS[0],
    ladder: Sequence[int] = LADDER,
    start: float = START,
    run_up: bool = False,
) -> dict[str, list[float]]:
    """The largest error at :data:`END` of nine states of a mixture of two Gaussians, for each solver and each number of steps.

    ``run_up``: cut the first step, see :func:`with_run_up`. Solvers are the registry's, perhaps spelled with options, ``dpmpp-3m,variant=exact``, or your own, ``Solver("mine", function)``.
    """
    named = {
        each if isinstance(each, str) else each.name: make_solver(each) if isinstance(each, str) else each
        for each in solvers
    }
    mixture, schedule = two_modes_1d(scale=0.4), ContinuousLinearVP()
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    exact = exact_flow(mixture, x, start, END, schedule, rtol=1e-12)
    grids = [spaced(spacing, steps, schedule, start) for steps in ladder]
    grids = [with_run_up(times, schedule) for times in grids] if run_up else grids

    def error(solver: Solver, times: Tensor) -> float:
        run = drive(solver(x, times, schedule), MixturePredictor(mixture, schedule))
        return (run.x - exact).abs().max().item()

    return {name: [error(solver, times) for times in grids] for name, solver in named.items()}


def ladder_figure(panels: dict[str, dict[str, list[float]]], ladder: Sequence[int] = LADDER) -> Figure:
    """Errors of :func:`ladder_errors` against the number of steps, a panel each, with the order of the last doubling beside each name."""
    looks = looks_of(name for errors in panels.values() for name in errors)
    with style():
        figure = Figure(figsize=(0.8 + 4.4 * max(len(panels), 1.5), 5.2 if len(panels) == 1 else 4.4))
        for axes, (title, errors) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
        ):
            for name, values in errors.items():
                axes.plot(ladder, values, label=f"{name}: {orders(values)[-1]:.1f}", **looks[name])
            axes.set(yscale="log", title=title)
            count_axis(axes, ladder, "steps")
            axes.legend(title="solver: order", loc="lower left")
        figure.axes[0].set_ylabel("largest error at the end")
    return figure


def looks_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each solver is drawn: :data:`FIXED`, else a look that none of the others has.

    Raises:
        BadValue: more names than looks.
    """
    names = list(dict.fromkeys(names))
    taken = {name: FIXED[name] for name in names if name in FIXED}
    free = [place for place in range(len(LOOKS)) if place not in taken.values()]
    others = [name for name in names if name not in taken]
    if len(others) > len(free):
        raise BadValue(f"{len(names)} solvers are too many for one figure; draw at most {len(LOOKS)}")
    taken |= dict(zip(others, free, strict=False))
    return {name: LOOKS[taken[name]]._asdict() for name in names}


def count_axis(axes: Axes, counts: Sequence[int], label: str) -> None:
    """A logarithmic axis of whole numbers, labelled at these and nowhere else."""
    axes.set(xscale="log", xlabel=label)
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())


@dataclass
class FewSteps:
    """RMS distance from the exact end over samples: ``errors[solver][i]`` with ``nfes[i]`` evaluations, counted by the engine."""

    nfes: tuple[int, ...]
    errors: dict[str, list[float]]


def few_steps(names: Sequence[str], grid: str, nfes: Sequence[int], samples: int = 256) -> FewSteps:
    """Errors of whole runs from noise to clean data on the ring of eight, on a grid of the registry (``make_grid``)."""
    mixture, schedule = ring_2d(), linear_betas()
    noise = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends: dict[float, Tensor] = {}

    def error(name: str, nfe: int) -> float:
        solver, steps = make_solver(name).for_nfe(nfe)
        chosen = make_grid(grid, steps, schedule)
        start = chosen.times[0]
        if start not in ends:
            ends[start] = exact_flow(mixture, noise, start, 0.0, schedule, rtol=1e-8)
        run = drive(solver(noise, chosen, schedule), MixturePredictor(mixture, schedule))
        assert run.nfe == nfe
        return (run.x - ends[start]).square().sum(1).mean().sqrt().item()

    return FewSteps(tuple(nfes), {name: [error(name, nfe) for nfe in nfes] for name in names})


def few_steps_figure(panels: dict[str, FewSteps]) -> Figure:
    """:func:`few_steps` drawn against NFE, a panel a grid."""
    looks = looks_of(name for found in panels.values() for name in found.errors)
    with style():
        figure = Figure(figsize=(0.8 + 4.0 * len(panels), 4.4))
        for axes, (grid, found) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
        ):
            for name, values in found.errors.items():
                axes.plot(found.nfes, values, label=name, **looks[name])
            axes.set(yscale="log", title=f"grid: {grid}")
            count_axis(axes, found.nfes, "NFE (network evaluations a sample)")
        figure.axes[0].set_ylabel("RMS distance from the exact end")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(found.errors))
    return figure


# ---- noise


@dataclass
class Moments:
    """Mean and standard deviation of what a sampler makes of Gaussian data, and those that are right."""

    mean: float
    spread: float
    right_mean: float
    right_spread: float


def gaussian_moments(
    solver: Solver, times: Tensor, schedule: Schedule, mean: float = 0.5, scale: float = 0.25
) -> Moments:
    """Exactly what a solver, noise and all, makes of N(mean, scale^2), without drawing a number.

    On one Gaussian eps is linear, so the end is a sum: of the start, of a constant and of every noise that is drawn. The state is the
    vector of its coefficients, and each noise is a unit vector. The start has the mean and spread of x_t at ``times[0]``.
    An analytic solver gets the gamma that is exact for these data.
    """
    if solver.needs_gamma:
        solver = make_solver(
            solver.name, **{**solver.options, "gamma": tuple(_gamma(time, schedule, scale) for time in times[:-1])}
        )
    units: Iterator[Tensor] = iter(torch.eye(2 + 2 * len(times), dtype=torch.float64)[2:, None])
    constant = torch.eye(2 + 2 * len(times), dtype=torch.float64)[1:2]

    def answer(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return sigma / ((alpha * scale) ** 2 + sigma**2) * (x - alpha * mean * constant)

    def marginal(t: Tensor) -> tuple[float, float]:
        return (mean * schedule.alpha(t)).item(), torch.hypot(schedule.alpha(t) * scale, schedule.sigma(t)).item()

    (mean_0, spread_0), right = marginal(times[0]), marginal(times[-1])
    start = torch.zeros_like(constant)
    start[0, 0], start[0, 1] = spread_0, mean_0
    end = drive(solver(start, times, schedule, lambda x: next(units)), answer).x[0]
    return Moments(end[1].item(), torch.cat([end[:1], end[2:]]).norm().item(), *right)


def _gamma(t: Tensor, schedule: Schedule, scale: float) -> float:
    """E eps^2 on a Gaussian: ``sigma^2 / (alpha^2 scale^2 + sigma^2)``."""
    variance = schedule.sigma(t) ** 2
    return (variance / ((schedule.alpha(t) * scale) ** 2 + variance)).item()


def spread_figure(solvers: dict[str, Solver], steps: Sequence[int], start: float = 0.999, end: float = 0.02) -> Figure:
    """:func:`gaussian_moments`' spread as a share of the right one, against the number of steps even in t."""
    schedule = linear_betas()
    looks = looks_of(solvers)
    with style():
        figure = Figure(figsize=(7, 4.4))
        axes = figure.subplots()
        axes.axhline(1, color=GREY, linewidth=1)
        for name, solver in solvers.items():
            found = [
                gaussian_moments(solver, spaced("even in t", count, schedule, start, end), schedule) for count in steps
            ]
            axes.plot(steps, [each.spread / each.right_spread for each in found], label=name, **looks[name])
        axes.set(ylabel="spread of the samples\n(1 = right)", ylim=(0, None))
        count_axis(axes, steps, "steps")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
