"""A block of tuned times: does the pipeline in it sample with the network and the scheduler that the timing is for?"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers_helpers import loop

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.files import PACKAGE_ROOT
from tt_lib.grids import Grid
from tt_lib.interop import TunedUNet, from_scheduler, tuned_times
from tt_lib.networks.unet import load_model, make_unet, weights_hash
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import Timing, load_timing

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
LINEAR = make_schedule("linear")
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
STEPS = 5


@contextlib.contextmanager
def mismatch(match: str, target, timing: Timing, **options):
    with pytest.raises(TimingMismatch, match=match), tuned_times(target, timing, **options) as calls:
        yield calls


@pytest.fixture(scope="module")
def unet(one_thread):
    torch.manual_seed(0)
    return make_unet("digits", 16).eval().requires_grad_(False)


def make(kind: str, **options):
    return getattr(diffusers, kind)(**BETAS, **options)


class Pipeline:
    """What matters here of a pipeline: its parts and its loop, with any scheduler."""

    def __init__(self, unet, scheduler):
        self.unet, self.scheduler = unet, scheduler

    def __call__(self, steps: int = STEPS, **options):
        self.scheduler.set_timesteps(steps)
        state = torch.ones(1, 1, 8, 8) * self.scheduler.init_noise_sigma
        return loop(self.scheduler, self.unet, state=state, **options)


def ddim():
    return make("DDIMScheduler", clip_sample=False)


def ours(solver: str, scheduler, steps: int = STEPS, **options) -> Timing:
    """A timing of a solver of this library, at the times of a scheduler of diffusers."""
    scheduler.set_timesteps(steps)
    grid = Grid("g", (*((float(n) + 1) / 1000 for n in scheduler.timesteps), 0.0))
    sampler = Sampler(lambda x, t, tau: x, LINEAR, make_solver(solver, **options), grid, (1,))
    return sampler.make_timing("mine", [0.99 * each.t for each in sampler.evaluations])


def theirs(scheduler, eta: float = 0.0, steps: int = STEPS) -> Timing:
    adapted = from_scheduler(scheduler, steps, eta=eta)
    return adapted.timing([0.99 * t for t in adapted.times], name="theirs")


# ---- the scheduler

NO_CLIP = {"clip_sample": False}
DDIM = ("DDIMScheduler", NO_CLIP)
DPM = ("DPMSolverMultistepScheduler", {})
LEADING = {"timestep_spacing": "leading"}
SAME_TIMES = [
    (DPM, "dpmpp-2m", ("UniPCMultistepScheduler", {})),
    (DPM, "dpmpp-2m", ("DPMSolverMultistepScheduler", {"solver_order": 3})),
    (DPM, "dpmpp-2m", ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})),
    (DPM, "dpmpp-2m", ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"})),
    (DDIM, "ddim", ("DDPMScheduler", NO_CLIP)),
    (DDIM, "ddim", ("DDIMScheduler", {})),
    (DDIM, "ddim", ("DDIMScheduler", {"set_alpha_to_one": False} | NO_CLIP)),
]


@pytest.mark.parametrize(("tuned_for", "solver", "used"), SAME_TIMES)
def test_another_scheduler_with_the_same_times_is_refused(tuned_for, solver, used, unet):
    kind, config = used
    own = make(tuned_for[0], **tuned_for[1])
    timings = [ours(solver, own), theirs(own)]
    pipeline = Pipeline(unet, make(kind, **config))
    for timing in timings:
        with pytest.raises(TimingMismatch) as caught, tuned_times(pipeline, timing) as calls:
            pipeline()
        message = str(caught.value)
        assert timing.solver in message and kind in message and "\n" not in message and len(message) < 700
        assert not calls.made and not calls.complete_runs
    # What it was tuned for.
    pipeline = Pipeline(unet, own)
    for timing in timings:
        with tuned_times(pipeline, timing) as calls:
            pipeline()
            pipeline()
        assert calls.complete_runs == 2


def test_schedulers_whose_steps_are_a_solver_s_are_accepted_whatever_their_name(unet):
    """DDIM is Euler's method; DDIM with eta = 1 is DDPM; and 2M in two steps is what UniPC makes of them."""
    cases = [
        (ours("ddim", ddim()), make("EulerDiscreteScheduler", **LEADING), {}),
        (ours("euler", ddim()), ddim(), {"eta": 0.0}),
        (ours("ddpm", ddim()), ddim(), {"eta": 1.0}),
        (ours("ddim", ddim(), eta=0.5), ddim(), {"eta": 0.5}),
    ]
    for timing, scheduler, options in cases:
        pipeline = Pipeline(unet, scheduler)
        with tuned_times(pipeline, timing) as calls:
            pipeline(**options)
        assert calls.complete_runs == 1, timing.solver
    two = ours("dpmpp-2m", make("DPMSolverMultistepScheduler"), steps=2)
    pipeline = Pipeline(unet, make("UniPCMultistepScheduler"))
    with tuned_times(pipeline, two):
        pipeline(2)


