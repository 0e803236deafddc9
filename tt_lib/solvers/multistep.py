"""Linear multistep solvers in the noise prediction: PLMS (also iPNDM), PNDM, iPNDM-v and tAB-DEIS.

PNDM and PLMS are of Liu, Ren, Lin & Zhao 2022, *Pseudo Numerical Methods for Diffusion Models on Manifolds* (arXiv
2202.09778); iPNDM and DEIS are of Zhang & Chen 2022, *Fast Sampling of Diffusion Models with Exponential Integrator*
(arXiv 2204.13902).

In ``y = x / c`` and w the probability-flow ODE is ``dy = d dw``: with eps as the direction d these are ``x / alpha``
and ``rho = sigma / alpha``, and on the straight path, with the velocity, x and t. A linear multistep solver puts a
mixture of the last evaluations in place of the integral: with the newest one ``d_0``,

``x_s = c_s (x_t / c_t + sum_j C_j d_j)``,  ``sum_j C_j = w_s - w_t``.

The solvers differ only in the weights ``C_j``, and PNDM in its first three steps. Below, as in the papers, ``eps``,
``alpha`` and ``rho`` stand for d, c and w.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.ddim import first_order
from tt_lib.solvers.orders import orders_of_steps

Weights = Callable[[Tensor, Tensor, Schedule], Tensor]
"""(times of the last answers [m] or [m, B], newest first; s, above 0; schedule) -> ``C`` [m] or [m, B]."""

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""The weights of the last answers in even steps, newest first, by how many there are."""


def plms(x: Tensor, times: Tensor, schedule: Schedule, noise, *, order: int = 4) -> Solution:
    """PLMS, the pseudo linear multistep method, warmed up by growing order; also iPNDM.

    The gradient part, linear multi-step, mixes the last evaluations by the weights of Adams and Bashforth,

    ``eps' = (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24``,

    and by ``(23, -16, 5) / 12``, ``(3, -1) / 2`` and ``1`` while there are fewer. The transfer part
    is DDIM's step with ``eps'``: ``x_s = alpha_s (x_t / alpha_t + (rho_s - rho_t) eps')``.

    This is, number for number, the improved PNDM of Zhang & Chen (iPNDM), which replaces PNDM's Runge-Kutta steps by
    lower orders: ``ipndm`` is another name for it. Some public PLMS samplers differ in their first step, an improved
    Euler step with one evaluation more.

    The weights are those of even steps in rho, and a grid that is even in t is not. On an uneven grid the method is of
    second order for every ``order`` above 1, hence "pseudo". The weights of ``ipndm-v`` follow the grid.
    """
    return _linear_multistep(x, times, schedule, order, _even_weights)


def ipndm_v(x: Tensor, times: Tensor, schedule: Schedule, noise, *, order: int = 4) -> Solution:
    """iPNDM with variable steps: the polynomial in rho through the last evaluations is integrated exactly,

    ``C_j = integral from rho_t to rho_s of prod_{k != j} (rho - rho_k) / (rho_j - rho_k) d rho``.

    Where the grid is even in rho these are ``plms``'s weights, ``(rho_s - rho_t) (55, -59, 37, -9) / 24``; on
    every other grid this keeps the full order, which the fixed weights lose. Growing order 1, 2, 3, 4.
    """
    return _linear_multistep(x, times, schedule, order, _weights_in_rho)


def deis_tab(
    x: Tensor, times: Tensor, schedule: Schedule, noise, *, order: int = 3, final: str | int = "full"
) -> Solution:
    """tAB-DEIS: eps is a polynomial in t through the last evaluations, and the rest of the ODE is integrated exactly.

    ``x_s = Psi(s, t) x_t + sum_j C_j eps_j``, with the paper's coefficients ``C_ij`` (eq. 15), here for VP,

    ``C_j = integral from t to s of Psi(s, u) g(u)^2 / (2 sigma(u)) prod_{k != j} (u - t_k) / (t_j - t_k) du``,

    where ``Psi(s, u) = alpha_s / alpha_u`` and ``g^2 / (2 sigma) du = alpha d rho``: in ``y = x / alpha``
    the weight is ``d rho`` alone. The ``order`` last evaluations are used, so order p is the paper's tAB(p - 1)
    and order 1 is DDIM; growing order at the start, and with ``final="lower"`` falling at the end
    (see ``orders_of_steps``).

    The integrals are taken in ``lambda = -log rho``, in which rho and t are smooth, or, with the velocity, in w itself,
    by Gauss-Legendre in panels between the schedule's levels, where a discrete schedule has its kinks.
    """
    return _linear_multistep(x, times, schedule, order, _weights_in_t, final)


