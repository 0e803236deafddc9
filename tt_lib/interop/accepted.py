"""Which schedulers of diffusers can be adapted, how each counts within a step, and why the others are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tt_lib.errors import BadValue
from tt_lib.models import PREDICTION_TYPES


def _heun_stage(scheduler: Any) -> int:
    return 0 if scheduler.state_in_first_order else 1


def _pndm_stage(scheduler: Any) -> int:
    """Four evaluations for each Runge-Kutta step; without these, two for the first step, as in Heun's method."""
    if scheduler.config.skip_prk_steps:
        return int(scheduler.counter == 1)
    return scheduler.counter % 4 if scheduler.counter < len(scheduler.prk_timesteps) else 0


def _singlestep_stage(scheduler: Any) -> int:
    return scheduler.order_list[scheduler.step_index or 0] - 1


def _one_stage(scheduler: Any) -> int:
    return 0


STAGES: dict[str, Callable[[Any], int]] = {
    "DDIMScheduler": _one_stage,
    "DEISMultistepScheduler": _one_stage,
    "DPMSolverMultistepScheduler": _one_stage,
    "DPMSolverSinglestepScheduler": _singlestep_stage,
    "EulerDiscreteScheduler": _one_stage,
    "HeunDiscreteScheduler": _heun_stage,
    "KDPM2DiscreteScheduler": _heun_stage,
    "LMSDiscreteScheduler": _one_stage,
    "PNDMScheduler": _pndm_stage,
    "UniPCMultistepScheduler": _one_stage,
}
"""The schedulers that can be adapted, and how each tells which evaluation of a step comes next."""


def draws_noise(scheduler: Any, eta: float) -> bool:
    """Whether a run draws noise."""
    return eta > 0 or str(scheduler.config.get("algorithm_type", "")).startswith("sde")


def known(scheduler: Any) -> tuple[str, Callable[[Any], int]]:
    """The name of the scheduler's class and its entry in :data:`STAGES`.

    Raises:
        BadValue: it has none.
    """
    for kind in type(scheduler).__mro__:
        if kind.__name__ in STAGES and kind.__module__.startswith("diffusers."):
            return type(scheduler).__name__, STAGES[kind.__name__]
    name = type(scheduler).__name__
    reasons = {
        "Flow": "it samples a flow, not a variance-preserving diffusion",
        "Ancestral": "it draws noise that no generator for each sample can give",
        "SDE": "it draws noise that no generator for each sample can give",
        "DDPM": "it draws noise that no generator for each sample can give (DDIMScheduler with eta = 1 is its like)",
        "LCM": "it draws noise that no generator for each sample can give",
        "EDM": "it scales its states and times as EDM does, not as a variance-preserving network knows them",
    }
    reason = next((why for part, why in reasons.items() if part in name), "it is not known here")
    raise BadValue(f"cannot adapt {name}: {reason}; choose one of: {', '.join(STAGES)}")


def check_config(name: str, scheduler: Any, eta: float) -> None:
    """Raise :class:`BadValue` for a configuration that would be adapted wrongly."""
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise BadValue(
            f"cannot adapt {name} with prediction_type {prediction!r}; it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    refused = {
        "use_flow_sigmas": "it samples a flow, not a variance-preserving diffusion; set it to False",
        "thresholding": "it takes quantiles of whole images; set it to False and wrap the predictor in "
        "tt_lib.guidance.Clipped(..., percentile=0.995)",
        "variance_type": "predictors drop the variance themselves; set it to None",
    }
    for key, why in refused.items():
        if config.get(key):
            raise BadValue(f"cannot adapt {name} with {key}={config[key]!r}: {why}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise BadValue(
            f"cannot adapt {name} with timestep_type={config['timestep_type']!r}: its times are no levels; "
            "take 'discrete'"
        )
    if not 0 <= eta <= 1:
        raise BadValue(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    accepts = inspect.signature(scheduler.step).parameters
    if eta and not {"eta", "variance_noise"} <= set(accepts):
        raise BadValue(f"{name} takes no eta, got {eta}; leave it at 0 or take DDIMScheduler")
    if draws_noise(scheduler, eta) and "variance_noise" not in accepts:
        raise BadValue(
            f"cannot adapt {name} with algorithm_type {config['algorithm_type']!r}: it draws noise that no generator "
            "for each sample can give; take DPMSolverMultistepScheduler"
        )
