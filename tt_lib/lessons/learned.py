"""Notebook 05: a whole sampler learned end to end, on a spiral in the plane whose flow is exact.

Everything is small: a sampler of a few evaluations, :data:`NOISES` noises, seconds on one core.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, choose
from tt_lib.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, legend_below, log_axis, style
from tt_lib.grids import LEARNED as LEARNED_GRID
from tt_lib.grids import Grid, make_grid
from tt_lib.lessons.tables import KNOBS as LEARNED
from tt_lib.lessons.tables import LABELS, ON_STRAIGHT, SHORT, TUNED, converged, knob_rows, markdown, pick, with_halves
from tt_lib.noise import SampleNoise
from tt_lib.sampling import Sampler
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell, find_timing
from tt_lib.study.compare import BEST, FEATURES, MODEL, SMALL, STRAIGHT, N, beside_each_other
from tt_lib.timing import UNTUNED, Timing
from tt_lib.toy import GaussianMixture, MixturePredictor, exact_flow
from tt_lib.tuning.learn import KNOBS, LARGEST_GAIN, LearnConfig, LearnResult, learn

NFE, NOISES, HELD_OUT, ITERATIONS, RATE = 4, 128, 512, 60, 0.1
SAMPLES = 400
"""Samples of a figure. Their seeds, from 0 on, have no part in learning."""
SCHEDULE = linear_betas()
COLOURS = {"DDIM": (VERMILLION, "o"), "2M": (BLACK, "s"), "UniPC": (BLUE, "D")}
"""Colours and marks of the solvers of :data:`tt_lib.lessons.tables.TUNED`."""
MOVES = ["conditioning time", "gain", "node"]
"""What :func:`draw_move` may multiply by a factor."""
ALT = {
    "hook": "Four panels with 400 points each, over grey spots on a spiral. Untuned: the points form a blurred ball "
    "inside the spiral. Timing learned: a ring that is too small, and a cloud at its open end. Grid and timing "
    "learned: a thin curve along the whole spiral, dense at its spots. Converged: the spots of the spiral.",
    "history": "Two falling curves over 60 iterations, on a logarithmic axis: the loss on the noises to learn from and "
    "the loss on held-out noises. They fall together from 0.1 to below 0.01 and end close to each other.",
    "player": "The samples of four evaluations while the slider multiplies the conditioning time of the last "
    "evaluation by 0.2 to 1.4. Near 0.6 the blurred ball grows towards the spiral. Far below, the points fly apart.",
    "strip": "Five panels, the conditioning time of the last evaluation multiplied by 0.2, 0.4, 0.6, 0.8 and 1, and "
    "the loss above each. With 1 the samples are a blurred ball inside the spiral. With 0.8 and 0.6 they fill a larger "
    "drop, dense at its left edge, with a tip towards the outer end of the spiral; the loss falls to its lowest. With "
    "0.4 they lie on and inside the circle of the spots, with 0.2 all over the panel and beyond; the loss rises "
    "tenfold.",
    "combinations": "Eight points on a logarithmic axis: the loss that is left on held-out noises, as a share of the "
    "untuned sampler's, for no knob, each knob alone, each pair, and all three. Alone grid and gain leave a quarter, "
    "timing more. Pairs with the grid leave less than a tenth, timing with gain a fifth. All three leave least.",
    "acting": "Two panels over the four evaluations of the sampler whose grid and timing were learned, each with a "
    "mark for the middle sample and a bar for eight samples in ten. Left, degrees between the answers at tau and at t: "
    "0 without a bar at the first two; at the third the mark is near 10 and the bar goes up to 80, at the fourth the "
    "mark is near 40 and the bar goes beyond 100. Right, the length of the one over that of the other: 1 without a bar "
    "at the first two; at the third the mark is below 1, at the fourth above, and both bars reach to both sides of 1.",
    "shared": "Three panels over lambda, for DDIM, 2M and UniPC with 5 evaluations (dashed, open marks) and 10. Left: "
    "a row of nodes for each, from about -4 to 4.6, all but the last to the right of their grey marks; UniPC's with 5 "
    "end near 2. Middle: tau / t, between 0.88 and 0.95 at every first node. At inner nodes DDIM's are below 1, most "
    "of the others' above. The last ones of DDIM and 2M are below 1, of UniPC near 1.2. Right: gains within 5 per cent "
    "of 1, but for the last ones, 1.13 to 1.2.",
    "knobs": "Four panels, NFE 5 and 10 by ImageNet features and the classifier's, with points for DDIM, 2M and UniPC: "
    "untuned on the best diffusion grid, the straight path and the uniform grid, and seven sets of learned knobs. At 5 "
    "all three knobs are lowest. At 10 2M and UniPC stay level once the grid and another knob are learned. A dashed "
    "line at the converged solution lies below all, but for four points of the classifier's at 10.",
    "few": "Three panels, learned from 1, 16 and 128 noises. Rings mark where those should end, and a line leads to "
    "where they do. With 1 noise its ring is met, and all other samples are a blurred ball. With 16 and 128 they "
    "follow the spiral.",
}
"""What the figures show, in words."""


def spiral() -> GaussianMixture:
    """Twelve spots in the plane, each of standard deviation 0.06, on one turn of a spiral."""
    angle = 0.6 + torch.linspace(0, 2 * math.pi, 12, dtype=torch.float64)
    radius = torch.linspace(0.25, 1.3, 12, dtype=torch.float64)
    return GaussianMixture([1.0] * 12, torch.stack([radius * angle.cos(), radius * angle.sin()], 1), [0.06] * 12)


def toy_sampler(solver: str = "ddim", nfe: int = NFE) -> Sampler:
    """An untuned sampler of :func:`spiral`, on an even grid from t = 1 to 0."""
    made, steps = make_solver(solver).for_nfe(nfe)
    grid = make_grid("uniform-trailing", steps, SCHEDULE)
    return Sampler(MixturePredictor(spiral(), SCHEDULE), SCHEDULE, made, grid, (2,), model="spiral")


@cache
def toy_learn(
    knobs: tuple[str, ...] = ("grid", "timing"), solver: str = "ddim", nfe: int = NFE, noises: int = NOISES
) -> LearnResult:
    """:func:`tt_lib.tuning.learn.learn` with the lesson's sizes; each result is made once."""
    config = LearnConfig(knobs, noises=noises, validation=HELD_OUT, batch=HELD_OUT, iterations=ITERATIONS, lr=RATE)
    return learn(toy_sampler(solver, nfe), config=config)


