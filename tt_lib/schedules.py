"""Noise schedules: alpha, sigma and lambda as functions of time, in float64.

A diffusion has ``x_t = alpha(t) x_0 + sigma(t) eps`` and ``lambda = log(alpha / sigma)``, which falls from ``+inf``.

**The time convention, stated once.** Time ``t`` runs from 0 (clean data: ``alpha = 1``, ``sigma = 0``)
to 1 (noise). A network trained on ``N`` discrete levels knows the levels by their index ``n = 0 .. N-1``,
and level ``n`` is time ``t = (n + 1) / N``. Clean data is therefore ``t = 0``, one step *below* the first
index ("index -1" in the DDIM authors' code), and pure noise ``t = 1`` is index ``N - 1``. The two
functions :func:`time_of_index` and :func:`index_of_time` are the only place where indices and times meet.

====================== ============================ ================================ ====================
schedule               alpha, sigma                 time t                           network's time
====================== ============================ ================================ ====================
linear, cosine         ``alpha^2 + sigma^2 = 1``    ``(n + 1) / N``                  ``n = N t - 1``
zero-snr               the same, ``alpha(1) = 0``   ``(n + 1) / N``                  ``n = N t - 1``
continuous-linear      ``alpha^2 + sigma^2 = 1``    that of the SDE                  ``999 t``
flow                   ``1 - t, t``                 ``t = sigma``                    ``1000 t``
ve                     ``1, sigma_max t``           ``t = sigma / sigma_max``        ``log(sigma) / 4``
====================== ============================ ================================ ====================

**The direction.** All paths with the same signal-to-noise ratio are one ODE in rescaled states. In ``y = x / c`` and
``w`` it reads ``dy = d dw``, with the direction d that a schedule names. It is ``eps`` where alpha stays above 0, with
``(c, w) = (alpha, sigma / alpha)``. Where ``alpha(1) = 0`` the noise says nothing of the image at t = 1 and w would be
infinite. There it is the ``velocity`` ``u = eps - x0``, with ``(c, w) = (alpha + sigma, sigma / (alpha + sigma))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tt_lib.errors import BadValue, check_range, choose
from tt_lib.files import read_spelling, spell

Times = Tensor | float
MAX_CACHED = 10_000


def time_of_index(n: Times, levels: int) -> Tensor:
    """Time ``t = (n + 1) / N`` of the discrete level with index ``n`` (fractional indices allowed)."""
    return (torch.as_tensor(n, dtype=torch.float64) + 1) / levels


def index_of_time(t: Times, levels: int) -> Tensor:
    """Index ``n = N t - 1`` of time ``t``: what a discretely trained network is conditioned on."""
    return torch.as_tensor(t, dtype=torch.float64) * levels - 1


def float64(values: Any) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.as_tensor(values, dtype=torch.float64)


def along(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient ready to multiply the state ``x`` [B, ...].

    ``coefficient`` is a float64 scalar, or [B] with one value for each sample. It is computed in float64
    and rounded once, here, to the dtype of ``x``; a vector gets the trailing axes of ``x``.
    """
    if not coefficient.ndim:
        # A scalar on the CPU multiplies a state on any device; for a copy the CPU would wait until the GPU is done.
        return coefficient.to(x.dtype)
    return coefficient.to(device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _cached(function: Callable[[Any, Times], Tensor]) -> Callable[[Any, Times], Tensor]:
    """A schedule's function that keeps its values at scalar times: a solver asks for the same few in every batch.

    A GPU that runs a compiled network ends a step before the CPU has computed the next coefficients anew.
    A time that wants a gradient is computed each time.
    """

    @wraps(function)
    def at(self: Any, t: Times) -> Tensor:
        if not isinstance(t, Tensor) or t.ndim or t.requires_grad or t.device.type != "cpu":
            return function(self, t)
        cache = self.__dict__.setdefault("_cache", {})
        key = (function.__name__, t.item())
        if key not in cache:
            if len(cache) >= MAX_CACHED:
                cache.clear()
            cache[key] = function(self, t)
        return cache[key]

    return at


class Schedule(ABC):
    """A noise schedule over ``t`` in [0, 1]: any ``alpha(t)``, ``sigma(t)`` whose ``lambda(t)`` falls.

    All methods take a number or a tensor of times of any shape and return float64 tensors of that
    shape; they are differentiable in ``t``. Where a slope is infinite, that of lambda at the ends and of a VP
    schedule's sigma at ``t = 0``, it counts as 0: clean data is an end that stays.
    """

    name: str
    """With its options, where not at their defaults, as :func:`make_schedule` reads it: timings are compared by it."""
    levels: int
    """``N``, the number of levels that the network was trained on, or the scale of its time input."""
    t_min: float
    """The smallest time at which the network can be evaluated (``1 / N`` for a discrete network)."""
    t_max: float = 1.0
    """The largest time with a finite lambda that a rule in lambda may use; below 1 where ``alpha(1) = 0``."""
    direction: str = "eps"
    """``eps``, or ``velocity`` where ``alpha(1) = 0``: see the module's text."""

    @abstractmethod
    def alpha(self, t: Times) -> Tensor:
        """``alpha(t)``."""

    @abstractmethod
    def sigma(self, t: Times) -> Tensor:
        """``sigma(t)``."""

    @abstractmethod
    def time_of_lam(self, lam: Times) -> Tensor:
        """The inverse of :meth:`lam`, within [0, 1]."""

    @abstractmethod
    def network_time(self, t: Times) -> Tensor:
        """What the network is given for time ``t`` (an index for discrete networks, fractional if need be)."""

    @_cached
    def lam(self, t: Times) -> Tensor:
        """``lambda(t) = log(alpha(t) / sigma(t))``, half the log signal-to-noise ratio; ``+inf`` at ``t = 0``."""
        return _log(self.alpha(t)) - _log(self.sigma(t))

    def rho(self, t: Times) -> Tensor:
        """``rho(t) = sigma / alpha``, the variable in which the probability-flow ODE reads ``dy = eps drho``."""
        return self.sigma(t) / self.alpha(t)

    def c(self, t: Times) -> Tensor:
        """What x is divided by for ``y = x / c``: the ODE is ``dy = direction dw``."""
        return self.alpha(t) if self.direction == "eps" else self.alpha(t) + self.sigma(t)

    def w(self, t: Times) -> Tensor:
        """The variable of the ODE ``dy = direction dw``; 0 at clean data, so that ``x0 = y - w direction``."""
        return self.sigma(t) / self.c(t)

    def scale(self, t: Times) -> Tensor:
        """``sqrt(alpha^2 + sigma^2)``, what noise of deviation 1 is multiplied by to be the state of a run's start.

        So paths with one signal-to-noise ratio start from one noise alike. On ``ve`` it is EDM's start at t = 1.
        """
        return torch.hypot(self.alpha(t), self.sigma(t))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, levels={self.levels})"