def test_eta_is_an_argument_of_the_call_and_is_seen(unet):
    pipeline = diffusers.DDIMPipeline(unet, ddim())
    pipeline.set_progress_bar_config(disable=True)
    scheduler = pipeline.scheduler
    kind = type(scheduler)
    for timing, right, wrong in (
        (theirs(ddim()), 0.0, 1.0),
        (theirs(scheduler, 1.0), 1.0, 0.0),
    ):
        with tuned_times(pipeline, timing):
            pipeline(num_inference_steps=STEPS, eta=right)
            assert copy.deepcopy(scheduler).step != scheduler.step  # a copy steps itself
        with mismatch(f"with eta={right:g}, and the pipeline samples with eta={wrong:g}", pipeline, timing):
            pipeline(num_inference_steps=STEPS, eta=wrong)
        assert type(scheduler) is kind
    clipping = diffusers.DDIMPipeline(unet, make("DDIMScheduler"))
    clipping.set_progress_bar_config(disable=True)
    with mismatch("use_clipped_model_output", clipping, theirs(make("DDIMScheduler"))):
        clipping(num_inference_steps=STEPS, use_clipped_model_output=True)


def test_another_option_timestep_or_noise_level_of_the_same_class_is_named(unet):
    timing = theirs(make("DPMSolverMultistepScheduler"))
    pipeline = Pipeline(unet, make("DPMSolverMultistepScheduler", euler_at_final=True))
    with mismatch("with euler_at_final=True, not off", pipeline, timing):
        pipeline()
    by_hand = make("DPMSolverMultistepScheduler")
    by_hand.alphas_cumprod = by_hand.alphas_cumprod**1.1
    with pytest.raises(TimingMismatch, match="by hand"), tuned_times(Pipeline(unet, by_hand), timing) as calls:
        Pipeline.__call__(SimpleNamespace(unet=unet, scheduler=by_hand))
    assert not calls.complete_runs
    other = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **NO_CLIP)
    pipeline = Pipeline(unet, other)
    with pytest.raises(TimingMismatch, match="other steps"), tuned_times(pipeline, ours("ddim", copy.deepcopy(other))):
        pipeline()


def test_solvers_that_no_scheduler_has(unet):
    pipeline = Pipeline(unet, ddim())
    with mismatch(
        "no gamma", pipeline, dataclasses.replace(ours("ddim", make("DDIMScheduler")), solver="analytic-ddim")
    ):
        pipeline()
    odd = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=[1]))
    with mismatch("SimpleNamespace, and they cannot be compared", odd, ours("ddim", make("DDIMScheduler"))):
        unet(torch.ones(1, 1, 8, 8), 800)


# ---- the network


def test_a_timing_of_other_weights_is_refused(unet):
    shipped = load_timing(PACKAGE_ROOT / "data/timings/cifar10-ddpm-w96/ddim-uniform-5-consistency-sequential.json")
    pipeline = Pipeline(unet, ddim())
    for give in (lambda: TunedUNet(unet, shipped), lambda: tuned_times(unet, shipped).__enter__()):
        with pytest.raises(
            TimingMismatch, match=f"weights {shipped.weights[:16]} of cifar10-ddpm-w96, and this network"
        ):
            give()
    with pytest.raises(TimingMismatch, match="this network has others"), tuned_times(pipeline, shipped):
        raise AssertionError("before any work")
    with tuned_times(pipeline, dataclasses.replace(shipped, weights="")):
        pipeline()


def test_the_shipped_network_in_memory_is_known(unet):
    """A timing names the hash of the file, and the file can be made again."""
    shipped = load_timing(PACKAGE_ROOT / "data/timings/cifar10-ddpm-w96/ddim-uniform-5-consistency-sequential.json")
    network = load_model("cifar10").network
    TunedUNet(network, shipped)
    TunedUNet(torch.compile(network, backend="eager"), shipped)
    changed = copy.deepcopy(network)
    next(changed.parameters()).data.flatten()[0] += 0.01
    with pytest.raises(TimingMismatch, match="this network has others"):
        TunedUNet(changed, shipped)
    TunedUNet(changed.bfloat16(), shipped)  # cannot be compared, as the docstring says
    own = dataclasses.replace(theirs(ddim()), weights=weights_hash(unet))
    TunedUNet(unet, own)
    with pytest.raises(TimingMismatch):
        TunedUNet(make_unet("digits", 16), own)


# ---- a block that did nothing


