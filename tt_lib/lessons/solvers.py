"""Notebook 08: solvers laid open. What each step is made of, how fast errors fall, and how a run ends.

A solver is a generator, so it can be driven by anything that answers. Answered by unit vectors, it gives its
coefficients; answered by the exact eps of a toy, its error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.datasets.images import to_uint8
from tt_lib.engine import drive
from tt_lib.errors import BadValue, check_range, choose
from tt_lib.figures.style import count_axis, heat_map, relplot, style
from tt_lib.grids import make_grid
from tt_lib.noise import SampleNoise
from tt_lib.predictors import to_eps
from tt_lib.schedules import Schedule, float64, linear_betas
from tt_lib.solvers.layout import Evaluation, layout, stages_of
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d, two_modes_1d

START, END = 0.9, 0.1
"""Times between which weights are shown and orders measured: both ends of lambda are finite there."""
ANSWERS = ("eps", "x0")
SPACINGS = ("even in lambda", "even in rho", "even in t", "long and short")
LADDER = (20, 40, 80, 160, 320)
SATURATED = 2.0
"""Weights beyond this have the map's last colour."""
ENDINGS = ("unipc", "unipc,final=lower", "ddim")
"""One solver with full and with falling orders at the end of a run, and DDIM beside them."""
SHOWN = ("ddim", "heun", "dpm-solver-2", "dpmpp-3m", "deis-tab", "plms", "ipndm-v", "dpmpp-2m", "unipc")
"""Solvers whose weights can be looked at one after another; the last five make one evaluation a step."""
ALT = {
    "hook": "Three rows of images from the same noise in five evaluations. UniPC: hard outlines and glaring colours. "
    "UniPC with falling orders: the same animals and the same boat in natural colours. DDIM: the same outlines again, "
    "blurred and grey.",
    "weights": "Three heat maps of weights, a row for each step and a column for each evaluation. Midpoint: 0 for the "
    "first and 1 for the second evaluation of each step. DPM-Solver++(2M): above 1 on the diagonal, negative left of "
    "it. UniPC: larger weights of both signs, up to 2.54 and down to -2.85.",
    "x0": "Three heat maps of weights of data predictions. DPM-Solver++(2M) has at most two weights in a row, side by "
    "side. UniPC has up to four. PLMS has one in every earlier column, with alternating signs.",
    "player": "Heat maps of the weights of nine solvers, one after another, over four steps of a grid even in t.",
    "strip": "Heat maps of the weights of five multistep solvers over four steps. All begin with 1 in the first row. "
    "All have more than 1 on the diagonal from the second row on, and negative weights left of it. UniPC's last row "
    "has the largest.",
    "orders": "Largest error against the number of steps, both axes logarithmic. DDIM falls most slowly. The public 3M "
    "becomes as steep as midpoint, the exact 3M falls faster, UniPC fastest.",
    "few": "Three panels, one for each grid: distance from the exact end against the number of evaluations, for six "
    "solvers. Uniform: DEIS and DDIM are lowest and UniPC highest throughout. Quadratic and logsnr: the lines cross. "
    "In five evaluations DEIS or 2M is lowest and Heun highest, in 39 DDIM is highest.",
}
"""What the figures show, in words."""


# ---- grids


def spaced(spacing: str, steps: int, schedule: Schedule, start: float = START, end: float = END) -> Tensor:
    """A grid's times [steps + 1] from ``start`` to ``end``: even in lambda, rho or t, or long and short steps in turn.

    The last is even in lambda but for its steps: every second one is three times as long as the one before.

    Raises:
        BadValue: no such spacing, or no step.
    """
    choose("spacing", spacing, SPACINGS)
    check_range("steps", steps, 1)
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

    A multistep solver begins with steps of low order. Cut so finely (two halvings for every doubling of the steps)
    their errors are smaller than those of order 4.
    """
    lam, count = schedule.lam(times[:2]), 2 * math.ceil(math.log2(len(times) - 1))
    places = torch.exp2(torch.arange(-count, 0, dtype=torch.float64))
    return torch.cat([times[:1], schedule.time_of_lam(torch.lerp(lam[0], lam[1], places)), times[1:]])


# ---- what solvers are


def evaluations(solver: Solver, times: Tensor, schedule: Schedule) -> tuple[Evaluation, ...]:
    """The evaluations of one run, see :func:`tt_lib.solvers.layout.layout`. An analytic solver gets a gamma of ones."""
    if solver.needs_gamma:
        solver = make_solver(solver.name, **{**solver.options, "gamma": (1.0,) * (len(times) - 1)})
    return layout(solver, times, schedule)


def step_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Evaluations by the step that makes them: 0 1 2, and 0 0' 1 1' where a step makes two."""
    return [f"{each.step}" + "'" * each.stage for each in evaluations]