class VP(Schedule):
    """A variance-preserving schedule, ``alpha^2 + sigma^2 = 1``, given by ``log alpha(t)``."""

    @abstractmethod
    def log_alpha(self, t: Times) -> Tensor:
        """``log alpha(t)``."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        """The inverse of :meth:`log_alpha`."""

    @_cached
    def alpha(self, t: Times) -> Tensor:
        """``alpha(t)``."""
        return self.log_alpha(t).exp()

    @_cached
    def sigma(self, t: Times) -> Tensor:
        """``sigma(t) = sqrt(1 - alpha(t)^2)``, computed through ``expm1`` so that small values keep their digits."""
        variance = -torch.expm1(2 * self.log_alpha(t))
        # A where on either side: an infinite slope, even one times 0, would be NaN in every gradient of t = 0.
        return torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)

    @_cached
    def lam(self, t: Times) -> Tensor:
        """``lambda(t) = log(alpha(t) / sigma(t))``, half the log signal-to-noise ratio; ``+inf`` at ``t = 0``."""
        return self.log_alpha(t) - self.sigma(t).log()

    def time_of_lam(self, lam: Times) -> Tensor:
        """The inverse of :meth:`lam`: ``log alpha = -softplus(-2 lambda) / 2``."""
        lam = torch.as_tensor(lam, dtype=torch.float64)
        # logaddexp, not softplus: torch's softplus turns linear above a threshold and loses the tail.
        return self.time_of_log_alpha(-0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam))

    def scale(self, t: Times) -> Tensor:
        """1."""
        return torch.ones_like(float64(t))


class DiscreteSchedule(VP):
    """A schedule given by betas ``beta_0 .. beta_{N-1}``: ``alpha(t_n)^2 = prod_{i <= n} (1 - beta_i)``.

    (Ho et al. 2020, arXiv 2006.11239, eq. 4.) Between the levels, ``log alpha`` is linear in ``t``
    (as in DPM-Solver's code for discrete networks, arXiv 2206.00927).

    A last beta of 1 is zero terminal SNR, ``alpha(1) = 0`` (Lin et al. 2024, arXiv 2305.08891): the direction is the
    velocity, and on the last interval alpha falls to 0 in a straight line.

    Raises:
        BadValue: a beta is outside (0, 1), but for a last one of 1.
    """

    def __init__(self, betas: Tensor, name: str) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 1:
            raise BadValue(f"betas must be a vector of numbers in (0, 1), got the shape {list(betas.shape)}")
        self.zero_snr = len(betas) > 1 and bool(betas[-1] == 1)
        inside = betas[:-1] if self.zero_snr else betas
        outside = (~((inside > 0) & (inside < 1))).nonzero().flatten().tolist()
        if outside:
            first = outside[0]
            raise BadValue(
                f"betas must be numbers in (0, 1), got {betas[first]:g} at index {first} of {len(betas)} "
                f"({len(outside)} of them outside)"
            )
        self.name = name
        self.betas = betas
        self.levels = len(betas)
        self.t_min = 1.0 / self.levels
        zero = torch.zeros(1, dtype=torch.float64)
        self._knots = torch.cat([zero, 0.5 * torch.log1p(-inside).cumsum(0)])
        if self.zero_snr:
            self.direction, self.t_max = "velocity", 1 - self.t_min
            # Any number: the last interval is a rule of its own.
            self._knots = torch.cat([self._knots, self._knots[-1:] - 1])

    def log_alpha(self, t: Times) -> Tensor:
        t = _in_range(t)
        place = t * self.levels
        left = place.detach().long().clamp(0, self.levels - 1)
        knots = self._knots.to(place.device)
        low, high = knots[left], knots[left + 1]
        value = low + (place - left) * (high - low)
        if not self.zero_snr:
            return value
        last = place > self.levels - 1
        return torch.where(last, low + _log(torch.where(last, self.levels - place, 1.0)), value)

    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        value = torch.as_tensor(log_alpha, dtype=torch.float64)
        knots = self._knots.to(value.device)
        # The knots fall with t; searchsorted wants them rising.
        left = (torch.searchsorted(-knots, -value.detach()).clamp(1, self.levels)) - 1
        low, high = knots[left], knots[left + 1]
        share = (value - low) / (high - low)
        if self.zero_snr:
            last = value < self._knots[-2]
            share = torch.where(last, -torch.expm1(torch.where(last, value - low, 0.0)), share)
        return _clamp((left + share) / self.levels)

    def network_time(self, t: Times) -> Tensor:
        return index_of_time(t, self.levels)


class ContinuousLinearVP(VP):
    """The VP-SDE with ``beta(t) = beta_0 + (beta_1 - beta_0) t`` (Song et al. 2021, arXiv 2011.13456, eq. 33).

    ``log alpha(t) = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2``. The network is conditioned on ``999 t``, as
    in the authors' code. It is *not* the limit that a discrete linear-beta table reaches at ``N = 1000``:
    ``log alpha`` differs by 0.034 at ``t = 1``.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, t_min: float = 1e-3) -> None:
        if not 0 < beta_0 < beta_1:
            raise BadValue(f"need 0 < beta_0 < beta_1, got {beta_0} and {beta_1}")
        options = {"beta_0": beta_0, "beta_1": beta_1, "t_min": t_min}
        self.name, self.levels, self.t_min = _spelled("continuous-linear", type(self), options), 1000, t_min
        self.beta_0, self.beta_1 = beta_0, beta_1

    def log_alpha(self, t: Times) -> Tensor:
        t = _in_range(t)
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        value = -torch.as_tensor(log_alpha, dtype=torch.float64)
        most = -self.log_alpha(1.0).to(value.device)
        value = torch.where(value > most, most, value)
        # The root of (b1 - b0) t^2 / 4 + b0 t / 2 = value in the form that does not cancel for small t.
        root = (self.beta_0**2 + 4 * (self.beta_1 - self.beta_0) * value).sqrt()
        return 4 * value / (self.beta_0 + root)

    def network_time(self, t: Times) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64) * (self.levels - 1)


