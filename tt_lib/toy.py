"""Toys with known answers: Gaussian mixtures, whose eps and probability-flow ODE are exact.

Data ``x_0 ~ sum_m w_m N(mu_m, C_m)`` diffused to time t are again a mixture,
``p_t = sum_m w_m N(alpha mu_m, alpha^2 C_m + sigma^2 I)``, so the direction that a perfect network would
answer is known: ``eps(x, t) = -sigma grad log p_t(x)``. Whatever error a sampler makes on a toy is its own.

Everything here is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tt_lib.errors import BadValue, NotFinite, check_range
from tt_lib.predictors import Predictor, to_v
from tt_lib.schedules import Schedule, Times, along, float64

Numbers = Tensor | Sequence | float


class GaussianMixture:
    """A mixture of M Gaussians in D dimensions, and all that is known of its diffusion.

    In every method ``x`` is [B, D] and a time is a number, a scalar or [B]; the answers are float64 on the
    device of ``x`` and differentiable in ``x`` and in the time (in (0, 1]; sigma has no slope at t = 0).

    Args:
        weights: [M], positive; they are divided by their sum.
        means: [M, D].
        scales: [M], positive: standard deviations of isotropic components.
        covariances: [M, D, D], symmetric and positive definite; instead of ``scales``.

    Raises:
        BadValue: a shape or a value outside these.
    """

    def __init__(
        self, weights: Numbers, means: Numbers, scales: Numbers | None = None, covariances: Numbers | None = None
    ) -> None:
        self.weights, self.means = float64(weights), float64(means)
        if self.means.ndim != 2 or 0 in self.means.shape or not bool(self.means.isfinite().all()):
            raise BadValue(f"means must be finite, [M, D], got {means}")
        if self.weights.shape != self.means.shape[:1] or not _positive(self.weights):
            raise BadValue(f"weights must be {len(self.means)} positive numbers, one for each mean, got {weights}")
        self.weights = self.weights / self.weights.sum()
        if (scales is None) == (covariances is None):
            raise BadValue("give either scales or covariances")
        # Every component in its principal axes: variances [M, D] along the columns of axes [M, D, D]. An isotropic one
        # has one variance, [M, 1], and needs no axes.
        self._axes: Tensor | None = None
        if covariances is None:
            values = float64(scales)
            if values.shape != self.weights.shape or not _positive(values):
                raise BadValue(f"scales must be {len(self.weights)} positive numbers, one for each mean, got {scales}")
            self._variances = values.square()[:, None]
        else:
            values = float64(covariances)
            shape = [len(self.means), self.dim, self.dim]
            if list(values.shape) != shape or not torch.allclose(values, values.mT, rtol=1e-9, atol=0):
                raise BadValue(f"covariances must be symmetric, {shape}, got {covariances}")
            self._variances, self._axes = torch.linalg.eigh(values)
            if not _positive(self._variances):
                raise BadValue(f"covariances must be positive definite, got eigenvalues {self._variances.tolist()}")

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of x_0: [n, D] on the CPU."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator) * self._variances[which].sqrt()
        return self.means[which] + (z if self._axes is None else torch.einsum("nde,ne->nd", self._axes[which], z))

    def eps(self, x: Tensor, t: Times, schedule: Schedule) -> Tensor:
        """``eps(x, t) = E[eps | x_t = x] = -sigma(t) grad log p_t(x)``: [B, D]; 0 at t = 0."""
        return self.eps_x0(x, t, schedule)[0]

    def x0(self, x: Tensor, t: Times, schedule: Schedule) -> Tensor:
        """The posterior mean ``E[x_0 | x_t = x]``: [B, D]; x itself at t = 0."""
        return self.eps_x0(x, t, schedule)[1]

    def eps_x0(self, x: Tensor, t: Times, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """:meth:`eps` and :meth:`x0`."""
        return self._eps_x0(x, schedule.alpha(t), schedule.sigma(t))

    def velocity(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``alpha eps - sigma x0`` (Salimans & Ho 2022, arXiv 2202.00512, appendix D): [B, D].

        It is dx/dphi along the probability flow, with ``alpha = cos phi`` and ``sigma = sin phi``. Time
        enters through alpha and sigma (scalars or [B]) alone, so it is as smooth at a level of a discrete
        schedule as between two of them.
        """
        eps, x0 = self._eps_x0(x, alpha, sigma)
        return to_v(eps, x0, alpha, sigma)

    def _eps_x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise BadValue(f"x must be [B, {self.dim}] for this mixture, got the shape {list(x.shape)}")
        if alpha.ndim > 1 or (alpha.ndim == 1 and len(alpha) != len(x)):
            raise BadValue(f"times must be a scalar or [{len(x)}], one for each row of x, got {list(alpha.shape)}")
        alpha, sigma = (value.to(x.device).reshape(-1) for value in (alpha, sigma))
        weights, means, variances = (
            part.to(x.device) for part in (self.weights, self.means, self._variances[..., None])
        )
        axes = None if self._axes is None else self._axes.to(x.device)
        # The samples are the last axis, [M, D, B], until the end: so it takes a fraction of the time.
        z = x.double().T.contiguous() - alpha * means[..., None]
        z = z if axes is None else axes.mT @ z
        variance = alpha**2 * variances + sigma**2
        pull = z / variance
        # log(w_m N_m(x)) but for a constant. softmax subtracts the largest: far out, where every density underflows, it
        # still answers.
        share = (weights.log()[:, None] - 0.5 * (z * pull + variance.log()).sum(1)).softmax(0)
        pull = share[:, None] * pull
        shrunk = variances * pull
        if axes is not None:
            pull, shrunk = axes @ pull, axes @ shrunk
        # Not (x - sigma eps) / alpha: that cancels where alpha is small.
        eps, x0 = sigma * pull.sum(0), means.T @ share + alpha * shrunk.sum(0)
        return eps.T.contiguous(), x0.T.contiguous()


