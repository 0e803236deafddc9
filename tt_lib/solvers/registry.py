"""Solvers: each a generator that reads like its paper, and a registry of them by name.

A solver function takes ``(x, times, schedule, noise, **options)``:

- ``x`` [B, ...]: the state at ``times[0]``;
- ``times``: float64 [K + 1], the grid, or [K + 1, B], one grid for each sample (that is how all K
  one-step problems of a tuning run as one batch);
- ``noise``: a function that draws noise shaped like the state it is given (only stochastic solvers call it).

It yields ``Request(x, t)``, is sent ``eps`` and returns ``x`` at ``times[-1]``. A solver with several evaluations
a step numbers them, ``Request(x, t, stage)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tt_lib.engine import Solution
from tt_lib.errors import BadValue, choose
from tt_lib.grids import Grid
from tt_lib.schedules import Schedule
from tt_lib.solvers.analytic import analytic_ddim, analytic_ddpm
from tt_lib.solvers.ddim import VARIANCES, ddim, ddpm
from tt_lib.solvers.dpm_solver import dpm_solver_2, dpm_solver_3, dpmpp_2s, heun
from tt_lib.solvers.dpmpp import VARIANTS as VARIANTS_OF_3M
from tt_lib.solvers.dpmpp import dpmpp_2m, dpmpp_3m, sde_dpmpp_2m
from tt_lib.solvers.multistep import deis_tab, ipndm_v, plan_pndm, plms, pndm
from tt_lib.solvers.orders import FINAL, Plan, one_each, only_3, orders_of_2, orders_of_3
from tt_lib.solvers.unipc import VARIANTS as VARIANTS_OF_UNIPC
from tt_lib.solvers.unipc import unipc

Noise = Callable[[Tensor], Tensor]
STEPWISE = ("orders", "gamma")
"""Options that hold one entry for each step."""
PLACED = ("after",)
"""Options that say where a stretch lies in its grid, which no one but :meth:`Solver.part` can know."""
MEASURED = ("gamma",)
"""Options that are measured on a model and no choice: a timing does not stand or fall with them."""


@dataclass(frozen=True)
class Solver:
    """A solver's function with its options and the facts that others need to know.

    Attributes:
        name: its name in the registry, in rows and in timings.
        function: the generator function.
        history: how many earlier steps a step uses (0 for single-step solvers); one fewer for each ``order`` fewer.
        ends_at_zero: whether a grid may end at clean data, ``t = 0``.
        options: keyword arguments of the function, such as ``eta``.
        plan: how it spends a budget of evaluations, see :meth:`for_nfe`.
        draws: whether it draws noise whatever its options.
        choices: the values that an option may have, where they are few.
    """

    name: str
    function: Callable[..., Solution]
    history: int = 0
    ends_at_zero: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    plan: Plan = one_each
    draws: bool = False
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __call__(self, x: Tensor, times: Tensor | Grid, schedule: Schedule, noise: Noise | None = None) -> Solution:
        """Start the solver.

        Raises:
            BadValue: the solver draws noise and no ``noise`` was given.
        """
        if isinstance(times, Grid):
            times = torch.tensor(times.times, dtype=torch.float64)
        return self.function(x, times, schedule, noise or _no_noise, **self.options)

    @property
    def eta(self) -> float:
        """The share of ancestral noise, 0 for a deterministic solver."""
        return float(self.options.get("eta", 0.0))

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
            cut["after"] = min(after, self.history)
        return replace(self, options={**self.options, **cut})

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that its function takes, with their defaults."""
        known = getattr(self.function, "__kwdefaults__", None) or {}
        return {key: value for key, value in known.items() if key not in PLACED}

    @property
    def choices_made(self) -> dict[str, Any]:
        """Its options without those that are measured: with the name, what a timing belongs to."""
        return {key: value for key, value in self.options.items() if key not in MEASURED}

    @property
    def spelling(self) -> str:
        """Its name with the options that were chosen, as :func:`make_solver` reads it: ``unipc,order=2,variant=bh1``."""
        chosen = {
            key: value
            for key, value in self.options.items()
            if key not in (*STEPWISE, *PLACED, "eta") and value != self.defaults.get(key)
        }
        return ",".join([self.name, *(f"{key}={value}" for key, value in sorted(chosen.items()))])

    @property
    def needs_gamma(self) -> bool:
        """Whether it works with ``gamma``, see :mod:`tt_lib.tuning.gamma`."""
        return "gamma" in self.defaults

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.draws or self.eta > 0

    def for_nfe(self, nfe: int) -> tuple[Solver, int]:
        """The solver, with the options that this budget takes, and K, the steps of a grid, for exactly ``nfe`` evaluations.

        Raises:
            BadValue: the solver needs more.
        """
        steps, options = self.plan(nfe)
        return replace(self, options={**self.options, **options}), steps