class Flow(Schedule):
    """The straight path of flow matching, ``alpha = 1 - t`` and ``sigma = t`` (Lipman et al. 2023, arXiv 2210.02747).

    ``t`` is the sigma of diffusers' flow schedulers. The network is conditioned on ``1000 t``, their timestep. (The
    pipeline of Flux divides that by 1000 before it calls its transformer.) ``alpha(1) = 0``: the direction is the
    velocity, ``c = 1`` and ``w = t``.

    The shift of SD3 and Flux is no part of it. They evaluate the network at the shifted sigma, so a shift decides which
    times are visited: it is an option of the grid, ``uniform-trailing,shift=3`` (:mod:`tt_lib.grids`).
    """

    direction = "velocity"

    def __init__(self) -> None:
        self.name, self.levels, self.t_min, self.t_max = "flow", 1000, 0.001, 0.999

    @_cached
    def alpha(self, t: Times) -> Tensor:
        return 1 - _in_range(t)

    @_cached
    def sigma(self, t: Times) -> Tensor:
        return _in_range(t)

    def time_of_lam(self, lam: Times) -> Tensor:
        return torch.sigmoid(-float64(lam))

    def network_time(self, t: Times) -> Tensor:
        return float64(t) * self.levels


class VE(Schedule):
    """EDM's variance-exploding noise, ``alpha = 1`` and ``sigma = sigma_max t`` (Karras et al. 2022, arXiv 2206.00364).

    So ``t = sigma / sigma_max``, the ratio tau / t is one of noise levels, and the grid ``karras`` is EDM's. The
    network is conditioned on ``log(sigma) / 4``. ``sigma_data`` is the deviation of the data in EDM's preconditioning,
    which a predictor of the kind ``edm`` takes from here.

    Raises:
        BadValue: not ``0 < sigma_min < sigma_max``, or ``sigma_data`` is not above 0.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> None:
        if not (0 < sigma_min < sigma_max < float("inf") and sigma_data > 0):
            raise BadValue(
                f"need 0 < sigma_min < sigma_max and sigma_data > 0, got {sigma_min}, {sigma_max} and {sigma_data}"
            )
        options = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        self.name, self.levels, self.t_min = _spelled("ve", type(self), options), 1000, sigma_min / sigma_max
        self.sigma_max, self.sigma_data = sigma_max, sigma_data

    @_cached
    def alpha(self, t: Times) -> Tensor:
        return torch.ones_like(_in_range(t))

    @_cached
    def sigma(self, t: Times) -> Tensor:
        return self.sigma_max * _in_range(t)

    def time_of_lam(self, lam: Times) -> Tensor:
        return _clamp(torch.exp(-float64(lam)) / self.sigma_max)

    def network_time(self, t: Times) -> Tensor:
        return self.sigma(t).log() / 4


def linear_betas(levels: int = 1000) -> DiscreteSchedule:
    """DDPM's schedule: betas evenly spaced from 1e-4 to 0.02 (Ho et al. 2020, section 4)."""
    check_range("levels", levels, 1)
    betas = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64)
    return DiscreteSchedule(betas, _spelled("linear", linear_betas, {"levels": levels}))


