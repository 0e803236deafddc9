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
adapted, :data:`REQUIRED` the options that must have one value. Every other option is the scheduler's own business:
its own code makes the steps, and its value is part of the timing.

:func:`check_scheduler` is the other way round: does the scheduler of a pipeline make the steps that a timing is for?
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution, drive
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import Grid, count_steps
from tt_lib.networks.unet import FLOW, OTHER_KINDS, schedule_name
from tt_lib.predictors import PREDICTION_TYPES, to_x0
from tt_lib.schedules import SCHEDULES, DiscreteSchedule, Schedule, along, make_schedule, time_of_index
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import SOLVERS, Noise, Solver, make_solver
from tt_lib.timing import Timing

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

_DRAWS = "it draws noise that no generator for each sample can give"
_TOKENS = "it samples tokens"
_ZERO_SNR = (
    "zero terminal SNR is not supported: at t = 1 nothing of the image is left, and eps says nothing of it there; "
    "choose a network that was trained without it"
)
REFUSED = {
    "Inverse": "it runs from data to noise",
    **OTHER_KINDS,
    "LTX": FLOW,
    "Helios": FLOW,
    "MiniMax": FLOW,
    "RFD4": FLOW,
    "Piflow": FLOW,
    "CogVideoX": "its steps and its noise levels are those of one video model",
    "Ancestral": _DRAWS,
    "SDE": _DRAWS,
    "SASolver": _DRAWS,
    "DDPM": f"{_DRAWS} (DDIMScheduler with eta = 1 is its like)",
    "Parallel": "its steps are those of the class without Parallel in its name",
    "RePaint": _DRAWS,
    "UnCLIP": _DRAWS,
    "LCM": _DRAWS,
    "TCD": _DRAWS,
    "SCM": _DRAWS,
    "CMStochastic": _DRAWS,
    "Cosine": OTHER_KINDS["EDM"],
    "IPNDM": "its noise levels are its own, whatever the network was trained on (this library's ipndm is its like)",
    "VQDiffusion": _TOKENS,
    "Amused": _TOKENS,
    "Block": _TOKENS,
    "Entropy": _TOKENS,
    "DiscreteDDIM": _TOKENS,
}
"""Why a scheduler cannot be adapted, by a part of its class's name; the first that fits."""

REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_flow_sigmas": ((False,), f"{FLOW}; set it to False"),
    "use_dynamic_shifting": ((False,), f"{FLOW}; set it to False"),
    "rescale_betas_zero_snr": ((False,), _ZERO_SNR),
    "thresholding": (
        (False,),
        "it takes quantiles of whole images; set it to False, a predictor does it: "
        "tt_lib.guidance.Clipped(..., percentile=0.995)",
    ),
    # The fixed ones are DDPMScheduler's; from_config brings them along to schedulers that do not look at them.
    "variance_type": ((None, "fixed_small", "fixed_large"), "predictors drop the variance themselves; set it to None"),
    "timestep_type": (("discrete",), "its times are no levels; set it to 'discrete'"),
    "interpolation_type": (("linear",), "its states have other noise levels than its timesteps; set it to 'linear'"),
    "solver_p": ((None,), "another scheduler makes a part of its steps; set it to None"),
}
"""Options of schedulers with the values that can be adapted; why no others, and the remedy."""


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

    def timing(self, taus: Sequence[float] | None = None, *, name: str = "identity") -> Timing:
        """A timing for this sampler with the conditioning times ``taus``; by default tau = t, which changes nothing."""
        return Timing(
            name,
            self.times if taus is None else tuple(taus),
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
        scheduler: an object of one of the classes in :data:`STAGES`. Its own rule spaces its steps: timesteps or sigmas
            that were set by hand are refused.
        steps: ``num_inference_steps``, at least 1. Some make more evaluations than steps: Heun ``2 steps - 1``, PNDM
            ``steps + 1``, or ``steps + 9`` with Runge-Kutta steps.
        eta: DDIM's share of noise, in [0, 1].

    Raises:
        BadValue: a scheduler that cannot be adapted, naming what stands against it and the remedy; or an impossible
            number of steps.
    """
    name, count = type(scheduler).__name__, count_steps(steps)
    _run_of(scheduler, eta)  # what cannot be adapted is refused by name, before it is tried
    _check_untouched(name, scheduler)
    ready = copy.deepcopy(scheduler)
    with _refused(f"{name} cannot make {count} steps", "ask for another number"):
        ready.set_timesteps(count)
    schedule, run = _schedule_of(name, ready), _run_of(ready, eta)
    # A dry run says what it evaluates: no formula of ours counts it.
    with _refused(f"{name} fails with {count} steps", "ask for another number or mend its configuration"):
        evaluations = layout(Solver(name, run), torch.empty(0), schedule)
    if not _dependence(Solver(name, run), (), schedule, len(evaluations)).isfinite().all():
        raise BadValue(
            f"cannot adapt {name}: with {count} steps and this configuration it ends in infinity; "
            "change its order or its last steps (lower_order_final, final_sigmas_type)"
        )
    end = _end_of(ready, schedule)
    times = tuple(each.t for each in evaluations if each.stage == 0)
    if end > times[-1] - 1e-9 and len(times) > 1:
        # The last evaluation leads nowhere (PNDM's default): it belongs to the step that ends at its time.
        run.wasted, end, times = len(evaluations) - 1, times[-1], times[:-1]
    with _refused(f"{name} with {count} steps repeats a time", "ask for fewer steps or another spacing"):
        grid = Grid(f"diffusers-{_config_of(ready).get('timestep_spacing', 'own')}", (*times, end))
    run.times = grid.times

    def plan(nfe: int) -> tuple[int, dict[str, Any]]:
        if nfe != len(evaluations):
            raise BadValue(
                f"{name} was adapted for {len(evaluations)} evaluations, not {nfe}; adapt it with other steps"
            )
        return grid.steps, {}

    solver = Solver(name, run, plan=plan, draws=run.draws, options=_options_of(ready, eta))
    start_scale = float(ready.init_noise_sigma) * _scale(copy.deepcopy(ready))
    return Adapted(solver, grid, schedule, tuple(each.t for each in evaluations), run.kind, start_scale)


def _stage_of(scheduler: Any) -> Callable[[Any], int]:
    for kind in type(scheduler).__mro__:
        if kind.__name__ in STAGES and kind.__module__.startswith("diffusers."):
            return STAGES[kind.__name__]
    name = type(scheduler).__name__
    reason = next((why for part, why in REFUSED.items() if part in name), "it is none of the supported ones")
    raise BadValue(f"cannot adapt {name}: {reason}; choose one of: {', '.join(STAGES)}")


def _config_of(scheduler: Any) -> dict[str, Any]:
    """The options that its class has. ``from_config`` also keeps those of the scheduler that it was made from."""
    own = next(kind for kind in type(scheduler).__mro__ if kind.__name__ in STAGES)
    return {key: scheduler.config[key] for key in inspect.signature(own).parameters if key in scheduler.config}


def _options_of(scheduler: Any, eta: float) -> dict[str, Any]:
    """What a timing's ``options`` say of it: whatever is neither 0, False nor None."""
    options = {key: _plain(value) for key, value in _config_of(scheduler).items()}
    return {key: value for key, value in options.items() if value} | ({"eta": float(eta)} if eta else {})


def _run_of(scheduler: Any, eta: float) -> _Run:
    """The run of a scheduler as it is set.

    Raises:
        BadValue: a scheduler that would be adapted wrongly.
    """
    name, stage, config = type(scheduler).__name__, _stage_of(scheduler), _config_of(scheduler)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise BadValue(
            f"cannot adapt {name} with prediction_type {prediction!r}; it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    for key, (allowed, why) in REQUIRED.items():
        value = config.get(key, allowed[0])
        if value is not None and value not in allowed:
            shown = repr(value) if isinstance(value, (int, float, str)) else type(value).__name__
            raise BadValue(f"cannot adapt {name} with {key}={shown}: {why}")
    if not 0 <= eta <= 1:
        raise BadValue(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    accepts = inspect.signature(scheduler.step).parameters
    if eta and not {"eta", "variance_noise"} <= set(accepts):
        raise BadValue(f"{name} takes no eta, got {eta}; leave it at 0 or take DDIMScheduler")
    draws = eta > 0 or str(config.get("algorithm_type")).startswith("sde")
    if draws and "variance_noise" not in accepts:
        raise BadValue(
            f"cannot adapt {name} with algorithm_type {config['algorithm_type']!r}: {_DRAWS}; "
            "take DPMSolverMultistepScheduler"
        )
    return _Run(scheduler, stage, PREDICTION_TYPES[prediction], float(eta), draws)


def _check_untouched(name: str, scheduler: Any) -> None:
    """Raise :class:`BadValue` for timesteps or noise levels that are not those of its configuration.

    They would be replaced without a word: a scheduler is adapted by its configuration and the number of its steps.
    """
    with _refused(f"cannot make {name} anew from its configuration", "give a scheduler of diffusers itself"):
        own = type(scheduler).from_config(scheduler.config)
    with contextlib.suppress(Exception):  # a number of steps that only timesteps by hand can have: they differ below
        if scheduler.num_inference_steps is not None:
            own.set_timesteps(scheduler.num_inference_steps)
    for what in ("timesteps", "sigmas", "alphas_cumprod"):
        here, there = (getattr(each, what, None) for each in (scheduler, own))
        if here is None and there is None:
            continue
        if here is None or there is None or not same_numbers(here, there):
            raise BadValue(
                f"cannot adapt {name} with {what} that were set by hand: they are not those of its configuration; "
                f"call set_timesteps with a number of steps, or make it anew by {name}.from_config"
            )


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two arrays have one shape and, to float32's rounding, the same values."""
    one, other = (torch.as_tensor(each).detach().double().cpu() for each in (one, other))
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True))


@contextlib.contextmanager
def _refused(what: str, remedy: str) -> Iterator[None]:
    """Make one :class:`BadValue` of whatever is raised: schedulers raise what numpy, torch or they themselves raise."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 200 else f"{reason[:200]} ..."
        raise BadValue(f"{what} ({reason}); {remedy}") from error


def _schedule_of(name: str, scheduler: Any) -> DiscreteSchedule:
    squares = scheduler.alphas_cumprod.detach().double().cpu()
    betas = 1 - squares / torch.cat([torch.ones(1, dtype=torch.float64), squares[:-1]])
    try:
        return DiscreteSchedule(betas, schedule_name(_config_of(scheduler)))
    except BadValue as error:
        raise BadValue(
            f"cannot adapt {name}: its alphas_cumprod must fall strictly and stay above 0 ({error}); if they were "
            f"rescaled as by rescale_betas_zero_snr: {_ZERO_SNR}"
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
    """A value of a configuration for a timing's options: a number, a short text or the hash of a long one."""
    if hasattr(value, "tolist"):  # of numpy or torch, whose own text leaves out the middle of a long list
        value = value.tolist()
    if not value or (isinstance(value, (int, float)) and math.isfinite(value)):
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


# ---- is a pipeline's scheduler the one that a timing is for?

_REMEDY = "sample with the scheduler that the timing is for, or tune one for this scheduler with from_scheduler"


def eta_of(timing: Timing) -> float:
    """The share of noise that a pipeline must pass to its scheduler for a timing; DDPM's is 1."""
    return float(timing.options.get("eta", timing.solver == "ddpm"))


def check_scheduler(timing: Timing, scheduler: Any) -> None:
    """Raise unless a scheduler of diffusers, its timesteps set, makes the steps that a timing was tuned for.

    A timing of :func:`from_scheduler` names the class and its options, which must all be the same. Of a solver of this
    library the steps themselves are compared: what a unit of the start, of each answer of the network and of each draw
    of noise adds to the end of the run. Clipping shows, too.

    Args:
        timing: of either kind.
        scheduler: as it stands when a run begins. It is not changed.

    Raises:
        TimingMismatch: naming both sides.
    """
    name, eta = type(scheduler).__name__, eta_of(timing)
    sides = f"the timing is for {timing.solver}, and the pipeline's scheduler is {name}"
    own = timing.solver not in SOLVERS
    if own and name != timing.solver:
        raise TimingMismatch(f"{sides}; {_REMEDY}")
    try:
        run = _run_of(scheduler, eta)
        if timing.gains and run.kind != "eps":
            raise BadValue(f"the gains of the timing multiply eps, and the network predicts {run.kind}")
        if own:
            _check_untouched(name, scheduler)
            _check_options(name, timing.options, _options_of(scheduler, eta))
        else:
            _check_steps(sides, timing, run)
    except BadValue as error:
        raise TimingMismatch(f"{sides}, and they cannot be compared: {error}") from error


def _check_options(name: str, own: dict[str, Any], used: dict[str, Any]) -> None:
    for key in sorted(own.keys() | used.keys()):
        if own.get(key) != used.get(key):
            # What is 0, False or None is left out.
            one, other = (repr(each[key]) if key in each else "off" for each in (own, used))
            raise TimingMismatch(
                f"the timing is for {name} with {key}={one}, and the pipeline's has {key}={other}; {_REMEDY}"
            )


def _check_steps(sides: str, timing: Timing, run: _Run) -> None:
    scheduler, nfe = run.scheduler, timing.nfe
    schedule = _schedule_of(type(scheduler).__name__, scheduler)
    solver = make_solver(timing.solver, **timing.options)
    # A schedule that is not one of this library's is known by its name.
    known = make_schedule(timing.schedule) if timing.schedule in SCHEDULES else schedule
    differing = ""
    if known.name != timing.schedule:
        differing = f"noise levels {known.name}, not {timing.schedule}"
    elif solver.needs_gamma:
        differing = "no gamma, as no scheduler of diffusers has"
    elif len(scheduler.timesteps) != nfe:
        differing = f"{len(scheduler.timesteps)} evaluations, not {nfe}"
    elif abs(_end_of(scheduler, schedule) - timing.grid_times[-1]) > 1e-6:
        differing = f"its end at t = {_end_of(scheduler, schedule):g}, not {timing.grid_times[-1]:g}"
    else:
        # diffusers' own arithmetic in float32 is too coarse for short steps.
        exact = copy.deepcopy(scheduler)
        if isinstance(getattr(exact, "sigmas", None), Tensor):
            exact.sigmas = exact.sigmas.double()
        theirs = _dependence(Solver("", replace(run, scheduler=exact)), (), schedule, nfe)
        ours = _dependence(solver, timing.grid_times, known, nfe)
        # diffusers keeps its noise levels in float32.
        number = next(iter((~torch.isclose(theirs, ours, rtol=5e-4, atol=2e-5)).nonzero().flatten().tolist()), None)
        if number is not None:
            what = f"{'draw' if number > nfe else 'answer'} {(number - 1) % nfe + 1}" if number else "the start"
            differing = (
                f"other steps: {what} counts {theirs[number]:.4g} times at the end, not {ours[number]:.4g} times"
            )
    if differing:
        hint = " (ddim is DDIMScheduler with clip_sample=False)" if timing.solver == "ddim" else ""
        raise TimingMismatch(f"{sides}, with {differing}; {_REMEDY}{hint}")


def _dependence(solver: Solver, times: Sequence[float], schedule: Schedule, nfe: int) -> Tensor:
    """[1 + 2 nfe]: what a unit of the start, of each answer and of each draw of noise adds to the end of a run."""
    units = torch.eye(1 + 2 * nfe, dtype=torch.float64)[..., None, None, None]
    answers, draws = iter(units[1 : nfe + 1]), iter(units[nfe + 1 :])
    nothing = torch.zeros_like(units[0])
    solution = solver(units[0], torch.tensor(times, dtype=torch.float64), schedule, lambda x: next(draws, nothing))
    return drive(solution, lambda x, t, tau: next(answers, nothing)).x.flatten()
