"""DPM-Solver++ with memory: 2M, 3M and, for the reverse SDE, SDE-2M.

(Lu et al. 2022, *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models*, arXiv 2211.01095.)
They extrapolate the data prediction ``x0 = (x - sigma eps) / alpha`` in lambda, with one evaluation a step. The first
step has no history, and a step into clean data, ``s = 0``, takes none: there ``h`` is infinite, an extrapolation over
it means nothing, and the step returns ``x0_t``. From ``alpha = 0``, where ``h`` is infinite as well, a step is of first
order, and so is the one after it, whose history lies infinitely far away.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.predictors import to_x0
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.orders import orders_of_steps

VARIANTS_3M = {"published": 1.0, "exact": 2.0}
"""What multiplies the term in ``D2`` of 3M."""


def dpmpp_2m(x: Tensor, times: Tensor, schedule: Schedule, noise, *, final: str | int = "full") -> Solution:
    """DPM-Solver++(2M), algorithm 2, from t to s with ``h = lambda_s - lambda_t`` and ``r = h_before / h``:

    ``D = (1 + 1 / (2 r)) x0_t - 1 / (2 r) x0_before``,
    ``x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D``.

    The first step takes ``D = x0_t``, and with ``final="lower"`` the last one, too (see ``orders_of_steps``).
    """
    before: Tensor | None = None
    h_before = torch.zeros(())
    orders = orders_of_steps(len(times) - 1, 2, final)
    for order, (t, s) in zip(orders, pairwise(times), strict=True):
        h = schedule.lam(s) - schedule.lam(t)

        d = yield Request(x, t)
        x0 = to_x0(d, x, t, schedule)
        D = _extrapolated(x0, before if order > 1 else None, h, h_before)
        x = first_order_in_x0(x, D, t, s, schedule)
        before, h_before = x0, h
    return x


def first_order_in_x0(x: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """``x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) x0``, also where h is infinite."""
    alpha_s, ratio = schedule.alpha(s), schedule.sigma(s) / schedule.sigma(t)
    h = schedule.lam(s) - schedule.lam(t)
    # The other form cancels where h is small. Choose before dividing: an infinite slope would be NaN in gradients.
    finite = h.isfinite()
    weight = -alpha_s * torch.expm1(-torch.where(finite, h, 0.0))
    return along(ratio, x) * x + along(torch.where(finite, weight, alpha_s - ratio * schedule.alpha(t)), x) * x0


def sde_dpmpp_2m(x: Tensor, times: Tensor, schedule: Schedule, noise) -> Solution:
    """SDE-DPM-Solver++(2M), the paper's solver of the reverse SDE, with ``D`` as in :func:`dpmpp_2m`, ``z ~ N(0, I)``:

    ``x_s = (sigma_s / sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z``.
    """
    before: Tensor | None = None
    h_before = torch.zeros(())
    for t, s in pairwise(times):
        alpha_s, sigma_t, sigma_s = schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
        h = schedule.lam(s) - schedule.lam(t)

        eps = yield Request(x, t)
        x0 = to_x0(eps, x, t, schedule)
        D = _extrapolated(x0, before, h, h_before)
        fresh = -torch.expm1(-2 * h)
        x = along(sigma_s / sigma_t * torch.exp(-h), x) * x + along(alpha_s * fresh, x) * D
        x = x + along(sigma_s * fresh.sqrt(), x) * noise(x)
        before, h_before = x0, h
    return x


def _extrapolated(x0: Tensor, before: Tensor | None, h: Tensor, h_before: Tensor) -> Tensor:
    """``D = x0 + (x0 - x0_before) / (2 r)`` with ``r = h_before / h``; x0 alone without history or at infinite h."""
    if before is None:
        return x0
    # Choose before dividing: the gradient in h_before is not finite where h is not.
    half_inverse_r = torch.where(h.isfinite(), h, 0.0) / h_before / 2
    return x0 + along(half_inverse_r, x0) * (x0 - before)


def dpmpp_3m(
    x: Tensor, times: Tensor, schedule: Schedule, noise, *, variant: str = "published", final: str | int = "full"
) -> Solution:
    """DPM-Solver++(3M): the data prediction and its two divided differences in lambda.

    From t to s, with ``x0_i`` and ``lambda_i`` of the last three evaluations (0 the newest),
    ``h = lambda_s - lambda_0``, ``r_0 = (lambda_0 - lambda_1) / h``, ``r_1 = (lambda_1 - lambda_2) / h``:

    ``D1_0 = (x0_0 - x0_1) / r_0``, ``D1_1 = (x0_1 - x0_2) / r_1``,
    ``D1 = D1_0 + r_0 / (r_0 + r_1) (D1_0 - D1_1)``, ``D2 = (D1_0 - D1_1) / (r_0 + r_1)``,
    ``phi_1 = e^{-h} - 1``, ``phi_2 = phi_1 / h + 1``, ``phi_3 = phi_2 / h - 1 / 2``,
    ``x_s = (sigma_s / sigma_t) x_t - alpha_s phi_1 x0_0 + alpha_s phi_2 D1 - alpha_s phi_3 D2``.

    The paper has no algorithm for it. This is the multistep third-order update of the authors' code, as also in
    k-diffusion (``dpmpp_3m_sde`` without noise) and diffusers. ``D1`` is ``h x0'`` and ``D2`` is
    ``h^2 x0'' / 2``, but the exact integral has ``-2 phi_3`` before ``h^2 x0'' / 2``: the published formula takes
    half of the curvature and is of second order. With many steps its error is a third of 2M's. ``variant="exact"`` has
    the 2 and is of third order; it is UniP-3 (see ``unipc``).

    The first step takes ``D1 = D2 = 0``, the second ``D1 = D1_0`` and ``D2 = 0`` (as k-diffusion, and diffusers with
    ``solver_type="heun"``; 2M has ``-phi_1 / 2`` in place of ``phi_2``). With ``final="lower"`` the last step is like
    the first and the one before it like the second (see ``orders_of_steps``).
    """
    history: list[tuple[Tensor, Tensor]] = []  # x0 and lambda, newest first
    orders = orders_of_steps(len(times) - 1, 3, final)
    for order, (t, s) in zip(orders, pairwise(times), strict=True):
        d = yield Request(x, t)
        history = [(to_x0(d, x, t, schedule), schedule.lam(t)), *history][:order]
        x0s, lams = zip(*history, strict=True)
        x = first_order_in_x0(x, x0s[0], t, s, schedule)
        if order == 1:
            continue

        # Where s is 0 h is infinite and the differences have no part: any finite h will do.
        alpha_s, h = schedule.alpha(s), torch.where(s > 0, schedule.lam(s) - lams[0], 1.0)
        phi_2 = torch.expm1(-h) / h + 1
        phi_3 = phi_2 / h - 0.5
        phi_2, phi_3 = (torch.where(s > 0, alpha_s * phi, 0.0) for phi in (phi_2, phi_3))
        # r_0 h and r_1 h: one may be infinite, and dividing by it leaves gradients finite.
        a = lams[0] - lams[1]
        D1 = along(h / a, x) * (x0s[0] - x0s[1])
        if order == 3:
            b = lams[1] - lams[2]
            difference = D1 - along(h / b, x) * (x0s[1] - x0s[2])
            D1 = D1 + along(a / (a + b), x) * difference
            x = x - along(VARIANTS_3M[variant] * phi_3 * h / (a + b), x) * difference
        x = x + along(phi_2, x) * D1
    return x
