"""The direction error: how far the direction that a sampler uses over an interval is from the one that it should use.

In ``y = x / alpha`` and ``rho = sigma / alpha`` the probability flow is ``dy / drho = eps(x, t)``. A step from t to s,
whatever the solver, moves along one direction,

    ``d = (y_s - y_t) / (rho_s - rho_t)``,

and the true trajectory through the same state moves along the mean of eps,

    ``d* = 1 / (rho_s - rho_t)  integral of eps(x(rho), t(rho)) drho``.

Where a schedule's direction is the velocity, that takes the place of eps, ``alpha + sigma`` that of alpha and
``sigma / (alpha + sigma)`` that of rho: on the straight path y is x, and rho is t (:mod:`tt_lib.schedules`).

Everything is measured on the states that the sampler itself reaches, so it means the same for every solver:

- **angle** between d and d*, in degrees, and **relative** distance, ``|d - d*|`` over the root mean square of ``|d*|``
  over the samples (a sample that stands still has a mean direction of length 0, and must not count for all others);
- **local** truncation error: the distance of the step's result from the flow through the state before it;
- **accumulated** truncation error: its distance from the flow that started at the same noise.

Both errors are root mean squares over pixels. The last interval, into clean data, has a direction too: rho ends at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, NotFinite, check_range
from tt_lib.grids import Grid
from tt_lib.networks.running import cudnn_flags
from tt_lib.noise import SampleNoise, check_seeds
from tt_lib.predictors import Predictor
from tt_lib.rows import device_name, provenance, short_hash
from tt_lib.sampling import Progress, Sampler, fine_solution
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.registry import Solver
from tt_lib.toy import MixturePredictor, exact_flow

MEASURES = ("angle", "relative", "local", "accumulated")
Flow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The true flow: (x [B, ...], t, s) -> x_s."""


@dataclass(frozen=True)
class Directions:
    """What was measured on each of K steps for each of B samples; every tensor is float64 [K, B].

    Attributes:
        times: the K + 1 nominal times.
        angle: between the direction used and the mean one, in degrees.
        relative: the length of their difference over the typical length of the mean one.
        local, accumulated: truncation errors, root mean squares over pixels.
        doubt: the local error of the flow itself, estimated from half as many substeps; 0 where the flow is exact.
    """

    times: tuple[float, ...]
    angle: Tensor
    relative: Tensor
    local: Tensor
    accumulated: Tensor
    doubt: Tensor

    def frame(self) -> pd.DataFrame:
        """A row for each step: t, s, the mean over samples of each measure, and half of its 95 % interval."""
        steps = len(self.times) - 1
        columns: dict[str, Any] = {"step": range(steps), "t": self.times[:-1], "s": self.times[1:]}
        for name in MEASURES:
            values = getattr(self, name)
            columns[name] = values.mean(1).numpy()
            columns[f"{name}_margin"] = 1.96 * values.std(1).numpy() / values.shape[1] ** 0.5
        return pd.DataFrame(columns | {"doubt": self.doubt.mean(1).numpy()})


def measure_directions(
    predictor: Predictor,
    schedule: Schedule,
    solver: Solver,
    grid: Grid,
    x: Tensor,
    taus: Sequence[float] | None = None,
    *,
    gains: Sequence[float] | None = None,
    substeps: int = 16,
    progress: Progress | None = None,
) -> Directions:
    """Compare each step of a sampler with the true flow.

    Args:
        predictor: ``(x, t, tau) -> direction``. A :class:`~tt_lib.toy.MixturePredictor` has an exact flow. The flow of
            a network is computed in ``substeps`` steps of DPM-Solver++(2M) for each interval, and its error estimated.
        solver: deterministic.
        x: the start [B, ...] at ``grid.times[0]``.
        taus: the conditioning times, untuned if None.
        gains: the factor on each network output of the sampler; the flow has none.
        substeps: steps of the flow in each interval; even, at least 2.
        progress: called with (intervals done, of all, message).

    Raises:
        BadValue: a solver that draws noise, or an odd number of substeps.
        NotFinite: the network returned NaN or infinity, or a measure is not finite.
    """
    if solver.stochastic:
        raise BadValue(
            f"{solver.name} draws noise, so it has no direction error; take a deterministic solver, such as ddim"
        )
    flow, coarse = _flows(predictor, schedule, substeps)
    run = drive(solver(x, grid, schedule), predictor, taus, gains=gains, keep=True)
    # The K + 1 states where the sampler begins a step, and where it ends.
    states = [*(request.x for request in run.trajectory if request.stage == 0), run.x]
    times = grid.tensor()
    rows, truth = [], x
    for k in range(grid.steps):
        t, s = times[k], times[k + 1]
        truth = flow(truth, t, s)
        target = flow(states[k], t, s)
        doubt = _rms(coarse(states[k], t, s) - target) if coarse else torch.zeros(len(x)).double()
        used, true = (_direction(schedule, states[k], end, t, s) for end in (states[k + 1], target))
        rows.append(
            (
                _angle(used, true),
                _length(used - true) / _length(true).square().mean().sqrt(),
                _rms(states[k + 1] - target),
                _rms(states[k + 1] - truth),
                doubt,
            )
        )
        if progress:
            progress(k + 1, grid.steps, f"interval {k + 1} of {grid.steps}")
    columns = [torch.stack(column).cpu() for column in zip(*rows, strict=True)]
    for name, values in zip((*MEASURES, "doubt"), columns, strict=True):
        if not bool(values.isfinite().all()):
            step, sample = (~values.isfinite()).nonzero()[0].tolist()
            raise NotFinite(
                f"{name} of sample {sample} in step {step + 1} of {grid.steps} is {values[step, sample]:g}: its state "
                "or its mean direction is 0, or too large for a number; look at the network and its schedule"
            )
    return Directions(grid.times, *columns)