def smallest_nfe(solver: Solver, schedule: Schedule, most: int = 50) -> int:
    """The smallest number of evaluations that the solver can be asked for, tried in turn and counted by the engine.

    Raises:
        BadValue: none below ``most`` is spent exactly.
    """
    for nfe in range(1, most):
        try:
            fitted, steps = solver.for_nfe(nfe)
        except BadValue:
            continue
        if len(evaluations(fitted, float64(make_grid("logsnr", steps, schedule).times), schedule)) == nfe:
            return nfe
    raise BadValue(f"{solver.name} spends no number of evaluations below {most} exactly")


def family(solver: Solver, counts: Sequence[int]) -> str:
    """In words: whether it looks back, whether it evaluates several times a step, whether it draws noise."""
    words = {"multistep": solver.history, "several stages": max(counts) > 1, "stochastic": solver.stochastic}
    return ", ".join(word for word, holds in words.items() if holds) or "one evaluation"


def registry_table(steps: int = 6) -> pd.DataFrame:
    """Every solver of the registry on one grid of ``steps`` that ends at clean data: what the engine counts.

    Columns: solver, its ``family``, ``each step`` (evaluations of each step in turn), ``NFE`` (their number),
    ``smallest NFE``, and ``same as`` (the first name of the same function).
    """
    schedule, rows = linear_betas(), []
    times = float64(make_grid("logsnr", steps, schedule).times)
    first: dict[Any, str] = {}
    for name, solver in SOLVERS.items():
        of_solver = evaluations(solver, times, schedule)
        counts = [stages_of(of_solver, step) for step in range(steps)]
        same = first.setdefault(solver.function, name)
        each_step, same = " ".join(map(str, counts)), "" if same == name else same
        rows.append((name, family(solver, counts), each_step, sum(counts), smallest_nfe(solver, schedule), same))
    return pd.DataFrame(rows, columns=["solver", "family", "each step", "NFE", "smallest NFE", "same as"])


# ---- coefficients


class Weights(NamedTuple):
    """What each step of a solver is made of."""

    table: Tensor
    """[K, n]: row k holds the weights of the answers in the direction of step k, or in the image it moves towards."""
    rest: Tensor
    """[K], what it takes from the start besides them: 0 for every solver here."""
    evaluations: tuple[Evaluation, ...]
    """[n]"""


def step_weights(solver: Solver, times: Tensor, schedule: Schedule, of: str = "eps") -> Weights:
    """The weights of a solver, by answering its n evaluations with n unit vectors.

    The state is a vector, too: its entry 0 counts the start, entry j evaluation j - 1. From one state at which the
    network is asked, y = x / alpha at t, to the next, at s,

    - ``of="eps"``: the answers are eps, and a row is ``(y_s - y_t) / (rho_s - rho_t)``, the direction;
    - ``of="x0"``: the answers are x0, and a row is D in ``y_s = (rho_s / rho_t) y_t + (1 - rho_s / rho_t) D``.

    Both are the same state, read in two ways. (A corrector, as UniPC's, changes the state before; it counts into the
    row after.)

    Raises:
        BadValue: neither eps nor x0.
    """
    choose("answers", of, ANSWERS)
    made = evaluations(solver, times, schedule)
    count = len(made)
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
    return Weights(rows[:, 1:], rows[:, 0], made)