def with_timing(sampler: Sampler, timing: Timing) -> Sampler:
    """An untuned sampler with a timing, on the grid that the timing brings."""
    return replace(sampler, grid=Grid(timing.grid, timing.grid_times), timing=timing)


@cache
def _start() -> tuple[Tensor, Tensor]:
    """Noises of the seeds from 0 on, and where the exact flow takes them."""
    noise = SampleNoise(range(SAMPLES)).start((2,)).double()
    return noise, exact_flow(spiral(), noise, 1.0, 0.0, SCHEDULE, rtol=1e-5)


def loss(ends: Tensor) -> float:
    """Mean squared distance of the figures' samples from the ends of the exact flow."""
    return (ends - _start()[1]).square().mean().item()


def _scatter(axes: Axes, ends: Tensor, title: str) -> None:
    for points, colour, label in ((_start()[1], GREY, "where the noise should end"), (ends, BLUE, "where it ends")):
        axes.plot(*points.T, "o", color=colour, markersize=2.5, markeredgewidth=0, alpha=0.3 if colour == GREY else 0.8)
        axes.plot([], [], "o", color=colour, label=label)  # dots of the legend, large enough to be seen
    axes.set(title=title, aspect="equal", xlim=(-1.2, 1.5), ylim=(-1.3, 1.4), xticks=[], yticks=[])
    axes.grid(visible=False)


def _panels(ends: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(2.6 * len(ends), 3.2))
    panels = figure.subplots(1, len(ends), squeeze=False)[0]
    for axes, (title, points) in zip(panels, ends.items(), strict=True):
        _scatter(axes, points, title)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def hook_figure() -> Figure:
    """The same noise in four evaluations: untuned, with its timing learned, with grid and timing; and converged."""
    noise, exact = _start()
    sampler = toy_sampler()
    ends = {"untuned": sampler(range(SAMPLES), start=noise).x}
    for knobs in (("timing",), ("grid", "timing")):
        learned = with_timing(sampler, toy_learn(knobs).timing)
        ends[f"{' and '.join(knobs)} learned"] = learned(range(SAMPLES), start=noise).x
    return _panels(ends | {"converged": exact})


