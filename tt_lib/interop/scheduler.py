"""A scheduler of diffusers as a solver: it asks for the directions, and the engine chooses the conditioning times.

diffusers' loop is ``y = scheduler.step(network(scheduler.scale_model_input(y, n), n), n, y)`` over the scheduler's
timesteps n. Here each evaluation is a :class:`~tt_lib.engine.Request` instead, with

- ``t = (n + 1) / N``, as everywhere in this library, fractional n included;
- the variance-preserving state x. Heun, Euler, LMS and KDPM2 keep ``y = x / alpha``, and ``scale_model_input``
  multiplies it by alpha. The others keep x itself;
- ``stage`` 0 where a step begins, and 1, 2, ... for the other evaluations of a step.

The answer is eps; the scheduler is given what its ``prediction_type`` says. Its own quirks stay as they are: DDIM and
PNDM step to ``n - N // steps`` whatever the next timestep is, and DDIM clips x0 unless it has ``clip_sample=False``.
Between two levels diffusers interpolates sigma / alpha, and this library log alpha: there the noise level of the state
differs a little from the one of its t (whole levels agree).

Three tables say what is supported: :data:`STAGES` the classes of schedulers, :data:`REFUSED` why others cannot be
adapted, :data:`REQUIRED` the options that must have one value.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, count_steps
from tt_lib.predictors import PREDICTION_TYPES, to_x0
from tt_lib.schedules import DiscreteSchedule, Schedule, along, time_of_index
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import Noise, Solver
from tt_lib.timing import UNTUNED, Timing

# ---- what is supported


def _only_one(scheduler: Any) -> int:
    return 0


def _two_as_heun(scheduler: Any) -> int:
    return 0 if scheduler.state_in_first_order else 1


def _pndm(scheduler: Any) -> int:
    """Four evaluations for each Runge-Kutta step; without these, two for the first step, as in Heun's method."""
    if scheduler.config.skip_prk_steps:
        return int(scheduler.counter == 1)
    return scheduler.counter % 4 if scheduler.counter < len(scheduler.prk_timesteps) else 0


def _single_step(scheduler: Any) -> int:
    return scheduler.order_list[scheduler.step_index or 0] - 1


STAGES: dict[str, Callable[[Any], int]] = {
    "DDIMScheduler": _only_one,
    "DEISMultistepScheduler": _only_one,
    "DPMSolverMultistepScheduler": _only_one,
    "DPMSolverSinglestepScheduler": _single_step,
    "EulerDiscreteScheduler": _only_one,
    "HeunDiscreteScheduler": _two_as_heun,
    "KDPM2DiscreteScheduler": _two_as_heun,
    "LMSDiscreteScheduler": _only_one,
    "PNDMScheduler": _pndm,
    "UniPCMultistepScheduler": _only_one,
}
"""The schedulers that can be adapted, and how each tells which evaluation of a step comes next."""

_FLOW = "it samples a flow, not a variance-preserving diffusion"
_DRAWS = "it draws noise that no generator for each sample can give"
REFUSED = {
    "Flow": _FLOW,
    "Ancestral": _DRAWS,
    "SDE": _DRAWS,
    "DDPM": f"{_DRAWS} (DDIMScheduler with eta = 1 is its like)",
    "LCM": _DRAWS,
    "EDM": "it scales its states and times as EDM does, not as a variance-preserving network expects them",
}
"""Why a scheduler cannot be adapted, by a part of its class's name."""

REQUIRED: dict[str, tuple[Any, str]] = {
    "use_flow_sigmas": (False, _FLOW),
    "thresholding": (
        False,
        "it takes quantiles of whole images, which a predictor does: tt_lib.guidance.Clipped(..., percentile=0.995)",
    ),
    "variance_type": (None, "predictors drop the variance themselves"),
    "timestep_type": ("discrete", "its times are no levels"),
}
"""Options of schedulers with the only value that can be adapted, and why."""


# ---- adapting


@dataclass(frozen=True)
class Adapted:
    """A scheduler of diffusers, ready to be tuned and sampled with.

    Attributes:
        solver: drives a copy of the scheduler; its options are the scheduler's configuration.
        grid: the K + 1 times at which its steps begin and end.
        schedule: the noise levels of its ``alphas_cumprod``; gives ``EpsPredictor`` the network's time.
        times: the nominal time of each evaluation, in order; some repeat.
        kind: what the network must predict, for ``EpsPredictor(..., kind=...)``: ``eps``, ``v`` or ``x0``.
        start_scale: see :meth:`start`.
    """

    solver: Solver
    grid: Grid
    schedule: DiscreteSchedule
    times: tuple[float, ...]
    kind: str
    start_scale: float

    @property
    def nfe(self) -> int:
        """Network evaluations of a run."""
        return len(self.times)

    def start(self, noise: Tensor) -> Tensor:
        """x_T [B, ...] of a pipeline that draws ``noise`` [B, ...] ~ N(0, I): what ``init_noise_sigma`` makes of it.

        This is ``noise`` itself, but for schedulers that keep ``x / alpha`` and are spaced "linspace" or "trailing":
        those take ``sigma_T noise`` for x_T, with sigma_T = 0.99998 for 1000 linear betas.
        """
        return noise * self.start_scale

    def timing(self, taus: Sequence[float] | None = None, *, name: str = UNTUNED) -> Timing:
        """A timing for this sampler with the conditioning times ``taus``; by default untuned, tau = t."""
        return Timing(
            name,
            tuple(taus or self.times),
            self.times,
            model="",
            schedule=self.schedule.name,
            solver=self.solver.name,
            options=self.solver.choices_made,
            grid=self.grid.name,
            grid_times=self.grid.times,
        )


