"""DEIS (Zhang & Chen 2022, *Fast Sampling of Diffusion Models with Exponential Integrator*, arXiv 2204.13902)."""

from __future__ import annotations

import torch
from torch import Tensor

from tt_lib.engine import Solution
from tt_lib.schedules import Schedule
from tt_lib.solvers.multistep import gauss, lagrange, linear_multistep


def ipndm_v(x: Tensor, times: Tensor, schedule: Schedule, noise, *, order: int = 4) -> Solution:
    """iPNDM with variable steps: Adams-Bashforth weights that follow the grid, in ``rho = sigma / alpha``.

    In ``y = x / alpha`` the ODE is ``dy = eps d rho``, and the polynomial in rho through the last answers is
    integrated exactly:

    ``C_j = integral from rho_t to rho_s of prod_{k != j} (rho - rho_k) / (rho_j - rho_k) d rho``.

    Where the grid is even in rho these are ``plms``'s weights, ``(rho_s - rho_t) (55, -59, 37, -9) / 24``; on
    every other grid this keeps the full order, which the fixed weights lose. Growing order 1, 2, 3, 4.
    """
    return linear_multistep(x, times, schedule, order, _in_rho)


def deis_tab(
    x: Tensor, times: Tensor, schedule: Schedule, noise,
    *, order: int = 3, final: str = "full", after: int = 0,
) -> Solution:  # fmt: skip
    """tAB-DEIS: eps is a polynomial in t through the last answers, the rest of the ODE is integrated exactly.

    ``x_s = Psi(s, t) x_t + sum_j C_j eps_j``, with the paper's coefficients ``C_ij``, here for VP,

    ``C_j = integral from t to s of Psi(s, tau) g(tau)^2 / (2 sigma(tau)) prod_{k != j} (tau - t_k) / (t_j - t_k) d tau``,

    where ``Psi(s, tau) = alpha_s / alpha_tau`` and ``g^2 / (2 sigma) d tau = alpha d rho``: in ``y = x / alpha``
    the weight is ``d rho`` alone. The ``order`` last answers are used, so order p is the paper's tAB(p - 1)
    and order 1 is DDIM; growing order at the start, and with ``final="lower"`` falling at the end
    (see ``orders_of_steps``).

    The integrals are taken in ``lambda = -log rho``, in which rho and t are smooth, by Gauss-Legendre in panels
    between the schedule's levels, where a discrete schedule has its kinks.
    """
    return linear_multistep(x, times, schedule, order, _in_t, final, after)


def _in_rho(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    rho, end = schedule.rho(nodes), schedule.rho(s)
    h = end - rho[0]
    places, weights = gauss(2)  # exact for the cubics of order 4
    values = (lagrange(rho, rho[0] + place * h) * weight for place, weight in zip(places, weights, strict=True))
    return h * sum(values, torch.zeros_like(nodes))


def _in_t(nodes: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    if nodes.ndim == 1:
        return _quadrature(nodes[:, None], s[None], schedule)[:, 0]
    # Many samples share a grid: one column of weights for each grid is enough.
    columns, which = torch.cat([nodes, s[None]]).unique(dim=1, return_inverse=True)
    return _quadrature(columns[:-1], columns[-1], schedule)[:, which]


def _quadrature(nodes: Tensor, s: Tensor, schedule: Schedule, points: int = 8) -> Tensor:
    """[m, B]: the integrals over ``d rho`` of the Lagrange polynomials in t of ``nodes`` [m, B], to ``s`` [B]."""
    t, levels = nodes[0], schedule.levels
    first, last = int(t.max() * levels) + 1, int(s.min() * levels)
    knots = torch.arange(first, last - 1, -1, dtype=torch.float64, device=s.device)[:, None] / levels
    # [panels + 1, B], falling from t to s; a panel outside of its own step is empty.
    edges = torch.cat([t[None], knots.minimum(t).maximum(s), s[None]])
    lam = schedule.lam(edges)
    places, weights = gauss(points)
    places, weights = places.to(s.device)[:, None, None], weights.to(s.device)[:, None, None]
    inner = lam[:-1] + places * lam.diff(dim=0)  # [points, panels, B]
    d_rho = -weights * lam.diff(dim=0) * torch.exp(-inner)
    tau = schedule.time_of_lam(inner)
    return (lagrange(nodes, tau) * d_rho).sum((1, 2))
