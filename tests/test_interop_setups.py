"""Set-ups of diffusers' schedulers, each against diffusers' own loop; and the table of what is supported."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_helpers import draw, engine, gap, loop, network
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.files import PACKAGE_ROOT
from tt_lib.grids import Grid, make_grid
from tt_lib.interop import TunedUNet, from_scheduler, support_page, supported, to_diffusers, tuned_times
from tt_lib.predictors import EpsPredictor
from tt_lib.sampling import Sampler, fine_sampler
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.learn import LearnConfig, learn

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
    "flow dpm dynamic": (DPM, FLOW | {"use_dynamic_shifting": True}, {"mu": 0.7}),
    "flow single dynamic": (SINGLE, FLOW | {"use_dynamic_shifting": True}, {"mu": 0.7}),
    "flow deis dynamic": ("DEISMultistepScheduler", FLOW | {"use_dynamic_shifting": True}, {"mu": 0.7}),
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


@pytest.mark.parametrize("name", SETUPS)
def test_a_set_up_samples_as_diffusers_does(name):
    adapted = from_scheduler(as_set(name))
    assert gap(engine(adapted), loop(as_set(name))) < 1e-5


# ---- the table: each cell is a test

OTHERS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", EDM_EULER, EDM_DPM}


def five_steps(name: str):
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler = make(name, options | ({} if name in OTHERS else V))
    scheduler.set_timesteps(5)
    return scheduler


@pytest.mark.parametrize("name", supported())
def test_samples_equal_to_diffusers(name):
    assert supported()[name][0] == "yes"
    adapted = from_scheduler(five_steps(name))
    # LMS integrates its weights numerically, and PNDM ends at t = 0.001, so close that float32 is coarse.
    assert gap(engine(adapted), loop(five_steps(name))) < 1e-5


@pytest.mark.parametrize("name", supported())
def test_custom_times(name):
    cell, accepts = supported()[name][1], inspect.signature(getattr(diffusers, name).set_timesteps).parameters
    assert all((word in cell) == (word in accepts) for word in ("timesteps", "sigmas", "mu"))
    if cell == "diffusers takes none":
        by_hand = five_steps(name)
        by_hand.timesteps = by_hand.timesteps * 0.9
        with pytest.raises(BadValue, match=f"set by hand: {name} takes none"):
            from_scheduler(by_hand)
        return
    cases = [each for each, (kind, _, hand) in SETUPS.items() if kind == name and hand]
    assert cases and all(any(word in SETUPS[each][2] for each in cases) for word in accepts if word in cell)
    for case in cases:  # as samples, they are compared above
        adapted = from_scheduler(as_set(case))
        assert adapted.grid.name == "diffusers-by-hand"
        with pytest.raises(BadValue, match="set by hand; leave steps out to take them as they are"):
            from_scheduler(as_set(case), 6)


class Pipeline:
    """What matters here of a pipeline: its parts, and its loop."""

    def __init__(self, network, scheduler, set_up):
        self.unet, self.scheduler, self.set_up = network, scheduler, set_up

    def __call__(self, first: int = 0, begin: Tensor | None = None) -> Tensor:
        self.set_up(self.scheduler)
        if first and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return loop(self.scheduler, self.unet, state=begin, first=first)


class Network(torch.nn.Module):
    """Depends on the time, a logarithm for EDM, as smoothly as a real one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, sample: Tensor, timestep: Any) -> Tensor:
        return network(sample, self.scale * torch.as_tensor(timestep))


def by_five(scheduler) -> None:
    scheduler.set_timesteps(5)


@pytest.mark.parametrize("name", supported())
def test_tune_learn_and_run_in_a_pipeline(name):
    """Columns 3 to 5: tuned by search, learned by gradient, and the pipeline's loop with either."""
    assert supported()[name][2:] == ("yes", "yes", "yes")
    adapted, net = from_scheduler(five_steps(name)), Network(300.0 if name.startswith("EDM") else 1.0)
    predictor = EpsPredictor(net, adapted.schedule, kind=adapted.kind)
    sampler = Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, (1, 4, 4))
    config = TuneConfig(objective="truncation", optimiser="search", substeps=2)
    tuned = tune(sampler, 0.5 * draw(seed=3), config).timing
    assert sum(tuned.tuning["loss_tuned"]) < sum(tuned.tuning["loss_untuned"])
    choices = LearnConfig(knobs=("timing",), noises=8, validation=8, batch=8, iterations=4, lr=0.05)
    learned = learn(sampler, config=choices, converged=fine_sampler(sampler, 8)).timing
    assert learned.tuning["validation_learned"] < learned.tuning["validation_start"]
    pipeline = Pipeline(net, five_steps(name), by_five)
    for timing in (tuned, learned):
        expected = engine(adapted, net=net, taus=timing.taus)
        with tuned_times(pipeline, timing):
            assert gap(pipeline(), expected) < 1e-5
    assert gap(pipeline(), loop(five_steps(name), net=net)) == 0