def test_a_block_without_a_run_raises(unet):
    pipeline, other = (Pipeline(each, ddim()) for each in (unet, copy.deepcopy(unet)))
    timing = theirs(ddim())
    with mismatch(r"no run of 5 calls.*was made with the tuned times", pipeline, timing):
        other()
    with pytest.raises(TimingMismatch, match="no run of 5 calls"), tuned_times(unet, timing):
        pass
    with pytest.raises(TimingMismatch, match="no run of 5 calls"), tuned_times(pipeline, timing):
        unet.forward(torch.ones(1, 1, 8, 8), 800)  # goes round the hook
    with pytest.raises(ZeroDivisionError), tuned_times(pipeline, timing):
        raise ZeroDivisionError  # an error on its way is not replaced
    with tuned_times(TunedUNet(unet, timing).unet, timing):  # a tuned network's own
        pipeline()


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_part_that_is_replaced_within_the_block(part, unet):
    pipeline = Pipeline(unet, ddim())
    timing = theirs(ddim())
    with mismatch(f"{part} of the pipeline was replaced within the block", pipeline, timing):
        pipeline()
        setattr(pipeline, part, copy.deepcopy(getattr(pipeline, part)))
        pipeline()


class Small(torch.nn.Module):
    def forward(self, sample, timestep):
        return torch.sin(sample + timestep / 300)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_gets_its_times_and_gains(in_place):
    network = Small()
    timing = dataclasses.replace(theirs(ddim()), gains=(1.1, 1.05, 1.0, 0.95, 0.9))
    expected = Pipeline(TunedUNet(network, timing), ddim())()
    if in_place:
        network.compile(backend="eager")
    pipeline = Pipeline(network if in_place else torch.compile(network, backend="eager"), ddim())
    plain = pipeline()
    with tuned_times(pipeline, timing):
        assert torch.allclose(pipeline(), expected, atol=1e-4)
    assert torch.allclose(pipeline(), plain, atol=1e-4) and not torch.allclose(plain, expected, atol=1e-3)


def test_two_networks_are_one_too_many(unet):
    timing = theirs(ddim())
    both = SimpleNamespace(unet=unet, transformer=copy.deepcopy(unet))
    with pytest.raises(BadValue, match=r"two networks called unet or.*the network itself"), tuned_times(both, timing):
        pass


# ---- several at once


def test_another_pipeline_with_the_same_network_is_seen(unet):
    """Its scheduler has the same timesteps, and is not the one that was compared."""
    pipeline, other = (Pipeline(unet, make("DDIMScheduler", clip_sample=clips)) for clips in (False, True))
    timing = ours("ddim", ddim())
    pipeline()  # from an earlier run its scheduler has the timesteps
    with mismatch("the network made 1 evaluations and the pipeline's DDIMScheduler 0 steps", pipeline, timing):
        other()
    single = ours("ddim", ddim(), steps=1)
    pipeline(1)
    with mismatch("the network made 1 evaluations and the pipeline's DDIMScheduler 0 steps", pipeline, single):
        other(1)
    with tuned_times(pipeline, timing) as calls:
        pipeline()
        pipeline()
    assert calls.complete_runs == 2


def test_one_network_is_tuned_once_at_a_time(unet):
    """A timing with gains alone keeps the times, so that nothing else would show the second factor."""
    timing = theirs(ddim())
    timing = dataclasses.replace(timing, taus=timing.times, gains=(1.1,) * STEPS)
    pipeline = Pipeline(unet, ddim())
    wrapped = Pipeline(TunedUNet(unet, timing), ddim())
    expected = wrapped()
    for again in (lambda: tuned_times(unet, timing).__enter__(), lambda: TunedUNet(unet, timing), wrapped):
        with pytest.raises(BadValue, match="tuned already, by a block"), tuned_times(pipeline, timing):
            again()
    with pytest.raises(BadValue, match="is or holds a TunedUNet"):
        TunedUNet(torch.nn.Sequential(wrapped.unet), timing)
    assert torch.equal(wrapped(), expected)


def test_a_copy_of_the_network_is_not_tuned_after_the_block(unet):
    timing = dataclasses.replace(theirs(ddim()), gains=(1.1,) * STEPS)
    pipeline = Pipeline(unet, ddim())
    expected = pipeline()
    with tuned_times(pipeline, timing):
        pipeline()
        copied = copy.deepcopy(unet)
    assert torch.equal(Pipeline(copied, ddim())(), expected)


@pytest.mark.parametrize("name", ["calls_per_evaluation", "levels"])
def test_numbers_of_another_type(name, unet):
    for value in (1.5, "2", True):
        with pytest.raises(BadValue, match=f"{name} must be a whole number"):
            TunedUNet(unet, theirs(ddim()), **{name: value})
