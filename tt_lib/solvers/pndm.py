"""PNDM (Liu, Ren, Lin & Zhao 2022, *Pseudo Numerical Methods for Diffusion Models on Manifolds*, arXiv 2202.09778)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.schedules import Schedule
from tt_lib.solvers.arithmetic import along
from tt_lib.solvers.budget import check_nfe
from tt_lib.solvers.multistep import linear_multistep, scaled
from tt_lib.solvers.singlestep import first_order

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""The weights of the last answers, newest first, by how many there are."""


def plms(x: Tensor, times: Tensor, schedule: Schedule, noise, *, order: int = 4) -> Solution:
    """PLMS, the pseudo linear multistep method, warmed up by growing order; also iPNDM.

    The gradient part, linear multi-step, mixes the last answers by the weights of Adams and Bashforth,

    ``eps' = (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24``,

    and by ``(23, -16, 5) / 12``, ``(3, -1) / 2`` and ``1`` while there are fewer. The transfer part
    is DDIM's step with ``eps'``: ``x_s = alpha_s (x_t / alpha_t + (rho_s - rho_t) eps')``.

    This is, number for number, the improved PNDM of Zhang & Chen 2022 (iPNDM in DEIS, arXiv 2204.13902),
    which replaces PNDM's Runge-Kutta steps by lower orders: ``ipndm`` is another name for it. Some public
    PLMS samplers differ in their first step, an improved Euler step with one evaluation more.

    The weights are those of even steps. On an uneven grid (and even in t is uneven in rho) the method is of
    second order whatever ``order`` above 1: "pseudo". See ``ipndm-v`` for weights that follow the grid.
    """
    return linear_multistep(x, times, schedule, order, _even_weights)


def _even_weights(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    mixture = torch.tensor(ADAMS_BASHFORTH[len(nodes)], dtype=torch.float64, device=s.device)
    return scaled(mixture, schedule.rho(s) - schedule.rho(nodes[0]))


def pndm(x: Tensor, times: Tensor, schedule: Schedule, noise) -> Solution:
    """F-PNDM, algorithm 2: three pseudo Runge-Kutta steps with four evaluations each, then PLMS of order 4.

    With the transfer ``phi(x, eps, t, s)`` (the paper's transfer part, DDIM's step) and ``m = (t + s) / 2``, a pseudo Runge-Kutta
    step (its other gradient part) takes

    ``e1 = eps(x, t)``, ``e2 = eps(phi(x, e1, t, m), m)``, ``e3 = eps(phi(x, e2, t, m), m)``,
    ``e4 = eps(phi(x, e3, t, s), s)``, ``eps' = (e1 + 2 e2 + 2 e3 + e4) / 6``,

    and ``e1`` enters the history. K steps cost K + 9 evaluations.

    A step to clean data, ``s = 0``, would have to ask for ``e4`` at t = 0, where no network is trained and eps
    means nothing. It is of first order: it takes ``e1`` alone, for one evaluation, and returns ``x0``.
    (In a batch where only some samples end at 0, these ask for their first state again and ignore the answers.)
    """

    def phi(x: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return first_order(x, eps, t, s, schedule)

    history: list[Tensor] = []
    for k, (t, s) in enumerate(pairwise(times)):
        zero = s == 0
        e1 = yield Request(x, t)
        history = [e1, *history][:4]
        mixture = e1
        if k < 3 and not bool(zero.all()):
            m = torch.where(zero, t, (t + s) / 2)
            end = torch.where(zero, t, s)
            e2 = yield Request(phi(x, e1, t, m), m, 1)
            e3 = yield Request(phi(x, e2, t, m), m, 2)
            e4 = yield Request(phi(x, e3, t, end), end, 3)
            mixture = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        elif k >= 3:
            mixture = sum((w * e for w, e in zip(ADAMS_BASHFORTH[4], history, strict=True)), torch.zeros_like(x))
        keep = along(zero.to(torch.float64), x)
        x = phi(x, keep * e1 + (1 - keep) * mixture, t, s)
    return x


def plan_pndm(nfe: int) -> tuple[int, dict[str, Any]]:
    """K + 9 evaluations for K steps, from K = 4 on: three Runge-Kutta steps, and one that may end at clean data."""
    check_nfe(nfe, 13, "pndm")
    return nfe - 9, {}