def test_the_page_is_the_table():
    page = (PACKAGE_ROOT / "notebooks/commands.md").read_text(encoding="utf-8")
    assert support_page() in page


# ---- runs from the middle of a grid, as image to image makes them


MIDDLE = [name for name in supported() if name != "KDPM2DiscreteScheduler"]  # Heun's like, and slow to make
MORE_SETUPS = ["flow unipc", "flow dpm", "euler karras", "euler timesteps", "edm dpm"]


@pytest.mark.parametrize(("name", "left_out"), [(name, 2) for name in MIDDLE] + [(name, 4) for name in MORE_SETUPS])
def test_from_the_middle(name, left_out):
    """diffusers: strength cuts the timesteps at the front, and the scheduler adds the noise to the image."""

    def set_up(scheduler):
        if name in SETUPS:
            _, _, by_hand = SETUPS[name]
            scheduler.set_timesteps(**by_hand or {"num_inference_steps": 6})
        else:
            scheduler.set_timesteps(5)

    scheduler = as_set(name) if name in SETUPS else five_steps(name)
    adapted = from_scheduler(scheduler, first=left_out)
    first = left_out * scheduler.order
    image, noise = draw(seed=5), draw(seed=6)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    n = scheduler.timesteps[first : first + 1].repeat(2)
    add = (lambda: scheduler.scale_noise(image, n, noise)) if hasattr(scheduler, "scale_noise") else None
    if name == "FlowMatchHeunDiscreteScheduler":
        add = lambda: scheduler.scale_noise(image, n[0], noise)  # noqa: E731
    begin = add() if add else scheduler.add_noise(image, noise, n)
    theirs = loop(scheduler, state=begin.clone(), first=first)
    start = adapted.start(noise, image)
    assert gap(engine(adapted, start=start), theirs) < 1e-5
    assert adapted.nfe == len(scheduler.timesteps) - first and adapted.times[0] < 0.9
    with pytest.raises(BadValue, match=f"leaves out {first} steps and begins at t = .* give it, as start"):
        adapted.start(noise)
    moved = adapted.timing([max(1e-3, 0.9 * t) for t in adapted.times], name="moved")
    pipeline = Pipeline(Network(1.0), scheduler, set_up)
    with tuned_times(pipeline, moved):
        assert gap(pipeline(first, begin.clone()), engine(adapted, start=start, taus=moved.taus)) < 1e-5
    with pytest.raises(TimingMismatch), tuned_times(pipeline, moved):
        pipeline(first + scheduler.order if left_out == 2 else first - scheduler.order, begin.clone())


# ---- cases of diffusers' tracker (huggingface/diffusers, by number)


def flow_euler(**options):
    return make(FLOW_EULER, options)


def test_14461_and_14013_timesteps_out_of_step_with_sigmas():
    """A shift moves the sigmas that are made of timesteps, and leaves the timesteps."""
    shifted, both = flow_euler(shift=3.0), flow_euler()
    shifted.set_timesteps(timesteps=[1000.0, 750.0, 500.0, 250.0])
    both.set_timesteps(timesteps=[1000.0, 750.0, 500.0, 250.0], sigmas=[1.0, 0.9, 0.5, 0.25])
    for scheduler, message in ((shifted, r"timestep 750 has sigma 0\.9, .*of timestep 900"), (both, "has sigma 0.9")):
        with pytest.raises(BadValue, match=f"out of step with its sigmas: .*{message}.*taus"):
            from_scheduler(scheduler)
    # What was meant: the sigmas on their own, and other conditioning times as taus.
    both.set_timesteps(sigmas=[1.0, 0.9, 0.5, 0.25])
    adapted = from_scheduler(both)
    assert adapted.grid.times == pytest.approx([1.0, 0.9, 0.5, 0.25, 0.0]) and adapted.taus == adapted.times
    taus, asked = (1.0, 0.75, 0.5, 0.25), []
    theirs = loop(both, net=lambda x, n: network(x, asked.append(float(n)) or 1000 * taus[len(asked) - 1]))
    assert gap(engine(adapted, taus=taus), theirs) < 1e-5 and asked == pytest.approx([1000, 900, 500, 250])