@style()
def history_figure(rows: list[tuple[int, float, float]]) -> Figure:
    """Losses over iterations: of (iteration, loss on the noises to learn from, loss on held-out noises)."""
    iteration, learning, held = zip(*rows, strict=True)
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    axes.plot(iteration, learning, color=ORANGE, linestyle="--", label="noises to learn from")
    axes.plot(iteration, held, color=BLUE, marker="D", markersize=4, label="held-out noises")
    best = min(rows, key=lambda row: row[2])
    axes.plot(best[0], best[2], "*", color=BLACK, markersize=14, label="kept")
    log_axis(axes, "y", [*learning, *held])
    axes.set(xlabel="iteration", ylabel="loss")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def moved_ends(factor: float, what: str, evaluation: int) -> Tensor:
    """Ends of untuned DDIM in four evaluations with one number multiplied by a factor.

    Args:
        factor: above 0.
        what: one of :data:`MOVES`.
        evaluation: 1 to 4.

    Raises:
        BadValue: another value.
    """
    choose("knob", what, MOVES)
    if not (factor > 0 and 1 <= evaluation <= NFE):
        raise BadValue(f"give a factor above 0 and an evaluation from 1 to {NFE}, got {factor} and {evaluation}")
    sampler, k = toy_sampler(), evaluation - 1
    times = sampler.grid.tensor()
    if what == "node":
        # Strictly between its neighbours; the first one is at most 1.
        below, above = times[k + 1].item(), (times[k - 1].item() if k else 1.0)
        times[k] = min(max(factor * times[k].item(), 0.99 * below + 0.01 * above), 0.01 * below + 0.99 * above)
    taus, gains = times[:-1].clone(), torch.ones(NFE, dtype=torch.float64)
    if what == "conditioning time":
        taus[k] = min(max(factor * taus[k].item(), SCHEDULE.t_min), 1.0)
    if what == "gain":
        gains[k] = factor
    return drive(sampler.solver(_start()[0], times, SCHEDULE, None), sampler.predictor, taus, gains=gains).x


def draw_move(axes: Axes, factor: float, what: str = MOVES[0], evaluation: int = NFE) -> None:
    """:func:`moved_ends`, with their loss."""
    ends = moved_ends(factor, what, evaluation)
    _scatter(axes, ends, f"× {factor:g}: loss {loss(ends):.3f}")


def lowest_by_hand() -> pd.DataFrame:
    """The smallest share of the untuned loss that one number of :func:`moved_ends` leaves, and by which factor.

    Two rows for each knob, a column for each evaluation. The factors are those of the lesson's slider: 0.2 to 1.6 in
    steps of 0.05.
    """
    evaluations, rows = range(1, NFE + 1), {}
    untuned = loss(moved_ends(1.0, MOVES[0], 1))
    for what in MOVES:
        tried = [[(loss(moved_ends(i / 20, what, k)) / untuned, i / 20) for i in range(4, 33)] for k in evaluations]
        rows[what, "loss that is left"], rows[what, "factor"] = zip(*map(min, tried), strict=True)
    return pd.DataFrame(rows, pd.Index(evaluations, name="evaluation")).T


@cache
def combinations_table() -> pd.DataFrame:
    """For each of the eight sets of knobs the share of the untuned loss that is left on held-out noises."""
    rows = [("none", 1.0)]
    for count in (1, 2, 3):
        for knobs in combinations(KNOBS, count):
            tuning = toy_learn(knobs).timing.tuning
            rows.append((", ".join(knobs), tuning["validation_learned"] / tuning["validation_start"]))
    return pd.DataFrame(rows, columns=["knobs", "left"])


@style()
def combinations_figure() -> Figure:
    """:func:`combinations_table` drawn: the longer a line, the more its knobs remove."""
    table = combinations_table()
    figure = Figure(figsize=(7.5, 3.6))
    axes = figure.subplots()
    for place, (knobs, left) in enumerate(zip(table["knobs"], table["left"], strict=True)):
        count = 0 if knobs == "none" else knobs.count(",") + 1
        colour = (GREY, ORANGE, BLUE, GREEN)[count]
        axes.plot([1, left], [place, place], "-", color=colour, linewidth=2.5)
        axes.plot(left, place, "os^D"[count], color=colour, markersize=9)
        axes.text(left / 1.12, place, f"{left:.3f}", ha="right", va="center")
    axes.set_yticks(range(len(table)), table["knobs"])
    axes.invert_yaxis()
    log_axis(axes, "x", [table["left"].min() / 2, 1.0])
    axes.set(xlabel="loss that is left (1 = untuned)")
    axes.grid(axis="y", visible=False)
    return figure


class Acting(NamedTuple):
    """How the answers at tau differ from those at t, for each evaluation and sample [NFE, B]."""

    angle: Tensor
    """Degrees between the two."""
    stretch: Tensor
    """The length of the first over the length of the second."""


