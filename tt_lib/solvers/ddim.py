"""DDIM and DDPM: solvers with one network evaluation a step and no memory of earlier steps.

DDIM is the first-order solver of the probability-flow ODE. With ``eta`` above 0 it adds noise in each step. DDPM is
ancestral sampling: it adds the noise of the reverse Markov chain.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.predictors import to_x0
from tt_lib.schedules import Schedule, along

VARIANCES = ("small", "large")


def first_order(x: Tensor, d: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """DDIM, DPM-Solver-1 and Euler's method in w: ``x_s = c_s (x / c_t + (w_s - w_t) d)``, with ``c w = sigma``."""
    a = schedule.c(s) / schedule.c(t)
    return along(a, x) * x + along(schedule.sigma(s) - a * schedule.sigma(t), x) * d


def ddim(x: Tensor, times: Tensor, schedule: Schedule, noise, *, eta: float = 0.0) -> Solution:
    """DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502, eq. 12, with our alpha = the paper's sqrt(alpha)), from t to s:

    ``x_s = alpha_s (x_t - sigma_t eps) / alpha_t + sqrt(sigma_s^2 - c^2) eps + c z``,
    ``c = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2)`` (eq. 16), ``z ~ N(0, I)``.

    With ``rho = sigma / alpha``, eq. 16 is ``c^2 = q sigma_s^2``, ``q = eta^2 (1 - rho_s^2 / rho_t^2)``. Then
    ``sqrt(sigma_s^2 - c^2) = sigma_s sqrt(1 - q)``, which has a gradient at ``s = 0``, where the times may end.

    ``eta = 0`` is the first-order exponential integrator of the probability-flow ODE; ``eta = 1`` has
    the variance of ancestral sampling.

    Without noise it is Euler's method in w, ``x_s = c_s (x_t / c_t + (w_s - w_t) d)``, for the direction d of any
    schedule: on the straight path ``x_s = x_t + (s - t) u``.
    """
    for t, s in pairwise(times):
        d = yield Request(x, t)
        if eta == 0:
            x = first_order(x, d, t, s, schedule)
            continue
        sigma_s, q = schedule.sigma(s), eta**2 * (1 - (schedule.rho(s) / schedule.rho(t)) ** 2)
        a = schedule.alpha(s) / schedule.alpha(t)
        b = sigma_s * (1 - q).sqrt() - a * schedule.sigma(t)
        x = along(a, x) * x + along(b, x) * d + along(sigma_s * q.sqrt(), x) * noise(x)
    return x


def ddpm(x: Tensor, times: Tensor, schedule: Schedule, noise, *, variance: str = "small") -> Solution:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7 and 11), from t to s, which may skip levels:

    ``x_s = alpha_s (beta / sigma_t^2) x0 + (alpha_t / alpha_s) (sigma_s^2 / sigma_t^2) x_t + c z``,
    ``beta = 1 - alpha_t^2 / alpha_s^2``, ``z ~ N(0, I)``.

    ``c^2`` is ``beta sigma_s^2 / sigma_t^2`` (``small``, the posterior's: DDIM with eta = 1) or ``beta`` (``large``).
    The step into clean data, ``s = 0``, adds no noise.
    """
    for t, s in pairwise(times):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        beta = 1 - (alpha_t / alpha_s) ** 2
        posterior = beta * (sigma_s / sigma_t) ** 2
        c = torch.where(s > 0, beta if variance == "large" else posterior, 0.0).sqrt()

        eps = yield Request(x, t)
        x0 = to_x0(eps, x, t, schedule)
        mean = along(alpha_s * beta / sigma_t**2, x) * x0 + along(alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, x) * x
        x = mean + along(c, x) * noise(x)
    return x