def test_13243_the_shift_that_is_applied_twice():
    """The ends of the default sigmas are shifted when it is made, and again by set_timesteps: times are read off."""
    scheduler = flow_euler(shift=3.0)
    scheduler.set_timesteps(6)
    adapted = from_scheduler(flow_euler(shift=3.0), 6)
    assert adapted.grid.times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-7)
    once, twice = (float(1e-3 * 3 / (1 + 2e-3)), float(2.994011e-3 * 3 / (1 + 2 * 2.994011e-3)))
    assert adapted.times[-1] == pytest.approx(twice, rel=1e-4) and adapted.times[-1] > 2.9 * once
    by_hand = flow_euler(shift=3.0)
    by_hand.set_timesteps(sigmas=[1.0, 0.9, 0.6])  # shifted once more
    assert from_scheduler(by_hand).times == pytest.approx([1.0, 2.7 / 2.8, 1.8 / 2.2])


@pytest.mark.parametrize(("kind", "options"), [(FLOW_EULER, {}), (UNIPC, FLOW)])
def test_14572_nan_in_one_step(kind, options):
    with pytest.raises(BadValue, match=f"cannot adapt {kind}: .*nan.*no shift_terminal with one step"):
        from_scheduler(make(kind, options | {"shift_terminal": 0.1}), 1)
    assert from_scheduler(make(kind, options | {"shift_terminal": 0.1}), 2).nfe == 2
    adapted, scheduler = from_scheduler(make(kind, options), 1), make(kind, options)
    scheduler.set_timesteps(1)
    assert gap(engine(adapted), loop(scheduler)) < 1e-5


def test_7817_and_7760_which_schedulers_take_times_of_ones_own():
    levels = make(UNIPC, {})
    levels.set_timesteps(6)
    levels.sigmas, levels.timesteps = levels.sigmas * 0.9, levels.timesteps - 1
    with pytest.raises(BadValue, match=f"set by hand: {UNIPC} takes none"):
        from_scheduler(levels)
    with pytest.raises(BadValue, match="EulerDiscreteScheduler has no timesteps yet; give the number of steps"):
        from_scheduler(make(EULER, {}))
    used = as_set("euler timesteps")
    loop(used)
    with pytest.raises(BadValue, match="has begun a run; call its set_timesteps again"):
        from_scheduler(used)


@functools.cache
def thousand_steps():
    return loop(flow_euler(), steps=1000)


SOLVERS = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc", "unipc,order=2,variant=bh1", "heun", "deis-tab", "ipndm", "ipndm-v"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_9924_more_samplers_for_flow_models(solver):
    """Beyond diffusers' Euler: every solver of this library that draws no noise, as a scheduler from t = 1."""
    schedule = make_schedule("flow")
    own, steps = make_solver(solver).for_nfe(7)
    grid = make_grid("uniform-trailing,shift=3", steps, schedule)
    sampler = Sampler(EpsPredictor(network, schedule, kind="velocity"), schedule, own, grid, (1, 4, 4))
    timing = sampler.make_timing("mine", [each.t for each in sampler.evaluations])
    scheduler = to_diffusers(timing, flow_euler(shift=3.0))
    scheduler.set_timesteps(7, mu=0.5)
    assert gap(loop(scheduler), sampler(range(2), start=draw()).x) < 1e-5
    # At many steps they all come to where diffusers' Euler comes in a thousand.
    many, steps = make_solver(solver).for_nfe(161)
    x = many(draw().double(), make_grid("uniform-trailing", steps, schedule), schedule)
    ends = drive(x, EpsPredictor(network, schedule, kind="velocity")).x
    assert gap(ends.float(), thousand_steps()) < (0.02 if solver == "ddim" else 0.004)


def test_9924_a_learned_flow_begins_with_noise():
    schedule = make_schedule("flow")
    grid = Grid("learned", (0.9, 0.5, 0.0))
    sampler = Sampler(EpsPredictor(network, schedule, kind="velocity"), schedule, make_solver("ddim"), grid, (1, 4, 4))
    with pytest.raises(BadValue, match=r"begins at t = 0\.9, and pipelines of flows begin with noise alone"):
        to_diffusers(sampler.make_timing("mine", (0.9, 0.5)), flow_euler())


def test_5687_repeated_timesteps():
    """diffusers looks the first one up, and takes the second of two that are equal: a sigma is skipped."""
    cosine = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    for scheduler, steps in ((make(DPM, cosine), 20), (make(DPM, {"use_karras_sigmas": True}), 200)):
        with pytest.raises(BadValue, match=rf"with {steps} steps repeats a time.*ask for fewer steps"):
            from_scheduler(scheduler, steps)
    twice = make(EULER, SD)
    for times in ([999, 700, 700, 100], [100, 500, 900]):
        twice.set_timesteps(timesteps=times)
        with pytest.raises(BadValue, match="with the timesteps that were set repeats a time, or its times rise"):
            from_scheduler(twice)
    # Heun's own repetitions are evaluations of one step: a run from the middle begins at the second of the pair.
    assert from_scheduler(make("HeunDiscreteScheduler", V), 5, first=2).grid.steps == 3


