"""Analytic-DDIM and Analytic-DDPM (Bao, Li, Zhu & Zhang 2022, *Analytic-DPM*, arXiv 2201.06503).

DDIM and ancestral sampling choose the variance of a step by hand. For the mean that they have, the variance that is
best, in the sense of the Kullback-Leibler divergence to the forward process, has a closed form in one number for each
time, which :func:`tt_lib.tuning.gamma.estimate_gamma` measures on the network. In the paper's symbols (its theorem on
the score representation of the optimal reverse mean and variance), with ``alpha_n`` over the whole step where levels
are skipped:

    ``sigma_n*^2 = lambda_n^2 + (sqrt(beta_bar_n / alpha_n) - sqrt(beta_bar_{n-1} - lambda_n^2))^2
    (1 - beta_bar_n Gamma_n)``

In ours, for a step from t to s (``alpha_n = alpha_t^2 / alpha_s^2``, ``beta_bar_n = sigma_t^2``,
``beta_bar_{n-1} = sigma_s^2``), and with ``gamma(t) = E || eps(x_t) ||^2 / d = beta_bar_n Gamma_n``, since the score is
``-eps / sigma_t``:

    ``c^2 = lambda^2 + (alpha_s sigma_t / alpha_t - sqrt(sigma_s^2 - lambda^2))^2 (1 - gamma)``
    ``x_s = alpha_s (x_t - sigma_t eps) / alpha_t + sqrt(sigma_s^2 - lambda^2) eps + c z``,  ``z ~ N(0, I)``

with ``lambda^2 = 0`` for Analytic-DDIM and the posterior's ``(1 - alpha_t^2 / alpha_s^2) sigma_s^2 / sigma_t^2`` for
Analytic-DDPM. ``gamma = 1`` gives DDIM, and DDPM with its small variance.

**What is clipped**, as in the paper and the authors' code:

- ``gamma`` to [0, 1]. Both bounds hold for the exact eps (``1 - gamma`` is the mean variance of eps given x_t), not for
  a network's; so does ``c^2 >= lambda^2``, the paper's lower bound, and the upper one that needs nothing of the data.
- The mean variance of x_0 given x_t, ``(sigma_t / alpha_t)^2 (1 - gamma)``, to ``((b - a) / 2)^2``, the paper's upper
  bound for data in [a, b]. Images lie in [-1, 1]: 1. It matters at large t, where ``1 - gamma`` is lost in the error of
  gamma.
- The noise of the last step that draws any, the one that lands on the network's lowest level:
  ``E |c z| <= (2 / 255) y``, that is ``c <= (2 / 255) y sqrt(pi / 2)``, for ``y`` levels of 255 (the paper's pixels). A
  step that ends elsewhere keeps its variance: what follows it removes the noise again. (All of the authors' grids have
  the lowest level. ``uniform-trailing`` has not.)
- The step into clean data, ``s = 0``, adds no noise.

The authors also clip the predicted x_0 to [-1, 1] inside the mean; here nothing does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.errors import BadValue
from tt_lib.schedules import Schedule, along

PIXELS = {"linear": 2.0, "cosine": 1.0, "squaredcos_cap_v2": 1.0}
"""Bounds on the last noise by the schedule's name (the last is diffusers' name of cosine); 2 for any other.

They are the authors' for Analytic-DDPM on CIFAR-10. Their script for Analytic-DDIM there has 1 for both schedules: give
``pixels=1.0`` for theirs.
"""


def analytic_ddim(
    x: Tensor, times: Tensor, schedule: Schedule, noise, *, gamma: Sequence[float] = (), pixels: float | None = None
) -> Solution:
    """DDIM's mean with the best variance for it: the module's formula with ``lambda^2 = 0``.

    Args:
        gamma: ``E || eps(x_t) ||^2 / d`` at the time of each step, one for each.
        pixels: ``y``, the upper bound of the last noise on average, in levels of 255 (None: :data:`PIXELS`).

    Raises:
        BadValue: no gamma, one of another length or not finite, or a negative bound.
    """
    return _analytic(x, times, schedule, noise, gamma, pixels, ancestral=False)


def analytic_ddpm(
    x: Tensor, times: Tensor, schedule: Schedule, noise, *, gamma: Sequence[float] = (), pixels: float | None = None
) -> Solution:
    """The mean of ancestral sampling with the best variance for it: ``lambda^2`` is the posterior's variance.

    Arguments and errors are those of :func:`analytic_ddim`.
    """
    return _analytic(x, times, schedule, noise, gamma, pixels, ancestral=True)


def _analytic(
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    noise,
    gamma: Sequence[float],
    pixels: float | None,
    ancestral: bool,
) -> Solution:
    _check(gamma, len(times) - 1, pixels)
    last_noise = noise_bound(schedule, pixels)
    for (t, s), gamma_t in zip(pairwise(times), gamma, strict=True):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        posterior = (1 - (alpha_t / alpha_s) ** 2) * (sigma_s / sigma_t) ** 2
        lambda2 = posterior if ancestral else torch.zeros_like(posterior)

        eps = yield Request(x, t)
        a = alpha_s / alpha_t
        b = (sigma_s**2 - lambda2).sqrt()
        # The same formula, read from the data's side: (alpha_s - b alpha_t / sigma_t)^2 times the variance of x_0.
        deviation_x0 = (sigma_t / alpha_t * math.sqrt(1 - min(max(gamma_t, 0.0), 1.0))).clamp(max=1.0)
        c = (alpha_s - b * alpha_t / sigma_t) * deviation_x0
        if ancestral:
            c = (lambda2 + c**2).sqrt()
        c = torch.where(s > schedule.t_min * (1 + 1e-9), c, c.clamp(max=last_noise))
        c = torch.where(s > 0, c, 0.0)
        x = along(a, x) * x + along(b - a * sigma_t, x) * eps + along(c, x) * noise(x)
    return x


def noise_bound(schedule: Schedule, pixels: float | None = None) -> float:
    """The largest standard deviation of the last noise, for images in [-1, 1]: ``(2 / 255) y sqrt(pi / 2)``."""
    y = PIXELS.get(schedule.name, 2.0) if pixels is None else pixels
    return y * (2 / 255) * math.sqrt(math.pi / 2)


def _check(gamma: Sequence[float], steps: int, pixels: float | None) -> None:
    if len(gamma) == 0:
        raise BadValue(
            "an analytic solver needs gamma = E||eps||^2 / d at each of its times, measured on the network: "
            "`tt sample` and `tt tune` measure it where it is missing; or give gamma=estimate_gamma(...).values "
            "(tt_lib.tuning.gamma)"
        )
    if len(gamma) != steps:
        raise BadValue(
            f"gamma needs one entry for each step: {len(gamma)} entries, {steps} steps; estimate it for this grid"
        )
    if not all(math.isfinite(value) for value in gamma):
        raise BadValue(f"gamma must be finite, got {tuple(gamma)}; estimate it again")
    if pixels is not None and not pixels >= 0:
        raise BadValue(f"pixels must not be negative, got {pixels}")
