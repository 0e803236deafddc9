"""DPM-Solver++ (Lu et al. 2022, *Fast Solver for Guided Sampling of Diffusion Probabilistic Models*, arXiv 2211.01095)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.schedules import Schedule
from tt_lib.solvers.arithmetic import along
from tt_lib.solvers.multistep import orders_of_steps


def dpmpp_2m(x: Tensor, times: Tensor, schedule: Schedule, noise, *, final: str = "full", after: int = 0) -> Solution:
    """DPM-Solver++(2M), algorithm 2: second order, one evaluation a step, in the data prediction.

    From t to s, with ``h = lambda_s - lambda_t``, ``r = h_before / h`` and
    ``x0_t = (x_t - sigma_t eps) / alpha_t``:

    ``D = (1 + 1 / (2 r)) x0_t - 1 / (2 r) x0_before``,
    ``x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D``.

    The first step has no history and takes ``D = x0_t``. So does a step that ends at clean data,
    ``s = 0``: there ``h`` is infinite, an extrapolation over it means nothing, and the step returns ``x0_t``.
    With ``final="lower"`` the last step takes it wherever it ends (see ``orders_of_steps``).
    """
    orders = orders_of_steps(len(times) - 1, 2, final, after)
    before: Tensor | None = None
    h_before = torch.zeros(())
    for order, (t, s) in zip(orders, pairwise(times), strict=True):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        h = schedule.lam(s) - schedule.lam(t)

        eps = yield Request(x, t)
        x0 = along(1 / alpha_t, x) * x - along(sigma_t / alpha_t, x) * eps
        D = extrapolated(x0, before if order > 1 else None, h, h_before)
        x = along(sigma_s / sigma_t, x) * x - along(alpha_s * torch.expm1(-h), x) * D
        before, h_before = x0, h
    return x


def extrapolated(x0: Tensor, before: Tensor | None, h: Tensor, h_before: Tensor) -> Tensor:
    """``D = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0_before`` with ``r = h_before / h``; x0 alone without history or at infinite h."""
    if before is None:
        return x0
    half_inverse_r = torch.where(h.isfinite(), h / h_before / 2, 0.0)
    return x0 + along(half_inverse_r, x0) * (x0 - before)