def from_scheduler(scheduler: Any, steps: SupportsIndex, *, eta: float = 0.0) -> Adapted:
    """Make a solver, with its grid and schedule, of a scheduler of diffusers.

    Example::

        adapted = from_scheduler(DDIMScheduler(clip_sample=False), steps=10)
        predictor = EpsPredictor(unet, adapted.schedule, kind=adapted.kind)
        sampler = Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, shape=(3, 32, 32))
        timing = tune(sampler, images).timing
        start = adapted.start(torch.randn(8, 3, 32, 32))
        x = drive(adapted.solver(start, adapted.grid, adapted.schedule), predictor, timing.taus).x

    The solver runs its own grid from start to end, so it is tuned sequentially: the parallel strategy asks for single
    steps of it and gets a :class:`BadValue`. Each run starts a copy of the scheduler, which is never changed itself.
    Gradients flow through it. Schedulers that take ``variance_noise`` (DDIM with ``eta``, "sde-dpmsolver++") draw it
    for each sample.

    Args:
        scheduler: an object of one of the classes in :data:`STAGES`.
        steps: ``num_inference_steps``, at least 1. Some make more evaluations than steps: Heun ``2 steps - 1``, PNDM
            ``steps + 1``, or ``steps + 9`` with Runge-Kutta steps.
        eta: DDIM's share of noise, in [0, 1].

    Raises:
        BadValue: a scheduler that cannot be adapted, naming what stands against it and the remedy; or an impossible
            number of steps.
    """
    name, stage = type(scheduler).__name__, _stage_of(scheduler)
    draws = eta > 0 or str(scheduler.config.get("algorithm_type")).startswith("sde")
    _check_config(name, scheduler, eta, draws)
    count = count_steps(steps)
    ready = copy.deepcopy(scheduler)
    with _refused(f"{name} cannot make {count} steps", "ask for another number"):
        ready.set_timesteps(count)
    schedule = _schedule_of(name, ready)
    run = _Run(ready, stage, PREDICTION_TYPES[ready.config.prediction_type], float(eta), draws)
    # A dry run says what it evaluates: no formula of ours counts it.
    with _refused(f"{name} fails with {count} steps", "ask for another number or mend its configuration"):
        evaluations = layout(Solver(name, run), torch.empty(0), schedule)
    end = _end_of(ready, schedule)
    times = tuple(each.t for each in evaluations if each.stage == 0)
    if end > times[-1] - 1e-9 and len(times) > 1:
        # The last evaluation leads nowhere (PNDM's default): it belongs to the step that ends at its time.
        run.wasted, end, times = len(evaluations) - 1, times[-1], times[:-1]
    with _refused(f"{name} with {count} steps repeats a time", "ask for fewer steps or another spacing"):
        grid = Grid(f"diffusers-{ready.config.get('timestep_spacing', 'own')}", (*times, end))
    run.times = grid.times
    options = {key: _plain(value) for key, value in ready.config.items() if not key.startswith("_") and value}
    options |= {"eta": float(eta)} if eta else {}

    def plan(nfe: int) -> tuple[int, dict[str, Any]]:
        if nfe != len(evaluations):
            raise BadValue(
                f"{name} was adapted for {len(evaluations)} evaluations, not {nfe}; adapt it with other steps"
            )
        return grid.steps, {}

    solver = Solver(name, run, plan=plan, draws=draws, options=options)
    start_scale = float(ready.init_noise_sigma) * _scale(copy.deepcopy(ready))
    return Adapted(solver, grid, schedule, tuple(each.t for each in evaluations), run.kind, start_scale)


def _stage_of(scheduler: Any) -> Callable[[Any], int]:
    for kind in type(scheduler).__mro__:
        if kind.__name__ in STAGES and kind.__module__.startswith("diffusers."):
            return STAGES[kind.__name__]
    name = type(scheduler).__name__
    reason = next((why for part, why in REFUSED.items() if part in name), "it is none of the supported ones")
    raise BadValue(f"cannot adapt {name}: {reason}; choose one of: {', '.join(STAGES)}")