def test_7651_strength_shortens_a_grid():
    """The number of evaluations is what is left, and a strength that leaves none is refused."""
    for steps, strength, left in ((10, 0.3, 3), (10, 0.75, 7), (4, 1.0, 4)):
        first = steps - int(steps * strength)
        adapted = from_scheduler(make(EULER, SD | V), steps, first=first)
        assert adapted.nfe == left == adapted.grid.steps
        assert adapted.times == from_scheduler(make(EULER, SD | V), steps).times[first:]
    for first in (4, 5, -1):
        with pytest.raises(BadValue, match=f"with 4 steps cannot leave out the first {first} of them"):
            from_scheduler(make(EULER, SD | V), 4, first=first)
    with pytest.raises(BadValue, match=r"first must be a whole number, got 0\.5"):
        from_scheduler(make(EULER, SD | V), 4, first=0.5)
    # A list of one's own is cut as well.
    assert (
        from_scheduler(as_set("euler timesteps"), first=4).times == from_scheduler(as_set("euler timesteps")).times[4:]
    )


# ---- transformers


class Transformer(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, timestep=None):
        return network(hidden_states, 1000 * timestep if timestep.max() <= 1 else timestep)


class Odd(torch.nn.Module):
    def forward(self, hidden_states, noise_level):
        return network(hidden_states, noise_level)


def test_the_argument_with_the_time_is_found_or_given():
    adapted = from_scheduler(as_set("flow shift 3"))
    timing = adapted.timing([0.9 * t for t in adapted.times], name="moved")
    expected, words = engine(adapted, taus=timing.taus), torch.zeros(1)
    calls = [
        lambda net: lambda x, n: net(x, words, n),
        lambda net: lambda x, n: net(hidden_states=x, encoder_hidden_states=words, timestep=n.expand(2)),
        lambda net: lambda x, n: net(hidden_states=x, encoder_hidden_states=words, timestep=n / 1000),  # Flux
    ]
    for call in calls:
        assert gap(loop(as_set("flow shift 3"), net=call(TunedUNet(Transformer(), timing))), expected) < 1e-5
    with pytest.raises(
        BadValue, match=r"Odd has no argument called timestep or timesteps or t .*noise_level.*time_arg"
    ):
        TunedUNet(Odd(), timing)
    with pytest.raises(BadValue, match="no argument called level"):
        TunedUNet(Odd(), timing, time_argument="level")
    odd = TunedUNet(Odd(), timing, time_argument="noise_level")
    assert gap(loop(as_set("flow shift 3"), net=odd), expected) < 1e-5
    assert gap(loop(as_set("flow shift 3"), net=lambda x, n: odd(x, noise_level=n)), expected) < 1e-5


def test_gains_of_a_flow_multiply_the_velocity():
    adapted = from_scheduler(as_set("flow"))
    timing = dataclasses.replace(adapted.timing(), gains=tuple(0.9 + 0.03 * k for k in range(adapted.nfe)))
    x = adapted.solver(draw(), adapted.grid, adapted.schedule)
    predictor = EpsPredictor(network, adapted.schedule, kind="velocity")
    expected = drive(x, predictor, timing.taus, gains=timing.gains).x
    pipeline = Pipeline(Network(1.0), as_set("flow"), lambda scheduler: scheduler.set_timesteps(6))
    with tuned_times(pipeline, timing):
        assert gap(pipeline(), expected) < 1e-5


def test_a_block_sees_other_times_and_another_shift():
    adapted = from_scheduler(as_set("flow dynamic exponential"))
    pipeline = Pipeline(Network(1.0), flow_euler(use_dynamic_shifting=True), lambda each: each.set_timesteps(6, mu=0.9))
    with (
        pytest.raises(TimingMismatch, match=r"with evaluation 2 at t = 0\.90784, not 0\.899"),
        tuned_times(pipeline, adapted.timing()),
    ):
        pipeline()
    by_hand = from_scheduler(as_set("euler timesteps")).timing()
    other = Pipeline(Network(1.0), make(EULER, SD), lambda each: each.set_timesteps(timesteps=[*AYS[:-1], 30]))
    with pytest.raises(TimingMismatch, match=r"evaluation 10 at t = 0\.031, not 0\.025"), tuned_times(other, by_hand):
        other()
