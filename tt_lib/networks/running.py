"""Networks run fast: bfloat16 weights, compiled, replayed as one CUDA graph; and cuDNN's flags for a while."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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

    ``gradients``: compiled so that they pass through, see :class:`WithGradients`.
    """
    network = model.network
    if bf16:
        network = cast_weights(network.to(memory_format=torch.channels_last))
    run: Callable[..., Tensor] = network
    if compile:
        run = WithGradients(network) if gradients else compile_network(network)
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


class WithGradients:
    """A frozen network, compiled, that gradients pass through; on a GPU its answer and its gradient are CUDA graphs.

    It keeps no activations. For the gradient it makes them again, so that a run of any length has the memory of one
    evaluation. Called as ``network(x, c)``; the gradients are those of both.
    """

    remakes = True

    def __init__(self, network: nn.Module) -> None:
        self.run = torch.compile(network, dynamic=False)
        self.recorded: dict[tuple[Any, ...], _Recorded] = {}

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        key = x.shape, x.dtype, x.device, torch.is_autocast_enabled(x.device.type)
        if x.is_cuda and key not in self.recorded:
            with torch.cuda.device(x.device):  # streams and graphs are the current device's
                self.recorded[key] = _Recorded(self.run, x, c)
        return _Remade.apply(self.recorded.get(key), self.run, x, c)  # type: ignore[no-any-return]


class _Remade(torch.autograd.Function):
    """An answer whose activations are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded | None, run: Callable, x: Tensor, c: Tensor) -> Tensor:
        ctx.recorded, ctx.run = recorded, run
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        ctx.save_for_backward(x, c)
        return recorded.answer(x, c) if recorded else prediction(run(x, c))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, c = (value.detach().requires_grad_() for value in ctx.saved_tensors)
        if ctx.recorded:
            return None, None, *ctx.recorded.gradients(x, c, gradient)
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast(x.device.type, dtype, enabled):
            answer = prediction(ctx.run(x, c))
        return None, None, *torch.autograd.grad(answer, (x, c), gradient)


class _Recorded:
    """Two CUDA graphs of a network for inputs of one shape: its answer, and, after it, the gradients of the inputs."""

    def __init__(self, run: Callable, x: Tensor, c: Tensor) -> None:
        self.inputs = [value.detach().clone().requires_grad_() for value in (x, c)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.enable_grad():
            with torch.cuda.stream(side):
                for _ in range(3):  # compiles, and picks what is picked by timing, before anything is recorded
                    answer = prediction(run(*self.inputs))
                    torch.autograd.grad(answer, self.inputs, torch.zeros_like(answer))
            torch.cuda.current_stream().wait_stream(side)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward):
                self.output = prediction(run(*self.inputs))
            self.weights = torch.zeros_like(self.output)
            with torch.cuda.graph(self.backward, pool=self.forward.pool()):
                self.found = torch.autograd.grad(self.output, self.inputs, self.weights)
        self.output = self.output.detach()

    @torch.no_grad()
    def answer(self, x: Tensor, c: Tensor) -> Tensor:
        self._replay(x, c)
        return self.output.clone()

    @torch.no_grad()
    def gradients(self, x: Tensor, c: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        self._replay(x, c)
        self.weights.copy_(gradient)
        self.backward.replay()
        of_x, of_c = self.found
        return of_x.clone(), of_c.clone()

    def _replay(self, x: Tensor, c: Tensor) -> None:
        for own, value in zip(self.inputs, (x, c), strict=True):
            own.copy_(value)
        self.forward.replay()