def _check_config(name: str, scheduler: Any, eta: float, draws: bool) -> None:
    """Raise :class:`BadValue` for a configuration that would be adapted wrongly."""
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise BadValue(
            f"cannot adapt {name} with prediction_type {prediction!r}; it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    for key, (required, why) in REQUIRED.items():
        if (config.get(key) or required) != required:
            raise BadValue(f"cannot adapt {name} with {key}={config[key]!r}: {why}; set it to {required!r}")
    if not 0 <= eta <= 1:
        raise BadValue(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    accepts = inspect.signature(scheduler.step).parameters
    if eta and not {"eta", "variance_noise"} <= set(accepts):
        raise BadValue(f"{name} takes no eta, got {eta}; leave it at 0 or take DDIMScheduler")
    if draws and "variance_noise" not in accepts:
        raise BadValue(
            f"cannot adapt {name} with algorithm_type {config['algorithm_type']!r}: {_DRAWS}; "
            "take DPMSolverMultistepScheduler"
        )


@contextlib.contextmanager
def _refused(what: str, remedy: str) -> Iterator[None]:
    """Make one :class:`BadValue` of whatever is raised: schedulers raise what numpy, torch or they themselves raise."""
    try:
        yield
    except Exception as error:
        raise BadValue(f"{what} ({error}); {remedy}") from error


def _schedule_of(name: str, scheduler: Any) -> DiscreteSchedule:
    squares = scheduler.alphas_cumprod.detach().double().cpu()
    betas = 1 - squares / torch.cat([torch.ones(1, dtype=torch.float64), squares[:-1]])
    label = "trained" if scheduler.config.get("trained_betas") is not None else scheduler.config.beta_schedule
    try:
        return DiscreteSchedule(betas, label)
    except BadValue as error:
        raise BadValue(
            f"cannot adapt {name}: its alphas_cumprod must fall strictly and stay above 0, as they do not with "
            "rescale_betas_zero_snr (there eps says nothing of the image); set that to False"
        ) from error


def _end_of(scheduler: Any, schedule: DiscreteSchedule) -> float:
    """The time of the state after the last step: 0 for clean data."""
    if hasattr(scheduler, "sigmas"):
        rho = scheduler.sigmas[-1].double()
        return 0.0 if rho == 0 else round(float(schedule.time_of_lam(-rho.log())), 7)
    before = int(scheduler.timesteps[-1]) - schedule.levels // scheduler.num_inference_steps
    if before < 0:
        before = -1 if scheduler.final_alpha_cumprod == 1 else 0
    return float(time_of_index(before, schedule.levels))


def _scale(scheduler: Any) -> float:
    """alpha at the first timestep for a scheduler that keeps x / alpha, else 1."""
    return float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), scheduler.timesteps[0]))


def _plain(value: Any) -> Any:
    """A value of a configuration for a timing's options: a number or a short text."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- running


@dataclass
class _Run:
    """A solver's function: each call starts a copy of ``scheduler``.

    Attributes:
        scheduler: with its timesteps set, and never stepped.
        stage: tells which evaluation of a step comes next.
        kind: what the scheduler expects of the network.
        eta: DDIM's.
        draws: whether a run draws noise.
        times: the only grid that it can run (None for the dry run).
        wasted: the number of a last evaluation that leads nowhere.
    """

    scheduler: Any
    stage: Callable[[Any], int]
    kind: str
    eta: float
    draws: bool
    times: tuple[float, ...] | None = None
    wasted: int = -1

    def __call__(self, x: Tensor, times: Tensor, schedule: Schedule, noise: Noise, **options: Any) -> Solution:
        if self.times is not None:
            own = torch.tensor(self.times, dtype=torch.float64)
            if times.shape != own.shape or (times.detach().cpu() - own).abs().max() > 1e-9:
                raise BadValue(
                    f"{type(self.scheduler).__name__} of diffusers runs its own grid of {len(own) - 1} steps from "
                    f"start to end, and was asked for other times, of shape {list(times.shape)}; tune it with "
                    "strategy='sequential', and adapt it again for another number of steps"
                )
        return self._solve(x, schedule, noise)

    def _solve(self, x: Tensor, schedule: Schedule, noise: Noise) -> Solution:
        scheduler = copy.deepcopy(self.scheduler)
        extra: dict[str, Any] = {"eta": self.eta} if self.eta else {}
        scale = _scale(scheduler)
        state = x / scale
        for number, n in enumerate(scheduler.timesteps):
            stage = 1 if number == self.wasted else self.stage(scheduler)
            t = time_of_index(n.double().cpu(), schedule.levels)
            x = scheduler.scale_model_input(state, n)
            eps = yield Request(x, t, stage)
            if self.draws:
                extra["variance_noise"] = noise(state)
            prediction = _prediction(self.kind, eps, x, t, schedule)
            state = scheduler.step(prediction, n, state, return_dict=False, **extra)[0]
        # A scheduler that keeps x / alpha ends with x where sigma is 0, and elsewhere with x / alpha.
        return state if scale == 1 else state / (1 + float(scheduler.sigmas[-1]) ** 2) ** 0.5


def _prediction(kind: str, eps: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """What the scheduler expects for an eps: the inverse of :func:`tt_lib.predictors.to_eps` at the same t."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return to_x0(eps, x, t, schedule)
    return (eps - along(schedule.sigma(t), x) * x) / along(schedule.alpha(t), x)
