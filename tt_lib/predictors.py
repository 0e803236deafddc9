"""Predictors: a network as ``(x, t, tau) -> eps``, the one place where the two times differ.

The network is conditioned on ``tau``; the state ``x`` is at noise level ``t``, so conversions between
eps, x0, v and score use ``t``. TimeTuner changes only ``tau``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tt_lib.conversions import KINDS, to_eps
from tt_lib.errors import choose
from tt_lib.models import Model
from tt_lib.schedules import Schedule


class Predictor(Protocol):
    """The direction ``eps`` [B, ...] at state ``x`` [B, ...], nominal time ``t``, conditioning time ``tau`` (scalars or [B])."""

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor: ...


class EpsPredictor:
    """A network as a predictor of the noise, conditioned on ``tau``.

    Args:
        network: called as ``network(x, c)`` with ``x`` float32 [B, C, H, W] and ``c`` float32 [B], the
            schedule's ``network_time(tau)``; returns a prediction [B, C, H, W], or an object with it as ``.sample``.
        schedule: turns ``tau`` into ``c``.
        bf16: run the network in bfloat16 under autocast.
        kind: what the network predicts, see :mod:`tt_lib.conversions`; the answer is always eps. A network that also
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
        context = torch.autocast(x.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        with context:
            answer = self.network(x, c)
        answer = _prediction(answer)
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
        pieces = []
        for begin in range(0, len(x), self.size):
            each = [value[begin : begin + self.size] if value.ndim else value for value in (x, t, tau)]
            lacking = self.size - len(each[0]) if self.fill else 0
            if lacking:
                each = [torch.cat([value, value[-1:].expand(lacking, *value.shape[1:])]) if value.ndim else value for value in each]
            pieces.append(self.predictor(*each)[: len(x) - begin])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def cast_weights(network: nn.Module) -> nn.Module:
    """A copy whose convolutions and linear layers hold bfloat16 weights.

    Autocast would cast the same weights at each evaluation (it keeps its casts only of weights that are trained), which takes
    as many kernels as the network has weights. The answers are the same numbers.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return network


def make_predictor(model: Model, *, bf16: bool = False, compile: bool = False) -> EpsPredictor:
    """The predictor of a loaded model; ``compile`` pays on a GPU and for many batches of one size."""
    network = model.network
    if bf16:
        network = cast_weights(network.to(memory_format=torch.channels_last))
    return EpsPredictor(compile_network(network) if compile else network, model.schedule, bf16, model.kind)


def compile_network(network: nn.Module) -> Callable[..., Tensor]:
    """The network compiled for each shape it is given; on a GPU its kernels are recorded once and replayed as one CUDA graph.

    Without the graph the CPU starts hundreds of kernels for each evaluation, in about the time that a fast GPU takes for them:
    then whatever Python does between two evaluations, and beside them, makes the GPU wait. Not for training: there are no gradients.
    """
    run = torch.compile(network, dynamic=False, options=compile_options())

    def replayed(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            answer = run(*inputs)
        # A graph's answer lies where its next replay writes, and solvers keep answers.
        return _prediction(answer).clone()

    return replayed


def compile_options() -> dict[str, Any]:
    """One CUDA graph, and kernels that are picked by rule, where this torch can (from 2.10 on).

    Kernels that are picked by timing them may be others in each process, and no two round alike: the same seeds would give other
    samples. :func:`tt_lib.bench.make_bench` does the same for cuDNN's.
    """
    from torch._inductor import list_options

    by_rule = {"deterministic": True} if "deterministic" in list_options() else {}
    return {"triton.cudagraphs": True, **by_rule}


def _prediction(answer: Any) -> Tensor:
    """What a network predicts: its answer, or what the answer has as ``.sample``, as in diffusers."""
    return answer if isinstance(answer, Tensor) else answer.sample
