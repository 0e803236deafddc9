"""Solvers by name: :class:`Solver`, the registry :data:`SOLVERS` and :func:`make_solver`.

A solver function takes ``(x, times, schedule, noise, **options)``:

- ``x`` [B, ...]: the state at ``times[0]``;
- ``times``: float64 [K + 1], the grid, or [K + 1, B], one grid for each sample (that is how all K
  one-step problems of a tuning run as one batch);
- ``noise``: a function that draws noise shaped like the state it is given (only stochastic solvers call it).

It yields ``Request(x, t)``, is sent the schedule's direction and returns ``x`` at ``times[-1]``. A solver with several
evaluations a step numbers them, ``Request(x, t, stage)``. What it returns has finite gradients in ``x``, the answers
and the times, also where the last time is 0 or the first has alpha = 0, and lambda is infinite. To add one: write the
function in the file of its family, and name it in :data:`SOLVERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from tt_lib.engine import Solution
from tt_lib.errors import BadValue, choose
from tt_lib.files import read_spelling
from tt_lib.grids import Grid
from tt_lib.schedules import VP, Schedule
from tt_lib.solvers.analytic import analytic_ddim, analytic_ddpm
from tt_lib.solvers.ddim import VARIANCES, ddim, ddpm
from tt_lib.solvers.dpm_solver import dpm_solver_2, dpm_solver_3, dpmpp_2s, heun
from tt_lib.solvers.dpmpp import VARIANTS_3M, dpmpp_2m, dpmpp_3m, sde_dpmpp_2m
from tt_lib.solvers.multistep import deis_tab, ipndm_v, plms, pndm
from tt_lib.solvers.orders import FINAL, Plan, highest_first, one_each, only_third, runge_kutta_start
from tt_lib.solvers.unipc import VARIANTS, unipc

Noise = Callable[[Tensor], Tensor]
STEPWISE = ("orders", "gamma")
"""Options that hold one entry for each step. They follow from NFE and model, and are no choice of the user's."""


