"""Noise schedules: alpha, sigma and lambda as functions of time, in float64.

A variance-preserving (VP) diffusion has ``x_t = alpha(t) x_0 + sigma(t) eps`` with
``alpha^2 + sigma^2 = 1`` and ``lambda = log(alpha / sigma)``.

**The time convention, stated once.** Time ``t`` runs from 0 (clean data: ``alpha = 1``, ``sigma = 0``)
to 1 (noise). A network trained on ``N`` discrete levels knows the levels by their index ``n = 0 .. N-1``,
and level ``n`` is time ``t = (n + 1) / N``. Clean data is therefore ``t = 0``, one step *below* the first
index ("index -1" in the DDIM authors' code), and pure noise ``t = 1`` is index ``N - 1``. The two
functions :func:`time_of_index` and :func:`index_of_time` are the only place where indices and times meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tt_lib.errors import BadValue, choose

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
    """A VP noise schedule over ``t`` in [0, 1].

    All methods take a number or a tensor of times of any shape and return float64 tensors of that
    shape; they are differentiable in ``t``. At ``t = 0`` the slope of sigma is infinite. It counts as 0 there, in
    sigma, rho and lambda: clean data is an end that stays.
    """

    name: str
    levels: int
    """``N``, the number of levels that the network was trained on, or the scale of its time input."""
    t_min: float
    """The smallest time at which the network can be evaluated (``1 / N`` for a discrete network)."""

    @abstractmethod
    def log_alpha(self, t: Times) -> Tensor:
        """``log alpha(t)``."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        """The inverse of :meth:`log_alpha`."""

    @abstractmethod
    def network_time(self, t: Times) -> Tensor:
        """What the network is given for time ``t`` (an index for discrete networks, fractional if need be)."""

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

    def rho(self, t: Times) -> Tensor:
        """``rho(t) = sigma / alpha``, the variable in which the probability-flow ODE reads ``dy = eps drho``."""
        return self.sigma(t) / self.alpha(t)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, levels={self.levels})"


class DiscreteSchedule(Schedule):
    """A schedule given by betas ``beta_0 .. beta_{N-1}``: ``alpha(t_n)^2 = prod_{i <= n} (1 - beta_i)``.

    (Ho et al. 2020, arXiv 2006.11239, eq. 4.) Between the levels, ``log alpha`` is linear in ``t``
    (as in DPM-Solver's code for discrete networks, arXiv 2206.00927).

    Raises:
        BadValue: a beta is outside (0, 1).
    """

    def __init__(self, betas: Tensor, name: str) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 1:
            raise BadValue(f"betas must be a vector of numbers in (0, 1), got the shape {list(betas.shape)}")
        outside = (~((betas > 0) & (betas < 1))).nonzero().flatten().tolist()
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
        self._knots = torch.cat([zero, 0.5 * torch.log1p(-betas).cumsum(0)])

    def log_alpha(self, t: Times) -> Tensor:
        t = _in_range(t)
        place = t * self.levels
        left = place.detach().floor().clamp(0, self.levels - 1)
        knots = self._knots.to(place.device)
        low, high = knots[left.long()], knots[left.long() + 1]
        return low + (place - left) * (high - low)

    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        value = torch.as_tensor(log_alpha, dtype=torch.float64)
        knots = self._knots.to(value.device)
        # The knots fall with t; searchsorted wants them rising.
        left = (torch.searchsorted(-knots, -value.detach()).clamp(1, self.levels)) - 1
        low, high = knots[left], knots[left + 1]
        return _clamp((left + (value - low) / (high - low)) / self.levels)

    def network_time(self, t: Times) -> Tensor:
        return index_of_time(t, self.levels)


class ContinuousLinearVP(Schedule):
    """The VP-SDE with ``beta(t) = beta_0 + (beta_1 - beta_0) t`` (Song et al. 2021, arXiv 2011.13456, eq. 33).

    ``log alpha(t) = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2``. The network is conditioned on ``999 t``, as
    in the authors' code. It is *not* the limit that a discrete linear-beta table reaches at ``N = 1000``:
    ``log alpha`` differs by 0.034 at ``t = 1``.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, t_min: float = 1e-3) -> None:
        if not 0 < beta_0 < beta_1:
            raise BadValue(f"need 0 < beta_0 < beta_1, got {beta_0} and {beta_1}")
        self.name, self.levels, self.t_min = "continuous-linear", 1000, t_min
        self.beta_0, self.beta_1 = beta_0, beta_1

    def log_alpha(self, t: Times) -> Tensor:
        t = _in_range(t)
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def time_of_log_alpha(self, log_alpha: Times) -> Tensor:
        value = -torch.as_tensor(log_alpha, dtype=torch.float64)
        # The root of (b1 - b0) t^2 / 4 + b0 t / 2 = value in the form that does not cancel for small t.
        root = (self.beta_0**2 + 4 * (self.beta_1 - self.beta_0) * value).sqrt()
        return 4 * value / (self.beta_0 + root)

    def network_time(self, t: Times) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64) * (self.levels - 1)


def linear_betas(levels: int = 1000) -> DiscreteSchedule:
    """DDPM's schedule: betas evenly spaced from 1e-4 to 0.02 (Ho et al. 2020, section 4)."""
    _check_levels(levels)
    return DiscreteSchedule(torch.linspace(1e-4, 0.02, levels, dtype=torch.float64), "linear")


def cosine_betas(levels: int = 1000) -> DiscreteSchedule:
    """The cosine schedule, betas clipped at 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    _check_levels(levels)
    u = torch.arange(levels + 1, dtype=torch.float64) / levels
    alpha_bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    return DiscreteSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999), "cosine")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "continuous-linear": ContinuousLinearVP,
}


def make_schedule(name: str, **options: Any) -> Schedule:
    """A schedule by name: ``linear``, ``cosine`` or ``continuous-linear``; options as the function or class has them.

    Raises:
        BadValue: an unknown name, or options out of range.
    """
    choose("schedule", name, SCHEDULES)
    return SCHEDULES[name](**options)


def _check_levels(levels: int) -> None:
    if levels < 1:
        raise BadValue(f"levels must be at least 1, got {levels}")


def _in_range(t: Times) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64)
    if bool(((t < -1e-12) | (t > 1 + 1e-12)).any()) or bool(t.isnan().any()):
        raise BadValue(f"times must lie in [0, 1], got {t.detach().flatten()[:8].tolist()}")
    return _clamp(t)


def _clamp(t: Tensor) -> Tensor:
    """``t`` clamped to [0, 1], with slope 1 at both ends.

    ``torch.clamp`` has slope 0 there (in torch 2.14), and a tau that is tuned from t = 1 would never move.
    """
    return torch.where(t > 1, 1.0, torch.where(t < 0, 0.0, t))
