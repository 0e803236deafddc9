"""Predictors: a network as ``(x, t, tau) -> direction``, the one place where the two times differ.

The network is conditioned on ``tau``. The state ``x`` is at noise level ``t``, so what the network predicts becomes
the schedule's direction at ``t`` (eps or the velocity, see :mod:`tt_lib.schedules`), by the algebra of
``x = alpha x0 + sigma eps``. TimeTuner changes only ``tau``.

======== ============================================= ================================= =============================
kind     what the network predicts                     eps                               velocity, ``c = alpha + sigma``
======== ============================================= ================================= =============================
eps      the noise (Ho et al. 2020)                    itself                            ``(c eps - x) / alpha``
x0       the clean image                               ``(x - alpha x0) / sigma``        ``(x - c x0) / sigma``
v        ``alpha eps - sigma x0`` (Salimans & Ho 2022) ``alpha v + sigma x``             ``c v + (sigma - alpha) x``
score    ``grad_x log p_t(x)`` (Song et al. 2021)      ``-sigma score``                  that of eps
velocity ``eps - x0`` (Lipman et al. 2023)             ``(x + alpha velocity) / c``      itself
edm      EDM's F (Karras et al. 2022), on ``ve``       that of x0, ``c_skip x + c_out F``, given ``c_in x``
======== ============================================= ================================= =============================

Where ``alpha = 0`` eps and score say nothing of the image. A network that predicts them is refused there. v is defined
on variance-preserving schedules alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, choose
from tt_lib.schedules import VE, VP, Schedule, along, make_schedule

KINDS = ("eps", "x0", "v", "score", "velocity", "edm")
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
"""diffusers' names of what a network predicts, and ours."""


class Predictor(Protocol):
    """The schedule's direction [B, ...] at state ``x`` [B, ...], nominal time ``t``, conditioning time ``tau``.

    The times are scalars or [B]. ``remakes = True`` says of a predictor that it keeps no activations for the gradient.
    """

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor: ...


def predictor_of(predictor: Predictor, seeds: Sequence[int]) -> Predictor:
    """The predictor of the samples with these seeds.

    Where each sample has a condition of its own, such as a prompt, the condition belongs to the seed, as the noise
    does: such a predictor has ``for_seeds(seeds)``, which gives that of one batch. Any other serves all samples.
    """
    of_batch = getattr(predictor, "for_seeds", None)
    return of_batch(seeds) if of_batch else predictor


class EpsPredictor:
    """A network as a predictor of the schedule's direction (eps, or the velocity), conditioned on ``tau``.

    Args:
        network: called as ``network(x, c)`` with ``x`` float32 [B, C, H, W] and ``c`` float32 [B], the
            schedule's ``network_time(tau)``; returns a prediction [B, C, H, W], or an object with it as ``.sample``.
        schedule: turns ``tau`` into ``c``.
        bf16: run the network in bfloat16 under autocast.
        kind: what the network predicts, one of :data:`KINDS`; the answer is always the direction. A network that also
            predicts a variance gives twice the channels of ``x``: the first half counts.

    Raises:
        BadValue: an unknown kind, one that the schedule does not have, or eps or score where ``alpha(t) = 0``.

    The answer is float32. ``tau`` reaches the network as a float tensor, never as a Python number:
    diffusers' ``UNet2DModel`` truncates a float timestep to an integer.
    """

    def __init__(
        self, network: nn.Module | Callable, schedule: Schedule, bf16: bool = False, kind: str = "eps"
    ) -> None:
        check_kind(kind, schedule)
        self.network, self.schedule, self.bf16, self.kind = network, schedule, bf16, kind
        self.remakes = getattr(network, "remakes", False)

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        check_kind(self.kind, self.schedule, t)
        c = self.schedule.network_time(tau).float()
        # A scalar on the CPU is added without a copy to the GPU, for which the CPU would wait until the GPU is done.
        c = c.to(x.device) if c.ndim else torch.zeros(len(x), device=x.device) + c
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            scaled = preconditioning(t, x, self.schedule)[0] * x if self.kind == "edm" else x
            answer = prediction(self.network(scaled, c))
        if x.ndim > 1 and answer.shape[1] == 2 * x.shape[1]:
            answer = answer[:, : x.shape[1]]
        return to_direction(self.kind, answer.float(), x, t, self.schedule)


class OnPath:
    """A predictor made for one schedule, on the path of another.

    A state of the path is a multiple of the state with the same signal-to-noise ratio on the predictor's own schedule.
    Where the path is noisier than all of its own schedule (``flow`` near t = 1, where ``alpha = 0``; at its own t = 1
    VP's alpha is small and not 0), the state counts as one of its own t = 1, and so does the conditioning time: noise
    of deviation 1 is what the predictor would start from, too.

    Args:
        predictor: of the directions of ``own``.
        own: the schedule that it was made for.
        schedule: of the path; times are those of the path, and the answers are its directions.
    """

    def __init__(self, predictor: Predictor, own: Schedule, schedule: Schedule) -> None:
        self.predictor, self.own, self.schedule = predictor, own, schedule
        self.remakes = getattr(predictor, "remakes", False)

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        own_t, own_tau = self._own(t), self._own(tau)
        if tau.requires_grad:
            # Where the own time stands still, a tau that is tuned from there would never move: it has the slope of the
            # noisiest level.
            last = (1 - 1e-9) * self.schedule.time_of_lam(self.own.lam(self.own.t_max)).to(tau.device)
            moving = self._own(tau - (tau - last).clamp(min=0).detach())
            own_tau = moving + (own_tau - moving).detach()
        state = along(self.own.scale(own_t) / self.schedule.scale(t), x) * x
        x0 = to_x0(self.predictor(state, own_t, own_tau), state, own_t, self.own)
        return to_direction("x0", x0, x, t, self.schedule)

    def _own(self, time: Tensor) -> Tensor:
        return self.own.time_of_lam(self.schedule.lam(time))


def path_of(name: str, own: Schedule) -> Schedule:
    """The schedule ``name`` for a network of the schedule ``own``: with the times that the network can be evaluated at.

    A rule in lambda then has the range that it has on ``own``. The first evaluation may be at t = 1 all the same.
    """
    path = make_schedule(name)
    path.t_min = max(path.t_min, float(path.time_of_lam(own.lam(own.t_min))))
    path.t_max = min(path.t_max, float(path.time_of_lam(own.lam(own.t_max))))
    return path


class Chunked:
    """A predictor that runs any batch in pieces, so that memory stays bounded.

    Args:
        predictor: what runs the pieces, without gradients.
        size: the largest piece.
        fill: fill the last piece up to ``size``, so that a network compiled for one size serves every batch.
    """

    def __init__(self, predictor: Predictor, size: int, fill: bool = False) -> None:
        self.predictor, self.size, self.fill = predictor, size, fill

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        answers = []
        for begin in range(0, len(x), self.size):
            piece = [self._piece(value, begin) if value.ndim else value for value in (x, t, tau)]
            answers.append(self.predictor(*piece)[: len(x) - begin])
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _piece(self, value: Tensor, begin: int) -> Tensor:
        piece = value[begin : begin + self.size]
        missing = self.size - len(piece) if self.fill else 0
        return torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing else piece


def prediction(answer: Any) -> Tensor:
    """What a network predicts: its answer, or what the answer has as ``.sample``, as in diffusers."""
    return answer if isinstance(answer, Tensor) else answer.sample


def check_kind(kind: str, schedule: Schedule, t: Tensor | None = None) -> None:
    """Raise :class:`BadValue` for a kind of prediction that is none, or means nothing on a schedule (at time ``t``)."""
    choose("kind of prediction", kind, KINDS)
    if kind == "v" and not isinstance(schedule, VP):
        raise BadValue(
            f"v is alpha eps - sigma x0 where alpha^2 + sigma^2 = 1, and on the schedule {schedule.name!r} it is not; "
            "choose another kind of prediction"
        )
    if kind == "edm" and not isinstance(schedule, VE):
        raise BadValue(f"EDM's preconditioning is for the schedule 've', got {schedule.name!r}; choose that")
    blind = kind in ("eps", "score") and schedule.direction != "eps"
    if blind and t is not None and bool((schedule.alpha(t) == 0).any()):
        raise BadValue(
            f"the network predicts {kind}, and on the schedule {schedule.name!r} alpha is 0 at t = 1, where that says "
            "nothing of the image; take a network that predicts v, x0 or the velocity, or begin below t = 1"
        )


def to_eps(kind: str, answer: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """eps [B, ...] of an ``answer`` [B, ...] about the state ``x`` [B, ...] at noise level ``t`` (scalar or [B]).

    Raises:
        BadValue: ``kind`` is none of :data:`KINDS`, or the schedule does not have it.
    """
    check_kind(kind, schedule)
    if kind == "eps":
        return answer
    alpha, sigma = along(schedule.alpha(t), x), along(schedule.sigma(t), x)
    if kind == "edm":
        _, skip, out = preconditioning(t, x, schedule)
        kind, answer = "x0", skip * x + out * answer
    if kind == "x0":
        return (x - alpha * answer) / sigma
    if kind == "v":
        return alpha * answer + sigma * x
    if kind == "velocity":
        return (x + alpha * answer) / (alpha + sigma)
    return -sigma * answer


def to_direction(kind: str, answer: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The schedule's direction [B, ...] of an ``answer``: as :func:`to_eps`, or the velocity.

    Raises:
        BadValue: as :func:`to_eps`, or the answer says nothing of the image there.
    """
    check_kind(kind, schedule, t)
    if schedule.direction == "eps":
        return to_eps(kind, answer, x, t, schedule)
    if kind == "velocity":
        return answer
    alpha, sigma = along(schedule.alpha(t), x), along(schedule.sigma(t), x)
    if kind == "x0":
        return (x - (alpha + sigma) * answer) / sigma
    if kind == "v":
        return (alpha + sigma) * answer + (sigma - alpha) * x
    return ((alpha + sigma) * to_eps(kind, answer, x, t, schedule) - x) / alpha


def from_direction(kind: str, direction: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """What a network of a kind would have answered: the inverse of :func:`to_direction`, at the same t.

    Raises:
        BadValue: as :func:`to_direction`.
    """
    check_kind(kind, schedule)
    if kind == schedule.direction:
        return direction
    x0 = to_x0(direction, x, t, schedule)
    if kind == "edm":
        _, skip, out = preconditioning(t, x, schedule)
        return (x0 - skip * x) / out
    if kind == "x0":
        return x0
    eps = to_eps(schedule.direction, direction, x, t, schedule)
    if kind == "v":
        return to_v(eps, x0, schedule.alpha(t), schedule.sigma(t))
    if kind == "velocity":
        return eps - x0
    return eps if kind == "eps" else -eps / along(schedule.sigma(t), x)


def to_v(eps: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``v = alpha eps - sigma x0`` [B, ...] of eps and x0 [B, ...] at a level ``alpha``, ``sigma`` (scalars or [B])."""
    return along(alpha, x0) * eps - along(sigma, x0) * x0


def to_x0(direction: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The clean image [B, ...] that a direction [B, ...] stands for at the state ``x`` [B, ...] and the time ``t``.

    ``x0 = y - w direction = (x - sigma direction) / c``, whichever direction it is.
    """
    return (x - along(schedule.sigma(t), x) * direction) / along(schedule.c(t), x)


def preconditioning(t: Tensor, x: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """EDM's ``c_in``, ``c_skip`` and ``c_out`` at t (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    assert isinstance(schedule, VE)
    sigma, data = schedule.sigma(t), schedule.sigma_data
    spread = torch.hypot(sigma, torch.full_like(sigma, data))
    return along(1 / spread, x), along((data / spread) ** 2, x), along(sigma * data / spread, x)
