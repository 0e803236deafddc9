"""What the tests of solvers share: a made-up network, comparison with diffusers, coefficients and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tt_lib.engine import Run, drive
from tt_lib.grids import Grid
from tt_lib.schedules import Schedule, along, make_schedule
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, single_gaussian

SCHEDULES = {name: make_schedule(name) for name in ("linear", "cosine", "continuous-linear")}
PATHS = {name: make_schedule(name) for name in ("flow", "ve", "zero-snr")}
"""Those that do not preserve the variance, or fall to alpha = 0."""
LINEAR, CONTINUOUS = SCHEDULES["linear"], SCHEDULES["continuous-linear"]
UNEVEN = torch.tensor([0.95, 0.7, 0.62, 0.31, 0.06], dtype=torch.float64)
DETERMINISTIC = sorted(name for name, solver in SOLVERS.items() if not solver.stochastic)
STOCHASTIC = sorted(name for name, solver in SOLVERS.items() if solver.stochastic)
LOWERED = [f"{name},final=lower" for name in ("dpmpp-2m", "dpmpp-3m", "deis-tab", "unipc")]
MEAN, SCALE = 0.5, 0.25
EXACT = MixturePredictor(single_gaussian(MEAN, SCALE), LINEAR)


def float64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def points(n: int, dim: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def even_in_lambda(steps: int, schedule: Schedule, first: float = 0.9, last: float = 0.1) -> Tensor:
    """K + 1 times that end above 0, where lambda is finite."""
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return schedule.time_of_lam(torch.lerp(*schedule.lam(float64([first, last])), place))


def gaussian_flow(x: Tensor, t, u, mean, scale: float, schedule: Schedule) -> Tensor:
    """The exact flow of ``N(m, s^2 I)`` from t to u, for ``x`` [B, D], times scalar or [B], the mean a number or [D]:

    ``x_u = alpha_u m + sqrt((alpha_u^2 s^2 + sigma_u^2) / (alpha_t^2 s^2 + sigma_t^2)) (x_t - alpha_t m)``
    """
    spread_t, spread_u = (torch.hypot(schedule.alpha(time) * scale, schedule.sigma(time)) for time in (t, u))
    alpha_t, alpha_u, factor = (along(each, x) for each in (schedule.alpha(t), schedule.alpha(u), spread_u / spread_t))
    return alpha_u * float64(mean) + factor * (x - alpha_t * float64(mean))


# ---- coefficients


def coefficient_table(name: str, times: Tensor, schedule: Schedule, **options) -> np.ndarray:
    """[n + 1]: what the solver's result takes from x and from each of its n answers, measured with unit vectors."""
    solver = make_solver(name, **options)
    count = drive(solver(torch.zeros(1, 1, dtype=torch.float64), times, schedule), lambda x, t, tau: x).nfe
    unit = torch.eye(count + 1, dtype=torch.float64)
    answers = iter(unit[1:, None])
    return drive(solver(unit[:1], times, schedule), lambda x, t, tau: next(answers)).x[0].numpy()


# ---- diffusers


def scheduler_of(name: str, steps: int | None = None, **options):
    """A scheduler of diffusers with DDPM's betas, its timesteps set."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    if steps:
        scheduler.set_timesteps(steps)
    return scheduler


def network(x: Tensor, t, tau=None) -> Tensor:
    """Any smooth function will do as a network: bounded, nonlinear, different in every pixel and time."""
    n = 1000 * float(t) - 1
    place = torch.arange(x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return torch.sin(1.3 * x + 0.01 * n) + 0.3 * torch.cos(0.7 * place + 0.003 * n)


def an_image() -> Tensor:
    return points(4, 6).reshape(4, 2, 3)


def grid_of(scheduler, end: float = 0.0) -> Grid:
    """The grid of a scheduler's timesteps; ``end`` is 0.001 for those that end at their lowest level."""
    return Grid("theirs", (*((n + 1) / 1000 for n in scheduler.timesteps.tolist()), end))


def our_run(name: str, grid: Grid, x: Tensor | None = None, noise=None, **options) -> Run:
    return drive(make_solver(name, **options)(an_image() if x is None else x, grid, LINEAR, noise), network, keep=True)


def our_states(name: str, grid: Grid, **options) -> list[Tensor]:
    """The states that the solver goes through with the made-up network, the start first."""
    return states(our_run(name, grid, **options))


def states(run: Run) -> list[Tensor]:
    return [*(request.x for request in run.trajectory), run.x]


def their_states(scheduler) -> list[Tensor]:
    x = [an_image()]
    for n in scheduler.timesteps:
        x.append(scheduler.step(network(x[-1], (float(n) + 1) / 1000), n, x[-1]).prev_sample)
    return x


def gaps(ours: list[Tensor], theirs: list[Tensor]) -> np.ndarray:
    """How far each of our states is from theirs, as a share of its size."""
    return np.array([((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)])


# ---- laws


def draw(seed: int):
    """A source of noise."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def with_gamma(name: str, times, **options) -> Solver:
    """A solver for these times; one that needs gamma gets the Gaussian's, ``sigma^2 / (alpha^2 s^2 + sigma^2)``."""
    if SOLVERS[name.partition(",")[0]].needs_gamma:
        t = torch.as_tensor(times, dtype=torch.float64)[:-1]
        variance = LINEAR.sigma(t) ** 2
        options["gamma"] = tuple((variance / (LINEAR.alpha(t) ** 2 * SCALE**2 + variance)).tolist())
    return make_solver(name, **options)


def law_of(name: str, times: Tensor, mean: float, var: float, **options) -> tuple[float, float]:
    """Mean and variance after a run on one Gaussian, exactly: eps is affine in x, and so is the run in x and noises."""
    steps = len(times) - 1
    # One batch does it: rows that start at 0 and at 1, and one row for a unit of each step's noise.
    x = torch.zeros(2 + steps, 1, dtype=torch.float64)
    x[1] = 1
    units = iter(torch.eye(2 + steps, dtype=torch.float64)[2:, :, None])
    run = drive(with_gamma(name, times, **options)(x, times, LINEAR, lambda x: next(units)), EXACT)
    base, one, *moved = run.x[:, 0].tolist()
    return base + (one - base) * mean, (one - base) ** 2 * var + sum((unit - base) ** 2 for unit in moved)


def start_law(t: Tensor) -> tuple[float, float]:
    """Mean and variance of x_t."""
    alpha, sigma = LINEAR.alpha(t).item(), LINEAR.sigma(t).item()
    return alpha * MEAN, alpha**2 * SCALE**2 + sigma**2
