"""Set-ups of diffusers' schedulers, each against diffusers' own loop; and the table of what is supported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.interop import from_scheduler
from tt_lib.predictors import EpsPredictor

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
"""The timesteps of "align your steps" (arXiv 2404.14507) for Stable Diffusion."""
AYS_SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
EULER, FLOW_EULER = "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"
DPM, SINGLE, UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"
EDM_EULER, EDM_DPM = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
V = {"prediction_type": "v_prediction"}
HAND: dict[str, Any] = {"timesteps": AYS}
SIX = [1.0, 0.95, 0.8, 0.55, 0.3, 0.1]
SETUPS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "flow": (FLOW_EULER, {}, {}),
    "flow shift 3": (FLOW_EULER, {"shift": 3.0}, {}),
    "flow shift 0.5": (FLOW_EULER, {"shift": 0.5}, {}),
    "flow dynamic exponential": (FLOW_EULER, {"use_dynamic_shifting": True}, {"mu": 0.8}),
    "flow dynamic linear": (FLOW_EULER, {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.4}),
    "flow dynamic sigmas": (FLOW_EULER, {"use_dynamic_shifting": True}, {"mu": 1.15, "sigmas": SIX}),
    "flow terminal": (FLOW_EULER, {"shift_terminal": 0.1}, {}),
    "flow karras": (FLOW_EULER, {"use_karras_sigmas": True}, {}),
    "flow exponential": (FLOW_EULER, {"use_exponential_sigmas": True, "shift": 3.0}, {}),
    "flow beta": (FLOW_EULER, {"use_beta_sigmas": True}, {}),
    "flow sigmas": (FLOW_EULER, {}, {"sigmas": SIX}),
    "flow sigmas shift 3": (FLOW_EULER, {"shift": 3.0}, {"sigmas": SIX}),
    "flow timesteps": (FLOW_EULER, {}, {"timesteps": [1000 * sigma for sigma in SIX]}),
    "flow both": (FLOW_EULER, {}, {"timesteps": [1000 * sigma for sigma in SIX], "sigmas": SIX}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {}, {}),
    "flow heun shift 3": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
    "flow unipc": (UNIPC, FLOW, {}),
    "flow unipc shift 3 order 3": (UNIPC, FLOW | {"flow_shift": 3.0, "solver_order": 3}, {}),
    "flow unipc bh1": (UNIPC, FLOW | {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {}),
    "flow unipc karras": (UNIPC, FLOW | {"use_karras_sigmas": True}, {}),
    "flow unipc dynamic": (UNIPC, FLOW | {"use_dynamic_shifting": True}, {"mu": 0.7}),
    "flow unipc terminal": (UNIPC, FLOW | {"shift_terminal": 0.1}, {}),
    "flow unipc sigmas": (UNIPC, FLOW, {"sigmas": np.array(SIX)}),
    "flow dpm": (DPM, FLOW, {}),
    "flow dpm shift 3 order 3": (DPM, FLOW | {"flow_shift": 3.0, "solver_order": 3}, {}),
    "flow dpm heun": (DPM, FLOW | {"solver_type": "heun", "euler_at_final": True}, {}),
    "flow dpm x0": (DPM, {"use_flow_sigmas": True, "prediction_type": "sample"}, {}),
    "flow single": (SINGLE, FLOW, {}),
    "flow deis": ("DEISMultistepScheduler", FLOW | {"flow_shift": 2.0}, {}),
    "edm euler": (EDM_EULER, {}, {}),
    "edm euler exponential": (EDM_EULER, {"sigma_schedule": "exponential", "sigma_max": 20.0}, {}),
    "edm euler sigma_min": (EDM_EULER, {"final_sigmas_type": "sigma_min", "sigma_data": 1.0}, {}),
    "edm euler ramp": (EDM_EULER, {}, {"sigmas": torch.tensor([0.0, 0.1, 0.4, 0.7, 1.0])}),
    "edm dpm": (EDM_DPM, {}, {}),
    "edm dpm order 3": (EDM_DPM, {"solver_order": 3, "sigma_max": 40.0}, {}),
    "edm dpm heun": (EDM_DPM, {"solver_type": "heun", "rho": 5.0}, {}),
    "zero snr ddim": ("DDIMScheduler", ZERO | {"clip_sample": False}, {}),
    "zero snr ddim x0": ("DDIMScheduler", ZERO | {"clip_sample": False, "prediction_type": "sample"}, {}),
    "zero snr euler": (EULER, ZERO, {}),
    "zero snr dpm": (DPM, ZERO, {}),
    "zero snr dpm order 3": (DPM, ZERO | SD | {"solver_order": 3}, {}),
    "zero snr unipc": (UNIPC, ZERO, {}),
    "euler timesteps": (EULER, SD, HAND),
    "euler v timesteps": (EULER, SD | V, HAND),
    "euler sigmas": (EULER, SD, {"sigmas": AYS_SIGMAS}),
    "heun timesteps": ("HeunDiscreteScheduler", SD, HAND),
    "dpm timesteps": (DPM, SD | V, HAND),
    "dpm order 3 timesteps": (DPM, SD | V | {"solver_order": 3}, HAND),
    "single timesteps": (SINGLE, SD | V, HAND),
    "euler karras": (EULER, SD | V | {"use_karras_sigmas": True}, {}),
    "dpm lu": (DPM, SD | V | {"use_lu_lambdas": True}, {}),
    "unipc beta": (UNIPC, SD | V | {"use_beta_sigmas": True}, {}),
}
"""The class, its options, and what is set by hand; without a list of times it makes six steps of its own rule."""


def make(kind: str, options: dict[str, Any]):
    return getattr(diffusers, kind)(**options)


def as_set(name: str):
    kind, options, by_hand = SETUPS[name]
    scheduler = make(kind, options)
    scheduler.set_timesteps(
        **({} if by_hand.keys() & {"timesteps", "sigmas"} else {"num_inference_steps": 6}) | by_hand
    )
    return scheduler


def network(x: Tensor, n) -> Tensor:
    """Not linear, of the size of x, and it depends on the time."""
    return torch.sin(x + torch.as_tensor(n, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 300)


def draw(seed: int) -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def loop(scheduler, state: Tensor | None = None, first: int = 0, net=network) -> Tensor:
    """How pipelines sample."""
    if state is None:
        state = draw(0) * getattr(scheduler, "init_noise_sigma", 1)
    scaled = getattr(scheduler, "scale_model_input", lambda x, n: x)
    for n in scheduler.timesteps[first:]:
        state = scheduler.step(net(scaled(state, n), n), n, state).prev_sample
    # Where the noise does not end at 0, a scheduler that keeps x / alpha returns just that.
    keeps = scaled(torch.ones(()), scheduler.timesteps[-1]) != 1 and not type(scheduler).__name__.startswith("EDM")
    return state / (1 + scheduler.sigmas[-1] ** 2) ** 0.5 if keeps else state


def ours(adapted, start: Tensor | None = None, net=network, taus=None) -> Tensor:
    predictor = EpsPredictor(net, adapted.schedule, kind=adapted.kind)
    start = adapted.start(draw(0)) if start is None else start
    solution = adapted.solver(start, adapted.grid, adapted.schedule)
    return drive(solution, predictor, adapted.taus if taus is None else taus).x


def gap(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", SETUPS)
def test_a_set_up_samples_as_diffusers_does(name):
    adapted = from_scheduler(as_set(name))
    assert gap(ours(adapted), loop(as_set(name))) < 1e-5
