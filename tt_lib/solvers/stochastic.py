"""Solvers that draw noise: ancestral sampling, and DPM-Solver++(2M) for the reverse SDE. (DDIM has its eta.)"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.schedules import Schedule
from tt_lib.solvers.arithmetic import along
from tt_lib.solvers.dpmpp import extrapolated

VARIANCES = ("small", "large")


def ddpm(x: Tensor, times: Tensor, schedule: Schedule, noise, *, variance: str = "small") -> Solution:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7 and 11), with the betas of the steps that are skipped:

    ``x_s = alpha_s (beta / sigma_t^2) x0 + (alpha_t / alpha_s) (sigma_s^2 / sigma_t^2) x_t + c z``,
    ``beta = 1 - alpha_t^2 / alpha_s^2``, and ``c^2 = beta sigma_s^2 / sigma_t^2`` (``small``, the posterior's: DDIM with
    eta = 1) or ``c^2 = beta`` (``large``). The step into clean data, ``s = 0``, adds no noise.
    """
    for t, s in pairwise(times):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        beta = 1 - (alpha_t / alpha_s) ** 2
        posterior = beta * (sigma_s / sigma_t) ** 2
        c = torch.where(s > 0, beta if variance == "large" else posterior, 0.0).sqrt()

        eps = yield Request(x, t)
        x0 = along(1 / alpha_t, x) * x - along(sigma_t / alpha_t, x) * eps
        mean = along(alpha_s * beta / sigma_t**2, x) * x0 + along(alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, x) * x
        x = mean + along(c, x) * noise(x)
    return x


def sde_dpmpp_2m(x: Tensor, times: Tensor, schedule: Schedule, noise) -> Solution:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, its solvers of the reverse SDE), with ``D`` as in DPM-Solver++(2M):

    ``x_s = (sigma_s / sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z``.

    The step into clean data returns ``x0``.
    """
    before: Tensor | None = None
    h_before = torch.zeros(())
    for t, s in pairwise(times):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        h = schedule.lam(s) - schedule.lam(t)

        eps = yield Request(x, t)
        x0 = along(1 / alpha_t, x) * x - along(sigma_t / alpha_t, x) * eps
        D = extrapolated(x0, before, h, h_before)
        fresh = -torch.expm1(-2 * h)
        x = along(sigma_s / sigma_t * torch.exp(-h), x) * x + along(alpha_s * fresh, x) * D
        x = x + along(sigma_s * fresh.sqrt(), x) * noise(x)
        before, h_before = x0, h
    return x
