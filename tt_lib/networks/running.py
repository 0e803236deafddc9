"""Networks run fast: bfloat16 weights, compiled, replayed as one CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.networks.unet import Model
from tt_lib.predictors import EpsPredictor, _prediction

# FOLDED tt_lib.predictors
# Predictors: a network as ``(x, t, tau) -> eps``, the one place where the two times differ.
#
# The network is conditioned on ``tau``; the state ``x`` is at noise level ``t``, so conversions between
# eps, x0, v and score use ``t``. TimeTuner changes only ``tau``.
#


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
    samples. :func:`tt_lib.study.workbench.make_bench` does the same for cuDNN's.
    """
    from torch._inductor import list_options

    by_rule = {"deterministic": True} if "deterministic" in list_options() else {}
    return {"triton.cudagraphs": True, **by_rule}