def draw_weights(axes: Axes, solver: str | Solver, spacing: str = "even in t", steps: int = 4, of: str = "eps") -> None:
    """A heat map of :func:`step_weights` on a grid from 0.9 to 0.1; weights below 0.005 have no number."""
    solver = make_solver(solver) if isinstance(solver, str) else solver
    schedule = linear_betas()
    table, _, made = step_weights(solver, spaced(spacing, steps, schedule), schedule, of)
    frame = pd.DataFrame(table.numpy(), columns=step_names(made))
    words = frame.map(lambda value: f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "")
    heat_map(axes, frame, words, SATURATED, fontsize=9 if len(made) < 8 else 7)
    axes.set(title=solver.name, xlabel="evaluation", ylabel="step")


@style()
def weights_figure(solvers: Sequence[str | Solver], steps: int = 4, of: str = "eps") -> Figure:
    """:func:`draw_weights` of each solver, on the grid even in t."""
    figure = Figure(figsize=(3.3 * len(solvers), 3.2))
    panels = figure.subplots(1, len(solvers), squeeze=False)[0]
    for axes, solver in zip(panels, solvers, strict=True):
        draw_weights(axes, solver, "even in t", steps, of)
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
    """The largest error at :data:`END` of nine states of a toy, by solver, for each number of steps.

    Args:
        solvers: names of the registry, perhaps with options, ``dpmpp-3m,variant=exact``, or your own,
            ``Solver("midpoint", function)``.
        ladder: numbers of steps.
        run_up: cut the first step, see :func:`with_run_up`.
    """
    mixture, schedule = two_modes_1d(scale=0.4), linear_betas()
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    exact = exact_flow(mixture, x, start, END, schedule, rtol=1e-12)
    grids = [spaced(spacing, steps, schedule, start) for steps in ladder]
    grids = [with_run_up(times, schedule) for times in grids] if run_up else grids
    errors = {}
    for each in solvers:
        name, solver = (each, make_solver(each)) if isinstance(each, str) else (each.name, each)
        runs = [drive(solver(x, times, schedule), MixturePredictor(mixture, schedule)) for times in grids]
        errors[name] = [(run.x - exact).abs().max().item() for run in runs]
    return errors


def few_steps(names: Sequence[str], grid: str, nfes: Sequence[int], samples: int = 256) -> dict[str, list[float]]:
    """Errors of whole runs from noise to clean data on the ring of eight, by solver, for each number of evaluations.

    Args:
        names: solvers of the registry, perhaps with options.
        grid: a grid of the registry (``make_grid``).

    Returns:
        Root mean square distances from the exact ends.
    """
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
        return (run.x - ends[start]).square().sum(1).mean().sqrt().item()

    return {name: [error(name, nfe) for nfe in nfes] for name in names}


def errors_figure(
    panels: Mapping[str, Mapping[str, Sequence[float]]], counts: Sequence[int], xlabel: str, ylabel: str
) -> Figure:
    """Errors against counts of steps or evaluations: a panel for each title, a line for each solver."""
    rows = [
        {"panel": title, "solver": name, "count": count, "error": error}
        for title, errors in panels.items()
        for name, values in errors.items()
        for count, error in zip(counts, values, strict=True)
    ]
    size = (4.0, 3.8) if len(panels) > 1 else (6.6, 4.4)
    drawn = {"x": "count", "y": "error", "col": "panel", "kind": "line", "markeredgewidth": 0}
    grid = relplot(pd.DataFrame(rows), "solver", size, **drawn)
    grid.set(yscale="log").set_titles("{col_name}").set_axis_labels(xlabel, ylabel)
    for axes in grid.axes.flat:
        count_axis(axes, counts)
    return grid.figure


# ---- images


def end_images(count: int) -> dict[str, Tensor]:
    """Images uint8 [count, C, H, W] of the shipped network in five evaluations: one noise, three samplers of a grid."""
    bench = make_bench("cifar10")
    noise = SampleNoise(range(count)).start(bench.model.shape)
    cells = {name: Cell(name, "uniform", 5) for name in ENDINGS}
    return {name: to_uint8(bench.sampler(cell)(range(count), start=noise).x) for name, cell in cells.items()}