def acting() -> Acting:
    """:class:`Acting` along the runs of the sampler whose grid and timing are learned."""
    timing = toy_learn().timing
    sampler = with_timing(toy_sampler(), timing)
    run = sampler(range(SAMPLES), start=_start()[0], keep=True)
    angles, stretches = [], []
    for request, answer in zip(run.trajectory, run.answers, strict=True):
        at_t = sampler.predictor(request.x, request.t, request.t)
        cosine = torch.nn.functional.cosine_similarity(answer, at_t, dim=1).clamp(-1, 1)
        angles.append(cosine.acos().rad2deg())
        stretches.append(answer.norm(dim=1) / at_t.norm(dim=1))
    return Acting(torch.stack(angles), torch.stack(stretches))


@style()
def acting_figure() -> Figure:
    """:func:`acting`: the middle sample, and the range of eight samples out of ten."""
    measured = acting()
    times = toy_learn().timing.grid_times
    names = [f"{k + 1}\nt = {t:.2f}" for k, t in enumerate(times[:-1])]
    figure = Figure(figsize=(8.5, 3.9))
    panels = figure.subplots(1, 2)
    labels = ("degrees between ε(x, τ) and ε(x, t)", "length of ε(x, τ) over that of ε(x, t)")
    for axes, values, label, neutral in zip(panels, measured, labels, (0.0, 1.0), strict=True):
        low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1)
        spread = torch.stack([middle - low, high - middle])
        axes.axhline(neutral, color=BLACK, linewidth=1)
        axes.errorbar(range(NFE), middle, spread, fmt="D", color=BLUE, capsize=6, linewidth=1.8)
        axes.set_xticks(range(NFE), names)
        axes.set(xlabel="evaluation", ylabel=label)
        if neutral:
            log_axis(axes, "y", [low.min(), high.max()])
    return figure


def shipped() -> dict[tuple[str, int], Timing]:
    """Shipped timings with all three knobs for CIFAR-10, by solver and NFE (5, 10); UniPC's are those of ``BEST``."""
    each = {name: (solver, LEARNED["grid, timing and gain"]) for name, solver in TUNED.items()}
    each["UniPC"] = BEST["solver"], BEST["timing"]
    cells = {(name, nfe): Cell(each[name][0], LEARNED_GRID, nfe, each[name][1]) for name in TUNED for nfe in (5, 10)}
    return {key: timing for key, cell in cells.items() if (timing := find_timing(MODEL, cell))}


@style()
def shared_figure() -> Figure:
    """Nodes, ratios tau / t and gains of :func:`shipped`, against lambda; the rows of nodes name the lines.

    Grey marks are the nodes where learning began.
    """
    figure = Figure(figsize=(9.5, 4.2))
    panels = figure.subplots(1, 3)
    timings = shipped()
    for row, ((name, nfe), timing) in enumerate(timings.items()):
        lam = SCHEDULE.lam(torch.tensor(timing.times, dtype=torch.float64))
        start = SCHEDULE.lam(make_grid(timing.tuning["start_grid"], nfe, SCHEDULE).tensor()[:-1])
        panels[0].plot(start, [row] * nfe, "|", color=GREY, markersize=14, markeredgewidth=2)
        colour, marker = COLOURS[name]
        few: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"} if nfe == 5 else {}
        for axes, values in zip(panels, ([row] * nfe, timing.ratios, timing.gains), strict=True):
            options = {"markersize": 5, "linewidth": 1.3, **few}
            axes.plot(lam, values, color=colour, marker=marker, **options)
    panels[0].set_yticks(range(len(timings)), [f"{name}, NFE {nfe}" for name, nfe in timings])
    panels[0].invert_yaxis()
    for axes, title in zip(panels, ("nodes", "τ / t", "gain"), strict=True):
        axes.set(title=title, xlabel="λ of the node")
    for axes in panels[1:]:
        axes.axhline(1, color=BLACK, linewidth=1)
        axes.set_ylim(0.86, 1.28)
    panels[2].axhline(1 + LARGEST_GAIN, color=GREY, linewidth=1, linestyle=":")
    return figure


@style()
def knobs_figure(table: pd.DataFrame) -> Figure:
    """Which knobs do what: rows of :func:`tt_lib.lessons.tables.study` at NFE 5 and 10, in both features."""
    figure = Figure(figsize=(9.5, 7.2))
    for row, short in zip(figure.subplots(2, 2, sharex=True), SHORT, strict=True):
        for axes, nfe in zip(row, (5, 10), strict=True):
            level = converged(table)[short]
            drawn = [level]
            for shift, (name, (colour, marker)) in enumerate(COLOURS.items()):
                rows = knob_rows(table, name, nfe)
                labels = list(rows)
                for place, own in enumerate(rows.values()):
                    if own.empty:
                        continue
                    value, low, high = (own.iloc[0][f"{short}{end}"] for end in ("", "_low", "_high"))
                    x = place + 0.15 * (shift - 1)
                    axes.plot(x, value, marker, color=colour, markersize=6, label=name if not place else None)
                    axes.vlines(x, low, high, colour, linewidth=2)
                    drawn += [low, high]
            axes.axhline(level, color=BLACK, linewidth=1, linestyle="--", label="converged solution")
            for right in ("untuned, uniform grid", "grid"):
                axes.axvline(labels.index(right) - 0.5, color=GREY, linewidth=1, linestyle=":")
            axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
            axes.set(title=f"NFE {nfe}" if short == SHORT[0] else "", ylabel=LABELS[short] if nfe == 5 else "")
            log_axis(axes, "y", drawn)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