def pndm(x: Tensor, times: Tensor, schedule: Schedule, noise) -> Solution:
    """F-PNDM, algorithm 2: three pseudo Runge-Kutta steps with four evaluations each, then PLMS of order 4.

    With the transfer ``phi(x, eps, t, s)`` (the paper's transfer part, DDIM's step) and ``m = (t + s) / 2``, a pseudo
    Runge-Kutta step (its other gradient part) takes

    ``e1 = eps(x, t)``, ``e2 = eps(phi(x, e1, t, m), m)``, ``e3 = eps(phi(x, e2, t, m), m)``,
    ``e4 = eps(phi(x, e3, t, s), s)``, ``eps' = (e1 + 2 e2 + 2 e3 + e4) / 6``,

    and ``e1`` enters the history. K steps cost K + 9 evaluations.

    A step to clean data, ``s = 0``, would evaluate ``e4`` at t = 0, where no network is trained and eps is not
    defined. It is of first order: it takes ``e1`` alone, for one evaluation, and returns ``x0``. In a batch where only
    some samples end at 0, these evaluate their first state again and ignore the results.
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
        first = along(zero.to(torch.float64), x)
        x = phi(x, first * e1 + (1 - first) * mixture, t, s)
    return x


def _linear_multistep(
    x: Tensor, times: Tensor, schedule: Schedule, order: int, weights: Weights, final: str | int = "full"
) -> Solution:
    """One evaluation a step and the last answers in each, as many as :func:`orders_of_steps` says.

    A step that ends at clean data, ``s = 0``, takes the newest answer alone and returns its
    ``x0 = (x - sigma eps) / alpha``: no extrapolation may add to the network's last word.
    """
    orders = orders_of_steps(len(times) - 1, order, final)
    answers: list[Tensor] = []
    for k, (t, s) in enumerate(pairwise(times)):
        eps = yield Request(x, t)
        answers = [eps, *answers][: orders[k]]
        nodes = times[: k + 1].flip(0)[: len(answers)]
        # A made-up s where the true one is 0 keeps the weights finite until they are replaced.
        C = weights(nodes, torch.where(s > 0, s, t / 2), schedule)
        newest_alone = torch.cat([-schedule.w(t)[None], torch.zeros_like(nodes[1:])])
        C = torch.where(s > 0, C, newest_alone)
        x = along(schedule.c(s) / schedule.c(t), x) * x
        for weight, answer in zip(schedule.c(s) * C, answers, strict=True):
            x = x + along(weight, x) * answer
    return x


def _even_weights(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    mixture = torch.tensor(ADAMS_BASHFORTH[len(nodes)], dtype=torch.float64, device=s.device)
    return torch.tensordot(mixture, schedule.w(s) - schedule.w(nodes[0]), dims=0)


def _weights_in_rho(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    w = schedule.w(nodes)
    h = schedule.w(s) - w[0]
    places, weights = _gauss(2)  # exact for the cubics of order 4
    values = (_lagrange(w, w[0] + place * h) * weight for place, weight in zip(places, weights, strict=True))
    return h * sum(values, torch.zeros_like(nodes))


def _weights_in_t(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    if nodes.ndim == 1:
        return _quadrature(nodes[:, None], s[None], schedule)[:, 0]
    if nodes.requires_grad or s.requires_grad:  # `unique` has no gradient
        return _quadrature(nodes, s, schedule)
    # Many samples share a grid: one column of weights for each grid is enough.
    columns, which = torch.cat([nodes, s[None]]).unique(dim=1, return_inverse=True)
    return _quadrature(columns[:-1], columns[-1], schedule)[:, which]


def _quadrature(nodes: Tensor, s: Tensor, schedule: Schedule, points: int = 8) -> Tensor:
    """[m, B]: the integrals over ``dw`` of the Lagrange polynomials in t of ``nodes`` [m, B], to ``s`` [B]."""
    t, levels = nodes[0], schedule.levels
    first, last = int(t.max() * levels) + 1, int(s.min() * levels)
    knots = torch.arange(first, last - 1, -1, dtype=torch.float64, device=s.device)[:, None] / levels
    # [panels + 1, B], falling from t to s; a panel outside of its own step is empty.
    edges = torch.cat([t[None], knots.minimum(t).maximum(s), s[None]])
    places, weights = (each.to(s.device)[:, None, None] for each in _gauss(points))
    velocity = schedule.direction == "velocity"
    ends = schedule.w(edges) if velocity else schedule.lam(edges)
    inner = ends[:-1] + places * ends.diff(dim=0)  # [points, panels, B]
    lam = torch.log1p(-inner) - inner.log() if velocity else inner
    dw = weights * ends.diff(dim=0) * (1 if velocity else -torch.exp(-inner))
    return (_lagrange(nodes, schedule.time_of_lam(lam)) * dw).sum((1, 2))


def _lagrange(nodes: Tensor, places: Tensor) -> Tensor:
    """[m, *places]: the Lagrange polynomials of ``nodes`` [m] or [m, B] at ``places`` [...] or [..., B]."""
    polynomials = []
    for j, own in enumerate(nodes):
        value = torch.ones_like(places)
        for k, other in enumerate(nodes):
            if k != j:
                value = value * (places - other) / (own - other)
        polynomials.append(value)
    return torch.stack(polynomials)


def _gauss(points: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], exact for polynomials up to degree ``2 points - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