@dataclass(frozen=True)
class Solver:
    """A solver's function with its options and the facts that others need to know.

    Attributes:
        name: its name in the registry, in rows and in timings.
        function: the generator function.
        history: how many earlier steps a step uses (0 for single-step solvers).
        plan: how many steps, and with which options, make a number of evaluations, see :meth:`for_nfe`.
        draws: whether it draws noise whatever its options.
        midpoint: whether it evaluates in the middle of a step in lambda, so that it cannot begin where alpha is 0.
        choices: the values that an option may have, where they are few.
        options: keyword arguments of the function, such as ``eta``.
    """

    name: str
    function: Callable[..., Solution]
    history: int = 0
    plan: Plan = one_each
    draws: bool = False
    midpoint: bool = False
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, times: Tensor | Grid, schedule: Schedule, noise: Noise | None = None) -> Solution:
        """Start the solver.

        Raises:
            BadValue: the solver draws noise and no ``noise`` was given, or see :meth:`check`.
        """
        if isinstance(times, Grid):
            times = times.tensor()
        self.check(schedule, times[0])
        return self.function(x, times, schedule, noise or _no_noise, **self.options)

    def check(self, schedule: Schedule, first: Tensor) -> None:
        """Raise :class:`BadValue` if the solver cannot run on a schedule from the time ``first``, a scalar or [B]."""
        if self.stochastic and not (isinstance(schedule, VP) and schedule.direction == "eps"):
            raise BadValue(
                f"{self.name} cannot draw noise on the schedule {schedule.name!r}: its variances are those of a "
                "variance-preserving diffusion whose alpha stays above 0; take a solver that draws none, such as ddim "
                "with eta 0"
            )
        if self.midpoint and schedule.direction != "eps" and bool((schedule.alpha(first) == 0).any()):
            raise BadValue(
                f"{self.name} evaluates in the middle of a step in lambda, and the schedule {schedule.name!r} has "
                "lambda = -inf at t = 1: a first step from there has no middle; take heun, dpmpp-2m or unipc, or "
                "begin below t = 1"
            )

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that its function takes, with their defaults."""
        return getattr(self.function, "__kwdefaults__", None) or {}

    @property
    def eta(self) -> float:
        """The share of ancestral noise, 0 for a deterministic solver."""
        return float(self.options.get("eta", 0.0))

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.draws or self.eta > 0

    @property
    def needs_gamma(self) -> bool:
        """Whether it works with ``gamma``, see :mod:`tt_lib.tuning.gamma`."""
        return "gamma" in self.defaults

    @property
    def choices_made(self) -> dict[str, Any]:
        """Its options without ``gamma``, which is measured on a model: with the name, what a timing belongs to."""
        return {key: value for key, value in self.options.items() if key != "gamma"}

    @property
    def spelling(self) -> str:
        """Its name with what was chosen, as :func:`make_solver` reads it: ``unipc,order=2,variant=bh1``."""
        chosen = {
            key: value
            for key, value in self.options.items()
            if key not in (*STEPWISE, "eta") and value != self.defaults.get(key)
        }
        return ",".join([self.name, *(f"{key}={value}" for key, value in sorted(chosen.items()))])

    def for_nfe(self, nfe: int) -> tuple[Solver, int]:
        """The solver with the options for exactly ``nfe`` evaluations, and K, the steps of the grid that it then needs.

        Raises:
            BadValue: the solver cannot make just so many.
        """
        steps, options = self.plan(nfe)
        return replace(self, options=self.options | options), steps

    def part(self, first: int, steps: int, after: int) -> Solver:
        """The solver for a stretch of its grid, with the orders that its steps have in the whole.

        Options with one entry for each step are cut to it; orders that fall at the end of the grid do not fall at
        the end of the stretch.

        Args:
            first: the stretch's first step.
            steps: how many it has.
            after: how many steps of the grid follow it.
        """
        cut = {key: value[first : first + steps] for key, value in self.options.items() if key in STEPWISE}
        if self.options.get("final") == "lower":
            # No order falls so far from the end, and stretches with the same options run alike.
            cut["final"] = min(after, self.history)
        return replace(self, options=self.options | cut)


_UP_TO_4: dict[str, tuple[Any, ...]] = {"order": (1, 2, 3, 4)}
_ENDS: dict[str, tuple[Any, ...]] = {"final": FINAL}
_SECOND, _THIRD = partial(highest_first, highest=2), partial(highest_first, highest=3)

SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver("ddim", ddim),
        Solver("dpmpp-2m", dpmpp_2m, history=1, choices=_ENDS),
        Solver("plms", plms, history=3, choices=_UP_TO_4),
        Solver("pndm", pndm, history=3, plan=runge_kutta_start),
        # Another name for plms: the two papers' methods are the same numbers.
        Solver("ipndm", plms, history=3, choices=_UP_TO_4),
        Solver("ipndm-v", ipndm_v, history=3, choices=_UP_TO_4),
        Solver("deis-tab", deis_tab, history=2, choices=_UP_TO_4 | _ENDS),
        Solver("dpmpp-3m", dpmpp_3m, history=2, choices={"variant": tuple(VARIANTS_3M), **_ENDS}),
        # The corrector reaches one step further back than the predictor.
        Solver("unipc", unipc, history=3, choices={"order": (1, 2, 3), "variant": VARIANTS, **_ENDS}),
        # Other names for ddim: DPM-Solver-1, and Euler's method in the variables of EDM.
        Solver("dpm-solver-1", ddim),
        Solver("euler", ddim),
        Solver("dpm-solver-2", dpm_solver_2, plan=_SECOND, midpoint=True),
        Solver("dpm-solver-3", dpm_solver_3, plan=only_third, midpoint=True),
        Solver("dpm-solver-fast", dpm_solver_3, plan=_THIRD, midpoint=True),
        Solver("dpmpp-2s", dpmpp_2s, plan=_SECOND, midpoint=True),
        Solver("heun", heun, plan=_SECOND),
        Solver("ddpm", ddpm, draws=True, choices={"variance": VARIANCES}),
        # Their gamma is measured: make_solver needs none, a run does.
        Solver("analytic-ddim", analytic_ddim, draws=True),
        Solver("analytic-ddpm", analytic_ddpm, draws=True),
        Solver("sde-dpmpp-2m", sde_dpmpp_2m, history=1, draws=True),
    )
}


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by name, with options.

    Args:
        name: a name of the registry, which may carry options, as in ``unipc,order=2,variant=bh1``.
        options: more options.

    Raises:
        BadValue: an unknown name, or an option or a value that the solver does not take.
    """
    text = name
    name, spelled = read_spelling("solver", text, "unipc,order=2,variant=bh1")
    for key in spelled.keys() & {*STEPWISE, "eta"}:
        raise BadValue(
            f"solver {text!r}: {key} cannot be given here; --eta is an option of its own, and the others follow "
            "from NFE and model"
        )
    options = spelled | options
    choose("solver", name, SOLVERS)
    solver = SOLVERS[name]
    defaults = solver.defaults
    for option, value in options.items():
        if option not in defaults:
            raise BadValue(
                f"solver {name!r} takes no option {option!r}; it takes {', '.join(sorted(defaults)) or 'none'}"
            )
        allowed = solver.choices.get(option, (value,))
        if value not in allowed:
            raise BadValue(f"{option} of solver {name!r} must be one of {', '.join(map(str, allowed))}; got {value!r}")
    if not 0 <= options.get("eta", 0.0) <= 1:
        raise BadValue(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {options['eta']}")
    # A step uses one earlier step fewer for each order fewer.
    fewer = defaults["order"] - options["order"] if "order" in options else 0
    return replace(solver, options=options, history=solver.history - fewer)


def _no_noise(x: Tensor) -> Tensor:
    raise BadValue("this solver draws noise, and no noise source was given: pass noise=...")
