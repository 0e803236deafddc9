"""Networks run fast: bfloat16 weights, compiled, replayed as one CUDA graph; and cuDNN's flags for a while."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tt_lib.networks.unet import Model
from tt_lib.predictors import EpsPredictor, OnPath, Predictor, prediction


@contextmanager
def cudnn_flags(**flags: bool) -> Iterator[None]:
    """Set attributes of ``torch.backends.cudnn`` while the block runs.

    ``benchmark=True`` tries convolution algorithms for each shape: for training, which has one. ``allow_tf32=False``
    keeps float32 exact: for distances, which must not depend on the GPU.
    """
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    try:
        for name, value in flags.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def make_predictor(model: Model, *, bf16: bool = False, compile: bool = False, gradients: bool = False) -> Predictor:
    """The predictor of a loaded model; ``compile`` pays on a GPU and for many batches of one size.

    ``gradients``: compiled so that they pass through, which costs the CUDA graph.
    """
    network = model.network
    if bf16:
        network = cast_weights(network.to(memory_format=torch.channels_last))
    run: Callable[..., Tensor] = network
    if compile:
        run = torch.compile(network, dynamic=False) if gradients else compile_network(network)
    own = model.own or model.schedule
    predictor = EpsPredictor(run, own, bf16, model.kind)
    return predictor if model.own is None else OnPath(predictor, own, model.schedule)


def cast_weights(network: nn.Module) -> nn.Module:
    """A copy whose convolutions and linear layers hold bfloat16 weights.

    Autocast would cast the same weights at each evaluation, since it keeps its casts only of weights that are trained.
    That takes as many kernels as the network has weights. The answers are the same numbers.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return network


def compile_network(network: nn.Module) -> Callable[..., Tensor]:
    """The network compiled for each shape it is given, without gradients; on a GPU it replays one CUDA graph.

    Without the graph the CPU starts hundreds of kernels for each evaluation, in about the time that a fast GPU takes
    for them: whatever Python does between two evaluations makes the GPU wait.
    """
    from torch._inductor import list_options

    # Kernels that are picked by timing them may be others in each process, and no two round alike: the same seeds would
    # give other samples. From torch 2.10 on they can be picked by rule.
    by_rule = {"deterministic": True} if "deterministic" in list_options() else {}
    run = torch.compile(network, dynamic=False, options={"triton.cudagraphs": True, **by_rule})

    def replayed(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            answer = run(*inputs)
        # A graph's answer lies where its next replay writes, and solvers keep answers.
        return prediction(answer).clone()

    return replayed
