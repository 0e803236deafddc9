"""Every option of every scheduler that can be adapted: as diffusers' own loop has it, or refused by name."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from diffusers_helpers import engine, gap, loop, network

from tt_lib.errors import BadValue
from tt_lib.interop import from_scheduler
from tt_lib.interop.scheduler import STAGES

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
STEPS = 6
LINEAR = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2}
"""Some schedulers look at every level when they are made."""
BETAS = np.linspace(1e-3, 0.15, 100) ** 1.01
VALUES = {
    "num_train_timesteps": [90],
    "beta_start": [0.01],
    "beta_end": [0.12],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "exp"],
    "trained_betas": [BETAS, BETAS.tolist()],
    "prediction_type": ["v_prediction", "sample", "flow_prediction", "other"],
    "timestep_spacing": ["leading", "linspace", "trailing", "other"],
    "steps_offset": [1],
    "clip_sample": [True, False],
    "clip_sample_range": [0.5],
    "set_alpha_to_one": [True, False],
    "skip_prk_steps": [True, False],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [2.0],
    "rescale_betas_zero_snr": [True],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"],
    "solver_type": ["midpoint", "heun", "logrho", "bh1", "bh2"],
    "predict_x0": [False],
    "disable_corrector": [[0, 1]],
    "solver_p": [diffusers.DDPMScheduler()],
    "lower_order_final": [True, False],
    "euler_at_final": [True],
    "lambda_min_clipped": [-3.0],
    "variance_type": ["learned", "learned_range", "fixed_small"],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "flow_shift": [3.0],
    "use_dynamic_shifting": [True],
    "time_shift_type": ["linear"],
    "shift_terminal": [0.1],
    "final_sigmas_type": ["zero", "sigma_min"],
    "sigma_min": [0.05],
    "sigma_max": [20.0],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "shift": [3.0],
    "base_shift": [0.4],
    "max_shift": [1.2],
    "base_image_seq_len": [64],
    "max_image_seq_len": [1024],
    "invert_sigmas": [True],
    "stochastic_sampling": [True],
    "sigma_data": [0.7],
    "sigma_schedule": ["karras", "exponential"],
    "rho": [5.0],
}
"""Values to try for each option that a scheduler of diffusers may have."""
NEVER = {
    "prediction_type": ("other",),
    "thresholding": (True,),
    "solver_p": VALUES["solver_p"],
    "variance_type": ("learned", "learned_range"),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "invert_sigmas": (True,),
    "stochastic_sampling": (True,),
}
"""What must be refused."""
TOGETHER = {
    "clip_sample_range": {"clip_sample": True},
    "sigma_min": {"use_karras_sigmas": True},
    "sigma_max": {"use_karras_sigmas": True},
    "algorithm_type": {"final_sigmas_type": "sigma_min"},
    "use_flow_sigmas": {"prediction_type": "flow_prediction"},
    "flow_shift": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "shift_terminal": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
}
"""Options that an option needs beside it, to be allowed or to change anything."""


def options_of(name: str) -> list[str]:
    return list(inspect.signature(getattr(diffusers, name)).parameters)


CASES = [(name, key, value) for name in STAGES for key in options_of(name) for value in VALUES.get(key, [])]


def make(name: str, **options):
    flow = name.startswith("Flow") or options.get("use_flow_sigmas")
    betas = LINEAR | ({"num_train_timesteps": 1000} if flow else {})
    own = {key: value for key, value in (betas | options).items() if key in options_of(name)}
    return getattr(diffusers, name)(**own)


def net(x, n):
    """The levels are a hundred."""
    return network(x, n, 30)


def fails(scheduler) -> bool:
    try:
        return not loop(scheduler, net, STEPS).isfinite().all()
    except Exception:  # schedulers raise whatever they like
        return True


@pytest.mark.parametrize("name", STAGES)
def test_every_option_is_tried(name):
    missing = set(options_of(name)) - set(VALUES)
    assert not missing, f"diffusers {diffusers.__version__} has options that nobody has looked at: {missing}"


@pytest.mark.parametrize(("name", "key", "value"), CASES, ids=lambda each: str(each)[:20].replace("\n", " "))
def test_an_option_is_taken_over_exactly_or_refused(name, key, value):
    try:
        options = TOGETHER.get(key, {}) | {key: value}
        scheduler = make(name, **options)
        theirs = make(name, **options)
    except (ValueError, NotImplementedError):
        return  # diffusers itself does not take it
    never = any(value is each or (not isinstance(value, np.ndarray) and value == each) for each in NEVER.get(key, ()))
    try:
        adapted = from_scheduler(scheduler, STEPS)
    except BadValue as error:
        message = str(error)
        assert "\n" not in message and len(message) < 600
        if never:
            assert key in message and re.search("set it to|must be one of", message)
            return
        if key in ("prediction_type", "use_dynamic_shifting", "num_train_timesteps") and key in message:
            return  # of another family of schedulers
        # Otherwise diffusers' own loop fails, too, or draws noise that is no sample's own.
        draws = str(value).startswith("sde")
        assert (draws and "variance_noise" not in inspect.signature(theirs.step).parameters) or fails(theirs)
        return
    assert not never
    # Heun's and KDPM2's states of a cosine schedule begin at 10^4, and the network is told them in float32.
    assert gap(engine(adapted, net), loop(theirs, net, STEPS, draws=adapted.solver.draws)) < 5e-4


def test_options_of_another_scheduler_are_not_its_own():
    """``from_config`` keeps them: neither do they forbid anything, nor are they a part of the timing."""
    other = diffusers.DDIMScheduler(**LINEAR, thresholding=True, clip_sample=False, timestep_spacing="linspace")
    heun = diffusers.HeunDiscreteScheduler.from_config(other.config)
    assert heun.config.thresholding
    adapted, own = from_scheduler(heun, STEPS), from_scheduler(make("HeunDiscreteScheduler"), STEPS)
    assert adapted.solver.options == own.solver.options and adapted.grid == own.grid
    ddpm = diffusers.DDPMScheduler(**LINEAR)  # its variance_type is "fixed_small"
    swapped = from_scheduler(diffusers.DPMSolverMultistepScheduler.from_config(ddpm.config, variance_type=None), STEPS)
    assert from_scheduler(diffusers.DPMSolverMultistepScheduler.from_config(ddpm.config), STEPS).times == swapped.times


def test_trained_betas_are_told_apart_whatever_holds_them():
    betas = np.linspace(1e-4, 0.02, 2000)
    other = betas.copy()
    other[1000] *= 1.01  # in the middle, which numpy's own text leaves out
    options = [
        from_scheduler(make("DDIMScheduler", trained_betas=each, num_train_timesteps=2000), STEPS).solver.options
        for each in (betas, betas.tolist(), other)
    ]
    assert options[0] == options[1] != options[2] and len(options[0]["trained_betas"]) == 16


def all_schedulers() -> list[str]:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    return [name for name in names if inspect.isclass(getattr(diffusers, name))]


@pytest.mark.parametrize("name", all_schedulers())
def test_every_class_is_adapted_or_refused_with_its_reason(name):
    kind = getattr(diffusers, name)
    if name in STAGES:
        assert from_scheduler(make(name), STEPS).nfe >= STEPS
        return
    with pytest.raises(BadValue, match=f"cannot adapt {name}: .*choose one of") as caught:
        from_scheduler(object.__new__(kind), STEPS)  # some cannot be made without other packages
    assert "\n" not in str(caught.value) and "none of the supported" not in str(caught.value)


@pytest.mark.parametrize("name", STAGES)
def test_what_a_pipeline_has_set_or_used_is_not_by_hand(name):
    scheduler = make(name)
    before = from_scheduler(scheduler, STEPS)
    loop(scheduler, net, 8)
    after = from_scheduler(scheduler, STEPS)
    assert before.times == after.times and gap(engine(after, net), engine(before, net)) == 0