class MixturePredictor:
    """A mixture as a predictor: the schedule's exact direction, believing that the state is at time ``tau``.

    It stands in for a perfect network conditioned on ``tau``; ``tau = t`` gives the true direction. It
    computes in float64 and answers in the dtype of ``x`` [B, D]; gradients reach ``x`` and ``tau``.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        self.mixture, self.schedule = mixture, schedule

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        eps, x0 = self.mixture.eps_x0(x, tau, self.schedule)
        return (eps if self.schedule.direction == "eps" else eps - x0).to(x.dtype)


# ---- presets


def single_gaussian(mean: Numbers = 0.5, scale: float = 0.25) -> GaussianMixture:
    """``N(mean, scale^2 I)``; a number as mean is one dimension, a vector [D] is D."""
    return GaussianMixture([1.0], float64(mean).reshape(1, -1), [scale])


def two_modes_1d(scale: float = 0.2) -> GaussianMixture:
    """Two modes on the line, at -1 (weight 0.35) and at 1 (weight 0.65)."""
    return GaussianMixture([0.35, 0.65], [[-1.0], [1.0]], [scale, scale])


def ring_2d(modes: int = 8, scale: float = 0.1) -> GaussianMixture:
    """``modes`` equal modes on the unit circle in the plane, the first at (1, 0)."""
    check_range("modes", modes, 1)
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.ones(modes), means, torch.full((modes,), scale, dtype=torch.float64))


# ---- the exact probability flow


def exact_flow(
    source: GaussianMixture | Predictor,
    x: Tensor,
    t_start: Times,
    t_end: Times,
    schedule: Schedule,
    *,
    rtol: float = 1e-10,
) -> Tensor:
    """Carry ``x`` along the probability-flow ODE from ``t_start`` to ``t_end``, either way, precisely.

    The ODE is ``dy/drho = eps(x, t)`` in ``y = x / alpha``, ``rho = sigma / alpha``. It is integrated in the
    angle ``phi = atan(rho)``, where it reads ``dx/dphi = alpha eps - sigma x0`` with ``alpha = cos phi`` and
    ``sigma = sin phi``: x stays of order one, the interval is finite for every pair of times, ``t = 0`` included, and
    the field has none of the kinks that a discrete schedule has in t. A state of a schedule that does not preserve the
    variance is a multiple of such an x.

    Args:
        source: a mixture, or any predictor, then with tau = t. A predictor that is not a mixture's cannot
            end below its ``t_min``, and one in float32 needs an ``rtol`` of about 1e-5.
        x: [B, D] (any [B, ...] for a predictor of that shape).
        t_start, t_end: scalars or [B], one interval for each sample.
        schedule: alpha and sigma.
        rtol: relative tolerance of a step, and the absolute one for values below 1, for the worst sample.

    Returns:
        x at ``t_end``, float64, without gradients.

    Raises:
        NotFinite: the integration failed.
    """
    x = x.double() / along(schedule.scale(t_start), x.double())
    end = _integrate(source, x, _angle(t_start, schedule), _angle(t_end, schedule), schedule, rtol)[-1]
    return along(schedule.scale(t_end), end) * end


def exact_trajectory(
    source: GaussianMixture | Predictor, x: Tensor, times: Numbers, schedule: Schedule, *, rtol: float = 1e-10
) -> Tensor:
    """The exact flow from ``x`` [B, D] at ``times[0]`` through all ``times`` [T]: [T, B, D], x itself first.

    Otherwise as :func:`exact_flow`.

    Raises:
        BadValue: fewer than two times, or times that neither rise nor fall throughout.
    """
    times = float64(times).cpu()
    angle = _angle(times, schedule)
    steps = angle.diff() if angle.ndim == 1 else angle.new_empty(0)
    if len(steps) == 0 or not bool((steps > 0).all() | (steps < 0).all()):
        raise BadValue(f"times must be two or more that rise or fall throughout, got {times}")
    places, scale = (angle - angle[0]) / (angle[-1] - angle[0]), schedule.scale(times)
    x = x.double() / along(scale[0], x.double())
    states = _integrate(source, x, angle[0], angle[-1], schedule, rtol, places)
    return along(scale, states) * states


def _integrate(
    source: GaussianMixture | Predictor,
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    schedule: Schedule,
    rtol: float,
    places: Tensor | None = None,
) -> Tensor:
    """States [T, B, ...] at the fractions ``places`` [T] of the way from angle ``begin`` to ``end``."""
    velocity = _velocity(source, schedule)
    span = along(end - begin, x.double())

    def slope(place: float, flat):
        with torch.no_grad():
            state = torch.from_numpy(flat).reshape(x.shape).to(x.device)
            change = span * velocity(state, begin + place * (end - begin))
        if not bool(change.isfinite().all()):  # scipy would try ever shorter steps, without end
            raise NotFinite("the direction is NaN or infinite on the exact flow; check the predictor and the times")
        return change.flatten().cpu().numpy()

    # scipy holds the root mean square over the batch to the tolerance; this holds its worst member to it.
    tolerance = max(rtol / math.sqrt(max(x.numel(), 1)), 1e-13)
    solution = solve_ivp(
        slope,
        (0.0, 1.0),
        x.detach().double().cpu().flatten().numpy(),
        method="DOP853",
        t_eval=None if places is None else places.clamp(0, 1).numpy(),
        rtol=tolerance,
        atol=tolerance,
    )
    if not solution.success:
        raise NotFinite(f"the exact flow could not be integrated ({solution.message}); ask for a larger rtol")
    return torch.from_numpy(solution.y.T.copy()).reshape(-1, *x.shape).to(x.device)


def _velocity(source: GaussianMixture | Predictor, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """``dx/dphi`` as a function of ``x`` [B, ...] and ``phi`` (scalar or [B])."""
    if isinstance(source, MixturePredictor) and source.schedule is schedule:
        source = source.mixture
    if isinstance(source, GaussianMixture):
        mixture = source
        return lambda x, phi: mixture.velocity(x, phi.cos(), phi.sin())
    predictor = source

    def velocity(x: Tensor, phi: Tensor) -> Tensor:
        t, cos, sin = schedule.time_of_lam(-phi.tan().log()), along(phi.cos(), x), along(phi.sin(), x)
        direction = predictor(along(schedule.scale(t), x) * x, t, t).double()
        if schedule.direction == "eps":
            return (direction - sin * x) / cos
        return ((cos - sin) * x + direction) / (cos + sin)

    return velocity


def _angle(t: Times, schedule: Schedule) -> Tensor:
    """``phi = atan(sigma / alpha)``, from 0 at clean data to nearly pi / 2 at noise."""
    return torch.atan2(schedule.sigma(t), schedule.alpha(t))


def gaussian_ddim(x: Tensor, times: Numbers, mean: Numbers, scale: float, schedule: Schedule) -> Tensor:
    """What DDIM (eta 0) makes of ``N(m, s^2 I)`` along ``times`` [K + 1], for ``x`` [B, D] at ``times[0]``.

    With ``eps = sigma_t (x - alpha_t m) / v_t``, ``v_t = alpha_t^2 s^2 + sigma_t^2``, the step from t to u is
    linear about the mean, and so is the product of the steps:

    ``x_u - alpha_u m = (alpha_t alpha_u s^2 + sigma_t sigma_u) / v_t  (x_t - alpha_t m)``
    """
    alpha, sigma = schedule.alpha(float64(times)), schedule.sigma(float64(times))
    overlap = alpha[:-1] * alpha[1:] * scale**2 + sigma[:-1] * sigma[1:]
    variance = (alpha[:-1] * scale) ** 2 + sigma[:-1] ** 2
    x, mean, factor = x.double(), float64(mean).to(x.device), (overlap / variance).prod()
    return along(alpha[-1], x) * mean + along(factor, x) * (x - along(alpha[0], x) * mean)


def _positive(values: Tensor) -> bool:
    return bool(((values > 0) & values.isfinite()).all())