_UP_TO_4: dict[str, tuple[Any, ...]] = {"order": (1, 2, 3, 4)}
_ENDS: dict[str, tuple[Any, ...]] = {"final": FINAL}

SOLVERS: dict[str, Solver] = {
    "ddim": Solver("ddim", ddim),
    "dpmpp-2m": Solver("dpmpp-2m", dpmpp_2m, history=1, choices=_ENDS),
    "plms": Solver("plms", plms, history=3, choices=_UP_TO_4),
    "pndm": Solver("pndm", pndm, history=3, plan=plan_pndm),
    # Another name for plms: the two papers' methods are the same numbers.
    "ipndm": Solver("ipndm", plms, history=3, choices=_UP_TO_4),
    "ipndm-v": Solver("ipndm-v", ipndm_v, history=3, choices=_UP_TO_4),
    "deis-tab": Solver("deis-tab", deis_tab, history=2, choices=_UP_TO_4 | _ENDS),
    "dpmpp-3m": Solver("dpmpp-3m", dpmpp_3m, history=2, choices={"variant": tuple(VARIANTS_OF_3M), **_ENDS}),
    # The corrector reaches one step further back than the predictor.
    "unipc": Solver("unipc", unipc, history=3, choices={"order": (1, 2, 3), "variant": VARIANTS_OF_UNIPC, **_ENDS}),
    # Other names for ddim: DPM-Solver-1, and Euler's method in the variables of EDM.
    "dpm-solver-1": Solver("dpm-solver-1", ddim),
    "euler": Solver("euler", ddim),
    "dpm-solver-2": Solver("dpm-solver-2", dpm_solver_2, plan=orders_of_2),
    "dpm-solver-3": Solver("dpm-solver-3", dpm_solver_3, plan=only_3),
    "dpm-solver-fast": Solver("dpm-solver-fast", dpm_solver_3, plan=orders_of_3),
    "dpmpp-2s": Solver("dpmpp-2s", dpmpp_2s, plan=orders_of_2),
    "heun": Solver("heun", heun, plan=orders_of_2),
    "ddpm": Solver("ddpm", ddpm, draws=True, choices={"variance": VARIANCES}),
    # Their gamma is measured: make_solver needs none, a run does.
    "analytic-ddim": Solver("analytic-ddim", analytic_ddim, draws=True),
    "analytic-ddpm": Solver("analytic-ddpm", analytic_ddpm, draws=True),
    "sde-dpmpp-2m": Solver("sde-dpmpp-2m", sde_dpmpp_2m, history=1, draws=True),
}


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by name, with options.

    Args:
        name: a name of the registry, which may carry options, as a command or a table spells them:
            ``unipc,order=2,variant=bh1``.
        options: more options.

    Raises:
        BadValue: unknown name, an option that the solver does not take, or a value that it may not have.
    """
    name, spelled = _read_spelling(name)
    options = {**spelled, **options}
    choose("solver", name, SOLVERS)
    plain = SOLVERS[name]
    known = plain.defaults
    for option in options:
        if option not in known:
            raise BadValue(f"solver {name!r} takes no option {option!r}; it takes {sorted(known) or 'none'}")
        allowed = plain.choices.get(option, (options[option],))
        if options[option] not in allowed:
            shown = ", ".join(str(value) for value in allowed)
            raise BadValue(f"{option} of solver {name!r} must be one of {shown}; got {options[option]!r}")
    if not 0 <= options.get("eta", 0.0) <= 1:
        raise BadValue(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {options['eta']}")
    history = plain.history
    if history and "order" in options:
        history += options["order"] - known["order"]
    return replace(plain, options={**plain.options, **options}, history=history)


def _read_spelling(text: str) -> tuple[str, dict[str, Any]]:
    """``unipc,order=2,variant=bh1`` -> (``unipc``, {order: 2, variant: bh1})."""
    name, *parts = text.split(",")
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise BadValue(
                f"solver {text!r}: an option is spelled name=value, as in unipc,order=2,variant=bh1; got {part!r}"
            )
        if key in (*STEPWISE, "eta") or key in options:
            why = (
                "twice"
                if key in options
                else "here; --eta is an option of its own, and the others follow from NFE and model"
            )
            raise BadValue(f"solver {text!r}: {key} cannot be given {why}")
        options[key] = _number(value)
    return name, options


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _no_noise(x: Tensor) -> Tensor:
    raise BadValue("this solver draws noise, and no noise source was given: pass noise=...")