def cosine_betas(levels: int = 1000) -> DiscreteSchedule:
    """The cosine schedule, betas clipped at 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    check_range("levels", levels, 1)
    u = torch.arange(levels + 1, dtype=torch.float64) / levels
    alpha_bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return DiscreteSchedule(betas, _spelled("cosine", cosine_betas, {"levels": levels}))


def zero_snr_betas(levels: int = 1000) -> DiscreteSchedule:
    """DDPM's betas rescaled to zero terminal SNR (Lin et al. 2024, arXiv 2305.08891, algorithm 1).

    ``alpha`` of the levels is shifted and stretched so that the first stays and the last is 0. At ``t = 1`` a network
    must predict v, x0 or the velocity: eps says nothing of the image there, and an eps network is refused.
    """
    if levels < 2:
        raise BadValue(f"levels must be at least 2 to fall to zero SNR, got {levels}")
    alpha = (1 - linear_betas(levels).betas).cumprod(0).sqrt()
    alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    ratios = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return DiscreteSchedule(1 - ratios, _spelled("zero-snr", zero_snr_betas, {"levels": levels}))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "zero-snr": zero_snr_betas,
    "continuous-linear": ContinuousLinearVP,
    "flow": Flow,
    "ve": VE,
}


def make_schedule(name: str, **options: Any) -> Schedule:
    """A schedule by name. The name may carry options, as in ``ve,sigma_max=100``.

    Raises:
        BadValue: an unknown name, an option that it does not take, or options out of range.
    """
    plain, spelled = read_spelling("schedule", name, "ve,sigma_max=100")
    choose("schedule", plain, SCHEDULES)
    takes = signature(SCHEDULES[plain]).parameters
    for option, value in (spelled | options).items():
        if option not in takes:
            raise BadValue(f"schedule {plain!r} takes no option {option!r}; it takes {', '.join(takes) or 'none'}")
        if isinstance(value, str):
            raise BadValue(f"{option} of schedule {plain!r} must be a number, got {value!r}")
    return SCHEDULES[plain](**(spelled | options))


def find_schedule(name: str) -> Schedule | None:
    """The schedule that a name of this library spells, as timings have it; None for a name from elsewhere."""
    return make_schedule(name) if name.partition(",")[0] in SCHEDULES else None


def _spelled(name: str, make: Callable[..., Any], options: dict[str, Any]) -> str:
    """A name with the options that are not at their defaults."""
    defaults = signature(make).parameters
    own = (f"{key}={spell(value)}" for key, value in options.items() if value != defaults[key].default)
    return ",".join([name, *own])


def _log(value: Tensor) -> Tensor:
    """The logarithm, ``-inf`` at 0, where its slope counts as 0: an infinite one would be NaN in every gradient."""
    above = value > 0
    return torch.where(above, torch.where(above, value, 1.0).log(), -torch.inf)


def _in_range(t: Times) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool(((t >= -1e-12) & (t <= 1 + 1e-12)).all()):  # also NaN
        raise BadValue(f"times must lie in [0, 1], got {t.detach().flatten()[:8].tolist()}")
    return _clamp(t)


def _clamp(t: Tensor) -> Tensor:
    """``t`` clamped to [0, 1], with slope 1 at both ends.

    ``torch.clamp`` has slope 0 there (in torch 2.14), and a tau that is tuned from t = 1 would never move.
    """
    return torch.where(t > 1, 1.0, torch.where(t < 0, 0.0, t))
