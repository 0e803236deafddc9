"""Grids: the K + 1 nominal times t_0 > ... > t_K of a sampler with K steps.

A grid decides where a few-step sampler spends its evaluations. It evaluates the network at t_0 .. t_{K-1}
and lands on t_K, which is clean data, ``t = 0``.

**Two families.** On a discrete schedule, ``uniform``, ``uniform-trailing`` and ``quadratic`` choose among the
network's levels: whole indices n, at times ``(n + 1) / N`` (see :mod:`tt_lib.schedules`). Every other grid
spreads its nodes evenly in some function of time, so that they fall between levels.

**Where a grid starts.** ``x_T ~ N(0, I)`` belongs to ``t = 1``. On a discrete schedule ``uniform`` starts
below that, the more so the fewer the steps (10 of 1000: ``t = 0.901``), and ``quadratic`` at ``t = 0.801``:
that is how the published figures were made. ``start=1.0`` moves the first node up. With a single step either
rule would start at its lowest level, almost clean data: with one step every grid starts at ``t = 1``.

**The shift of flow models.** SD3 and Flux visit ``s' = shift s / (1 + (shift - 1) s)`` in place of the sigmas s of an
even grid, and condition the network on ``1000 s'``: ``lambda`` falls by ``log shift``. On ``flow``, where t is sigma,
that is a rule of the grid, spelled behind its name: ``uniform-trailing,shift=3``. SD3's shift is a number (3). Flux's
is dynamic, ``exp(mu)`` with a mu for each size of images: give ``shift=exp(mu)`` as a number.

Where ``alpha(1) = 0`` lambda is infinite at t = 1: ``logsnr`` and ``karras`` are spread from ``t_max``, and the first
node itself is 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import SupportsIndex

import torch
from torch import Tensor

from tt_lib.errors import BadValue, check_range, choose
from tt_lib.files import read_spelling, spell
from tt_lib.schedules import DiscreteSchedule, Flow, Schedule, time_of_index

GRIDS: dict[str, str] = {
    "uniform": "every (N/K)-th level from the lowest, index 0 (the DDIM paper's; 'leading' in diffusers)",
    "uniform-trailing": "every (N/K)-th level from the highest, t = 1",
    "quadratic": "levels spaced as squares up to 0.8 N (the DDIM code's for CIFAR-10)",
    "logsnr": "even in lambda = log(alpha / sigma), from t = 1 to t_min (DPM-Solver's)",
    "karras": "even in (sigma / alpha)^(1/7), from t = 1 to t_min (Karras et al. 2022)",
}
"""The names, with a line on each."""
LEARNED = "learned"
"""What a grid is called that was learned with its timing, see :mod:`tt_lib.tuning.learn`: no rule makes it."""


@dataclass(frozen=True)
class Grid:
    """The nominal times of a sampler.

    Attributes:
        name: the rule that made it, as rows and timings record it.
        times: K + 1 times, strictly falling, in [0, 1].

    Raises:
        BadValue: fewer than two times, a time outside [0, 1] or times that do not fall.
    """

    name: str
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times) < 2:
            raise BadValue(f"a grid needs at least two times, a start and an end, got {self.times}")
        for t in self.times:
            if not 0 <= t <= 1:
                raise BadValue(f"a grid's times must lie in [0, 1], got {t}")
        for t, s in pairwise(self.times):
            if not t > s:
                raise BadValue(f"a grid's times must fall strictly from noise to data, got {s} after {t}")

    @property
    def steps(self) -> int:
        """K, the number of intervals."""
        return len(self.times) - 1

    def tensor(self) -> Tensor:
        """The times, float64 [K + 1]."""
        return torch.tensor(self.times, dtype=torch.float64)


def make_grid(name: str, steps: SupportsIndex, schedule: Schedule, *, start: float | None = None) -> Grid:
    """A grid by name, which ends at clean data.

    Args:
        name: one of :data:`GRIDS`, on ``flow`` perhaps with ``,shift=3``. On a continuous schedule, without levels,
            ``uniform`` and ``quadratic`` are even in t and in sqrt(t) from 1 to ``t_min``, and ``uniform-trailing`` is
            ``1 - k / K``.
        steps: K, at least 1; at most N where whole levels are chosen.
        schedule: turns levels into times and times into lambda and rho.
        start: the first time, in place of the rule's own.

    Raises:
        BadValue: an unknown name, or steps or a start that this grid cannot have.
    """
    if name == LEARNED:
        raise BadValue(f"the grid {LEARNED!r} comes with its timing; give a timing that was learned with its grid")
    plain, shift = read_grid(name)
    if shift != 1 and not isinstance(schedule, Flow):
        raise BadValue(f"the grid {name!r} is for the schedule 'flow', got {schedule.name!r}; leave the shift out")
    if shift != 1 and start is not None:
        raise BadValue(f"the grid {name!r} begins where its shift says, got start {start:g}; leave one of them out")
    count = count_steps(steps)
    if start is not None and not schedule.t_min <= start <= 1:
        raise BadValue(f"start must lie in [{schedule.t_min:g}, 1], got {start}")
    if plain in LEVEL_RULES and isinstance(schedule, DiscreteSchedule):
        nodes = _on_levels(plain, count, schedule, start)
    else:
        nodes = _spread(plain, count, schedule, 1.0 if start is None else float(start))
        nodes = [shift * t / (1 + (shift - 1) * t) for t in nodes] if shift != 1 else nodes
    if nodes[-1] < (1 - 1e-9) * schedule.t_min:  # that of a path is rounded
        raise BadValue(
            f"the grid {name!r} with {count} steps has a node at t = {nodes[-1]:g}, below {schedule.t_min:g}, "
            "the smallest time that the network knows; ask for fewer steps"
        )
    return Grid(spell_grid(name), (*nodes, 0.0))


def read_grid(name: str) -> tuple[str, float]:
    """A grid's plain name and its shift, 1 where it has none: ``uniform,shift=3`` -> (``uniform``, 3).

    Raises:
        BadValue: no such name, another option, or a shift that is not above 0.
    """
    plain, options = read_spelling("grid", name, "uniform-trailing,shift=3")
    choose("grid", plain, GRIDS)
    shift = options.pop("shift", 1.0)
    if options:
        raise BadValue(f"the grid {name!r} takes no option but shift, got {', '.join(options)}; leave it out")
    if isinstance(shift, str) or not 0 < shift < float("inf"):
        raise BadValue(f"the shift of the grid {name!r} must be a number above 0, got {shift!r}")
    return plain, float(shift)


def spell_grid(name: str) -> str:
    """The one spelling of a name: rows and timings are found by it."""
    plain, shift = read_grid(name)
    return plain if shift == 1 else f"{plain},shift={spell(shift)}"


def count_steps(steps: SupportsIndex) -> int:
    """A number of steps as an int.

    Raises:
        BadValue: it is no whole number, or below 1.
    """
    try:
        count = operator.index(steps)
    except TypeError:
        raise BadValue(f"steps must be a whole number, got {steps!r}") from None
    check_range("steps", count, 1)
    return count


# ---- grids of whole levels


def _leading(steps: int, levels: int) -> list[int]:
    """``n_k = floor(k N / K)``, rising (Song et al. 2021, arXiv 2010.02502, appendix D.2, "linear")."""
    return [k * levels // steps for k in range(steps)]


def _trailing(steps: int, levels: int) -> list[int]:
    """``n_k = round((k + 1) N / K) - 1``, rising (Lin et al. 2024, arXiv 2305.08891, table 2)."""
    # Fractions round exactly, ties to even: no level is lost or doubled to rounding noise.
    return [round(Fraction((k + 1) * levels, steps)) - 1 for k in range(steps)]


def _quadratic(steps: int, levels: int) -> list[int]:
    """``n_k = floor((k / (K - 1))^2 0.8 N)``, made strictly rising (Song et al. 2021, appendix D.2).

    The authors' code repeats an index where the squares are close (at K = 50, index 0), which wastes an
    evaluation: a repeated index is moved to the next free level.
    """
    indices: list[int] = []
    for k in range(steps):
        square = 4 * levels * k**2 // (5 * (steps - 1) ** 2)
        indices.append(max(square, indices[-1] + 1) if indices else square)
    return indices


LEVEL_RULES: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": _leading,
    "uniform-trailing": _trailing,
    "quadratic": _quadratic,
}


def _on_levels(name: str, steps: int, schedule: Schedule, start: float | None) -> list[float]:
    if steps > schedule.levels:
        raise BadValue(
            f"steps must be at most {schedule.levels}, the levels of the schedule {schedule.name!r}, "
            f"got {steps}; ask for fewer, or take logsnr or karras, which place nodes between the levels"
        )
    # With one step the rules would start at their lowest level, from almost clean data.
    indices = LEVEL_RULES[name](steps, schedule.levels) if steps > 1 else [schedule.levels - 1]
    nodes = [time_of_index(n, schedule.levels).item() for n in reversed(indices)]
    if start is not None:
        if steps > 1 and start <= nodes[1]:
            raise BadValue(f"start must lie above the grid's second time, {nodes[1]:g}, got {start}")
        nodes[0] = float(start)
    return nodes


# ---- grids that spread their nodes

Map = Callable[[Schedule, Tensor], Tensor]
KARRAS = 7  # "rho" of Karras et al. 2022 (arXiv 2206.00364), eq. 5; their sigma is our rho = sigma / alpha

_VARIABLES: dict[str, tuple[Map, Map]] = {
    "uniform": (lambda schedule, t: t, lambda schedule, t: t),
    "quadratic": (lambda schedule, t: t.sqrt(), lambda schedule, root: root**2),
    # Uniform in lambda: DPM-Solver, Lu et al. 2022 (arXiv 2206.00927), section 3.
    "logsnr": (lambda schedule, t: schedule.lam(t), lambda schedule, lam: schedule.time_of_lam(lam)),
    "karras": (
        lambda schedule, t: schedule.rho(t) ** (1 / KARRAS),
        lambda schedule, root: schedule.time_of_lam(-KARRAS * root.log()),
    ),
}
"""Functions of time in which nodes lie evenly, with their inverses."""


def _spread(name: str, steps: int, schedule: Schedule, start: float) -> list[float]:
    if name == "uniform-trailing":
        return torch.linspace(start, 0, steps + 1, dtype=torch.float64)[:-1].tolist()
    if steps == 1:
        return [start]
    # lambda and log rho are infinite at t = 0: the nodes go down to t_min, and the last step from there to 0.
    if start <= schedule.t_min:
        raise BadValue(f"start must be above {schedule.t_min:g}, the last time of an evaluation, got {start}")
    of_time, to_time = _VARIABLES[name]
    # A variable that is infinite at t = 1 is spread from the largest time where it is not.
    finite = bool(of_time(schedule, torch.tensor(start, dtype=torch.float64)).isfinite())
    first = start if finite else schedule.t_max
    ends = of_time(schedule, torch.tensor([first, schedule.t_min], dtype=torch.float64))
    places = torch.linspace(0, 1, steps, dtype=torch.float64)
    inner = to_time(schedule, torch.lerp(ends[0], ends[1], places[1:-1])).tolist()
    return [start, *inner, schedule.t_min]