@cudnn_flags(allow_tf32=False)
@torch.no_grad()
def direction_rows(
    sampler: Sampler, *, timing: str, n: int = 64, seed: int = 0, substeps: int = 16, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The rows of ``direction.csv`` of one sampler, a row for each step.

    Args:
        sampler: deterministic, and without a correction.
        timing: its name.
        n: samples, each its own trajectory; all are in memory at once.
        seed: of the first sample.
        substeps, progress: see :func:`measure_directions`.

    Raises:
        BadValue: a sampler that draws noise or is corrected, or a number out of range.
        NotFinite: see :func:`measure_directions`.
    """
    check_range("n of directions", n, 2, 10_000)  # an interval needs two
    check_range("substeps of directions", substeps, 1, 1000)
    check_seeds(seed, n)
    if sampler.correction is not None:
        raise BadValue(f"{timing} corrects the network while it samples, so it has no direction errors; leave it out")
    x = SampleNoise(range(seed, seed + n)).start(sampler.shape).to(sampler.device)
    frame = measure_directions(
        sampler.predictor,
        sampler.schedule,
        sampler.solver,
        sampler.grid,
        along(sampler.schedule.scale(sampler.grid.tensor()[0]), x) * x,
        sampler.timing.taus if sampler.timing else None,
        gains=(sampler.timing.gains or None) if sampler.timing else None,
        substeps=substeps,
        progress=progress,
    ).frame()
    facts = {
        "model": sampler.model,
        "weights": short_hash(sampler.weights),
        "solver": sampler.solver.spelling,
        "grid": sampler.grid.name,
        "nfe": len(sampler.evaluations),
        "eta": sampler.solver.eta,
        "timing": timing,
        "n": n,
        "seed": seed,
        "substeps": substeps,
        "device": device_name(sampler.device),
        **provenance(),
    }
    return [
        {**facts, **{name: float(f"{value:.6g}") for name, value in row.items()}, "step": int(row["step"])}
        for row in frame.to_dict("records")
    ]


def _flows(predictor: Predictor, schedule: Schedule, substeps: int) -> tuple[Flow, Flow | None]:
    """The flow, and one with half the substeps to estimate its error by; None if the flow is exact."""
    if substeps < 2 or substeps % 2:
        raise BadValue(f"substeps must be even and at least 2, got {substeps}")
    if isinstance(predictor, MixturePredictor) and predictor.schedule is schedule:
        return lambda x, t, s: exact_flow(predictor, x, t, s, schedule), None

    def flow(steps: int) -> Flow:
        return lambda x, t, s: fine_solution(predictor, schedule, x, t, s, steps)

    return flow(substeps), flow(substeps // 2)


def _direction(schedule: Schedule, x: Tensor, end: Tensor, t: Tensor, s: Tensor) -> Tensor:
    x, end = x.double(), end.double()
    y, y_end = x / along(schedule.c(t), x), end / along(schedule.c(s), x)
    return (y_end - y) / along(schedule.w(s) - schedule.w(t), x)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _rms(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().mean(1).sqrt()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """In degrees, [B]. From sum and difference of the unit vectors: exact for small angles, as acos is not."""
    a, b = (v.flatten(1) / _length(v)[:, None] for v in (a, b))
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)).rad2deg()