CARRIED = {
    (MODEL, "UniPC", 6): {
        "its own, 4,096 noises": "learned-grid-timing",
        "another 4,096 noises": "learned-grid-timing,seed=1",
        "128 noises": "learned-grid-timing,noises=128",
        "16 noises": "learned-grid-timing,noises=16",
        "100 iterations": "learned-grid-timing,iterations=100",
        "learned for NFE 8": "learned-grid-timing,of_nfe=8",
    },
    (MODEL, "UniPC", 5): {
        "its own": "learned-grid-timing",
        "learned for NFE 6": "learned-grid-timing,of_nfe=6",
        "learned for DDIM": "learned-grid-timing,of_solver=ddim",
        "learned for DDIM, with gain": "learned-grid-timing-gain,of_solver=ddim",
    },
    (MODEL, "2M", 5): {
        "its own": "learned-grid-timing",
        "learned for UniPC": "learned-grid-timing,of_solver=unipc+final=lower",
        "learned for DDIM": "learned-grid-timing,of_solver=ddim",
        "learned for DDIM, with gain": "learned-grid-timing-gain,of_solver=ddim",
    },
    (MODEL, "DDIM", 5): {
        "its own": "learned-grid-timing",
        "learned for UniPC": "learned-grid-timing,of_solver=unipc+final=lower",
        "learned for UniPC, with gain": "learned-grid-timing-gain,of_solver=unipc+final=lower",
    },
    (SMALL, "UniPC", 5): {
        "its own": "learned-grid-timing",
        "learned for the shipped network": f"learned-grid-timing,of_model={MODEL}",
    },
}
"""Rows of :func:`carry_table`: grid and timing, by the network, solver and NFE that use them, and by their origin."""


def carry_table(rows: pd.DataFrame) -> str:
    """A Markdown table: learned from little and used elsewhere, beside an untuned sampler, in both features.

    Untuned has the nodes of the straight path. The small network was not measured with these: there it has the
    solver's best diffusion grid by ImageNet features.
    """
    both = {model: beside_each_other(rows, *FEATURES, model, N) for model in (MODEL, SMALL, STRAIGHT)}
    straight = both[STRAIGHT][both[STRAIGHT]["timing"] == UNTUNED]
    text = []
    for (model, name, nfe), timings in CARRIED.items():
        own = both[model]
        own = own[(own["solver"] == TUNED[name]) & (own["nfe"] == nfe) & (own["eta"] == 0)]
        where, grid, untuned = "", "straight path", pick(straight, solver=ON_STRAIGHT[name], nfe=nfe)
        if model == SMALL:
            where, grid = "small network, ", "best diffusion grid by ImageNet features"
            untuned = own[own["timing"] == UNTUNED].sort_values("first").iloc[0]
        lines = {f"untuned, {grid}": untuned} | {of: pick(own, timing=timing) for of, timing in timings.items()}
        for of, row in lines.items():
            text.append([f"{where}{name}, NFE {nfe}: {of}", *with_halves(row, 2, ("first", "second"))])
    return markdown(["sampler: its grid and timing", "ImageNet features", "classifier's features"], text)


@style()
def few_figure(runs: dict[int, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """Samplers learned from few noises, by their number.

    Args:
        runs: the figures' samples [SAMPLES, 2], the ends of the noises to learn from [n, 2], and their right ends.
    """
    titles = {f"{n} noise{'s' * (n > 1)}": run for n, run in runs.items()}
    figure = _panels({title: ends for title, (ends, _, _) in titles.items()})
    for axes, (_, own, right) in zip(figure.axes, titles.values(), strict=True):
        for a, b in zip(own[:16], right[:16], strict=True):
            axes.plot(*torch.stack([a, b]).T, color=VERMILLION, linewidth=1)
        label = "learned from: a ring where it should end, a line to where it ends"
        axes.plot(*right[:16].T, "o", color=VERMILLION, markersize=8, fillstyle="none", label=label)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure
