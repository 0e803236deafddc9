"""Predictors: a network as ``(x, t, tau) -> eps``, the one place where the two times differ.

The network is conditioned on ``tau``. The state ``x`` is at noise level ``t``, so what the network predicts becomes
eps at ``t``, by the algebra of ``x = alpha x0 + sigma eps``. TimeTuner changes only ``tau``.

====== ============================================= =========================
kind   what the network predicts                     eps
====== ============================================= =========================
eps    the noise (Ho et al. 2020)                    itself
x0     the clean image                               ``(x - alpha x0) / sigma``
v      ``alpha eps - sigma x0`` (Salimans & Ho 2022) ``alpha v + sigma x``
score  ``grad_x log p_t(x)`` (Song et al. 2021)      ``-sigma score``
====== ============================================= =========================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tt_lib.errors import choose
from tt_lib.schedules import Schedule, along

KINDS = ("eps", "x0", "v", "score")
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
"""diffusers' names of what a network predicts, and ours."""


class Predictor(Protocol):
    """The direction ``eps`` [B, ...] at state ``x`` [B, ...], nominal time ``t``, conditioning time ``tau``.

    The times are scalars or [B].
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
    """A network as a predictor of the noise, conditioned on ``tau``.

    Args:
        network: called as ``network(x, c)`` with ``x`` float32 [B, C, H, W] and ``c`` float32 [B], the
            schedule's ``network_time(tau)``; returns a prediction [B, C, H, W], or an object with it as ``.sample``.
        schedule: turns ``tau`` into ``c``.
        bf16: run the network in bfloat16 under autocast.
        kind: what the network predicts, one of :data:`KINDS`; the answer is always eps. A network that also
            predicts a variance gives twice the channels of ``x``: the first half counts.

    The answer is float32. ``tau`` reaches the network as a float tensor, never as a Python number:
    diffusers' ``UNet2DModel`` truncates a float timestep to an integer.
    """

    def __init__(
        self, network: nn.Module | Callable, schedule: Schedule, bf16: bool = False, kind: str = "eps"
    ) -> None:
        choose("kind of prediction", kind, KINDS)
        self.network, self.schedule, self.bf16, self.kind = network, schedule, bf16, kind

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        c = self.schedule.network_time(tau).float()
        # A scalar on the CPU is added without a copy to the GPU, for which the CPU would wait until the GPU is done.
        c = c.to(x.device) if c.ndim else torch.zeros(len(x), device=x.device) + c
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            answer = prediction(self.network(x, c))
        if x.ndim > 1 and answer.shape[1] == 2 * x.shape[1]:
            answer = answer[:, : x.shape[1]]
        return to_eps(self.kind, answer.float(), x, t, self.schedule)


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


def to_eps(kind: str, answer: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """eps [B, ...] of an ``answer`` [B, ...] about the state ``x`` [B, ...] at noise level ``t`` (scalar or [B]).

    Raises:
        BadValue: ``kind`` is none of :data:`KINDS`.
    """
    choose("kind of prediction", kind, KINDS)
    if kind == "eps":
        return answer
    alpha, sigma = along(schedule.alpha(t), x), along(schedule.sigma(t), x)
    if kind == "x0":
        return (x - alpha * answer) / sigma
    if kind == "v":
        return alpha * answer + sigma * x
    return -sigma * answer


def to_v(eps: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``v = alpha eps - sigma x0`` [B, ...] of eps and x0 [B, ...] at a level ``alpha``, ``sigma`` (scalars or [B])."""
    return along(alpha, x0) * eps - along(sigma, x0) * x0


def to_x0(eps: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The clean image [B, ...] that eps [B, ...] stands for at the state ``x`` [B, ...] and the time ``t``."""
    return (x - along(schedule.sigma(t), x) * eps) / along(schedule.alpha(t), x)
