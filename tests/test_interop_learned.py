"""Learned samplers in pipelines of diffusers: their samples are our own from the same noise."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from diffusers_helpers import as_images, draw, engine, gap
from torch import Tensor

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.files import PACKAGE_ROOT
from tt_lib.grids import LEARNED, Grid, make_grid
from tt_lib.interop import TunedUNet, from_scheduler, to_diffusers, tuned_times
from tt_lib.networks.unet import Model, make_unet
from tt_lib.predictors import EpsPredictor
from tt_lib.sampling import Sampler, fine_sampler
from tt_lib.schedules import Schedule, make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.learn import LearnConfig, learn

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
LINEAR = make_schedule("linear")
SHAPE = (1, 8, 8)
TIMES = {5: (0.811, 0.5573, 0.3132, 0.1291, 0.00173), 6: (1.0, 0.7251, 0.5, 0.2518, 0.0931, 0.00214)}
"""Learned times: the first below t = 1 or there, all between the levels but two, one step short."""


@pytest.fixture(scope="module")
def unet(one_thread):
    """A tiny network that has learned a little, so that its samples are not far larger than images."""
    torch.manual_seed(0)
    unet = make_unet("digits", 16)
    adam = torch.optim.Adam(unet.parameters(), lr=2e-3)
    for _ in range(20):
        n, x, eps = torch.randint(0, 1000, (12,)), torch.rand(12, 1, 1, 1) - 0.5, torch.randn(12, *SHAPE)
        alpha, sigma = (of((n + 1) / 1000).float().view(-1, 1, 1, 1) for of in (LINEAR.alpha, LINEAR.sigma))
        loss = (unet(alpha * x + sigma * eps, n).sample - eps).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return unet.eval().requires_grad_(False)


def make(
    unet,
    solver: str,
    grid: Grid,
    gains: bool = False,
    kind: str = "eps",
    schedule: Schedule = LINEAR,
) -> tuple[Sampler, Timing]:
    """A sampler with a timing that no two evaluations share a ratio or a gain in."""
    own = make_solver(solver)
    sampler = Sampler(EpsPredictor(unet, schedule, kind=kind), schedule, own, grid, SHAPE)
    count = grid.steps
    taus = [min(1.0, t * (0.9 + 0.8 * k / count)) for k, t in enumerate(grid.times[:-1])]
    factors = tuple(0.93 + 0.15 * k / count for k in range(count)) if gains else ()
    timing = sampler.make_timing("learned-grid-timing", taus, gains=factors)
    return dataclasses.replace(sampler, timing=timing), timing


def learned_grid(nfe: int = 5, end: float = 0.0) -> Grid:
    return Grid(LEARNED, (*TIMES[nfe], end))


def noise() -> Tensor:
    """What a pipeline draws with :func:`generator`."""
    return torch.randn(2, *SHAPE, generator=generator())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def pipeline_of(network, scheduler, kind: str = "DDPMPipeline"):
    pipeline = getattr(diffusers, kind)(network, diffusers.DDPMScheduler())
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, nfe: int, **options) -> Tensor:
    options |= {"batch_size": 2, "generator": generator(), "num_inference_steps": nfe, "output_type": "np"}
    return torch.from_numpy(pipeline(**options).images)


def recorded(scheduler) -> list:
    """What each step of a scheduler will answer: a pipeline clips its last state to an image."""
    states, step = [], scheduler.step
    scheduler.step = lambda *args, **kwargs: states.append(step(*args, **kwargs)) or states[-1]
    return states


def same(theirs: Tensor, ours: Tensor) -> bool:
    return bool((theirs - ours).abs().max() < 1e-4)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc,variant=bh1,final=lower"])
def test_a_pipeline_samples_as_this_library_does(solver, unet):
    nfe = 6
    grids = [learned_grid(nfe), learned_grid(nfe, 0.001), make_grid("uniform", nfe, LINEAR)]
    for grid, gains in zip(grids, (True, True, False), strict=True):
        sampler, timing = make(unet, solver, grid, gains)
        expected = sampler(range(2), start=noise()).x
        learned = to_diffusers(timing, diffusers.DDIMScheduler())
        states = recorded(learned)
        images = run(pipeline_of(TunedUNet(unet, timing), learned), nfe)
        assert same(images, as_images(expected)), grid
        assert same(states[-1].prev_sample, expected), grid


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_untuned_tuned_and_learned(kind, unet):
    """The two pipelines that answer with images; those of text are in test_latents."""
    ddim = diffusers.DDIMScheduler(clip_sample=False)
    own = ddim if kind == "DDIMPipeline" else diffusers.DPMSolverMultistepScheduler()
    pipeline, adapted = pipeline_of(unet, own, kind), from_scheduler(own, 4)
    plain = run(pipeline, 4)
    assert gap(as_images(engine(adapted, unet, adapted.start(noise()))), plain) < 1e-5
    sampler = Sampler(EpsPredictor(unet, LINEAR), LINEAR, adapted.solver, adapted.grid, SHAPE)
    config = TuneConfig(objective="truncation", optimiser="search", substeps=4)
    tuned = tune(sampler, 0.5 * draw(3, *SHAPE, seed=3), config).timing
    assert sum(tuned.tuning["loss_tuned"]) < sum(tuned.tuning["loss_untuned"])
    with tuned_times(pipeline, tuned):
        images = run(pipeline, 4)
    assert gap(images, as_images(engine(adapted, unet, adapted.start(noise()), tuned.taus))) < 1e-5
    assert gap(images, plain) > 1e-4 and torch.equal(run(pipeline, 4), plain)
    with pytest.raises(TimingMismatch), tuned_times(pipeline, tuned):
        run(pipeline, 5)
    grid = make_grid("uniform", 4, LINEAR)
    sampler = dataclasses.replace(sampler, solver=make_solver("dpmpp-2m"), grid=grid)
    choices = LearnConfig(noises=4, validation=2, batch=4, iterations=6, lr=0.003)
    learned = learn(sampler, config=choices, converged=fine_sampler(sampler, 8)).timing
    assert learned.tuning["validation_learned"] < learned.tuning["validation_start"]
    learned_sampler = dataclasses.replace(sampler, grid=Grid(LEARNED, learned.grid_times), timing=learned)
    expected = as_images(learned_sampler(range(2), start=noise()).x)
    pipeline.scheduler = to_diffusers(learned, own)
    with tuned_times(pipeline, learned):
        assert gap(run(pipeline, 4), expected) < 1e-5


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_a_block_of_tuned_times_accepts_the_scheduler(kind, unet):
    sampler, timing = make(unet, "unipc", learned_grid(), gains=True)
    pipeline = pipeline_of(unet, to_diffusers(timing, diffusers.DPMSolverMultistepScheduler()), kind)
    expected = as_images(sampler(range(2), start=noise()).x)
    with tuned_times(pipeline, timing) as calls:
        assert same(run(pipeline, 5), expected)
        assert calls.complete_runs == 1
    assert not unet._forward_hooks and not unet._forward_pre_hooks
    other = make(unet, "unipc,order=2", learned_grid())[1]
    with pytest.raises(TimingMismatch, match="with order=off, not 2"), tuned_times(pipeline, other):
        run(pipeline, 5)
    if kind == "DDIMPipeline":
        with pytest.raises(TimingMismatch, match=r"eta=0\.5"):
            run(pipeline_of(TunedUNet(unet, timing), pipeline.scheduler, kind), 5, eta=0.5)
        # It makes a plain DDIMScheduler of what it is given, and the network's times do not fit it.
        plain = diffusers.DDIMPipeline(TunedUNet(unet, timing), to_diffusers(timing, diffusers.DDPMScheduler()))
        with pytest.raises(TimingMismatch, match="call 1 of 5"):
            run(plain, 5)


@pytest.mark.parametrize(("kind", "prediction"), [("v", "v_prediction"), ("x0", "sample")])
def test_other_predictions_have_no_gains(kind, prediction, unet):
    sampler, timing = make(unet, "unipc", learned_grid(), kind=kind)
    learned = to_diffusers(timing, diffusers.DDIMScheduler(prediction_type=prediction))
    images = run(pipeline_of(TunedUNet(unet, timing), learned), 5)
    assert same(images, as_images(sampler(range(2), start=noise()).x))
    timing = dataclasses.replace(timing, gains=(1.1,) * 5)
    with pytest.raises(TimingMismatch, match=f"multiply eps, and the network predicts {kind}"):
        to_diffusers(timing, diffusers.DDIMScheduler(prediction_type=prediction))
    pipeline = pipeline_of(unet, learned)
    message = f"multiply eps, and the network predicts {kind}"
    with pytest.raises(TimingMismatch, match=message), tuned_times(pipeline, timing):
        run(pipeline, 5)


def test_cosine_betas(unet):
    schedule = make_schedule("cosine")
    sampler, timing = make(unet, "unipc", learned_grid(), schedule=schedule)
    learned = to_diffusers(timing, diffusers.PNDMScheduler(beta_schedule="squaredcos_cap_v2"))
    pipeline, expected = pipeline_of(unet, learned), sampler(range(2), start=noise()).x
    with tuned_times(pipeline, timing):
        assert same(run(pipeline, 5), as_images(expected))


def test_another_number_of_steps_names_both(unet):
    timing = make(unet, "unipc", learned_grid())[1]
    learned = to_diffusers(timing, diffusers.DDPMScheduler())
    for steps in (4, 6, 1000, None):
        with pytest.raises(TimingMismatch, match=f"the 5 steps of .*num_inference_steps={steps};") as caught:
            learned.set_timesteps(steps)
        assert "\n" not in str(caught.value)
    with pytest.raises(TimingMismatch, match="num_inference_steps=20"):
        run(pipeline_of(TunedUNet(unet, timing), learned), 20)


def test_times_and_levels_are_floats(unet):
    timing = make(unet, "dpmpp-2m", learned_grid())[1]
    given = diffusers.DDPMScheduler(clip_sample=False)
    learned = to_diffusers(timing, given)
    learned.set_timesteps(5, device="cpu")
    assert learned.timesteps.dtype == torch.float32
    assert torch.allclose(learned.timesteps.double(), torch.tensor(TIMES[5]).double() * 1000 - 1, atol=1e-4)
    assert learned.init_noise_sigma == 1 and learned.scale_model_input(given, 5) is given
    assert given.num_inference_steps is None and given is not learned
    with pytest.raises(TimingMismatch, match=r"step 1 .* at timestep 999, and begins at 810"):
        learned.step(noise(), 999, noise())
    learned.step(noise(), learned.timesteps[0].bfloat16(), noise())
    learned.set_timesteps(5)
    copied = copy.deepcopy(learned)
    copied.set_timesteps(5)
    assert torch.equal(copied.timesteps, learned.timesteps)


def test_timesteps_that_are_left_out_or_taken_again(unet):
    """diffusers counts its steps and does not look at the timestep: it would make other ones without a word."""
    learned = to_diffusers(make(unet, "unipc", learned_grid())[1], diffusers.DDPMScheduler())
    orders = [([0, 2], "step 2 .* at timestep 312.2, and begins at 556.3"), ([0, 0], "step 2 .* at timestep 810")]
    orders += [([0, 1, 2, 3, 4, 0], "step 6 .* at timestep 810, and begins at none, as the run is over")]
    for order, message in orders:
        learned.set_timesteps(5)
        state = noise()
        with pytest.raises(TimingMismatch, match=message):
            for number in order:
                state = learned.step(noise(), learned.timesteps[number], state).prev_sample


def test_a_pipeline_that_changes_states_or_begins_with_an_image(unet):
    learned = to_diffusers(make(unet, "unipc", learned_grid())[1], diffusers.DDPMScheduler())
    learned.set_timesteps(5)
    state = learned.step(noise(), learned.timesteps[0], noise()).prev_sample
    with pytest.raises(TimingMismatch, match="changed the state before step 2"):
        learned.step(noise(), learned.timesteps[1], state + 1)
    learned.set_begin_index(0)
    for begin in (lambda: learned.set_begin_index(2), lambda: learned.add_noise(state, noise(), learned.timesteps[:1])):
        with pytest.raises(TimingMismatch, match=r"whole runs, which begin with noise.*from_scheduler\(\.\.\., first="):
            begin()


def test_options_that_were_changed(unet):
    changes = {"beta_end": 0.01, "thresholding": True, "prediction_type": "v_prediction", "use_karras_sigmas": True}
    timing = make(unet, "unipc", learned_grid())[1]
    for key, value in changes.items():
        learned = to_diffusers(timing, diffusers.DDPMScheduler())
        learned.register_to_config(**{key: value})
        with pytest.raises(TimingMismatch, match=f"and it was changed to {value!r}"):
            run(pipeline_of(TunedUNet(unet, timing), learned), 5)


def test_a_variance_beside_the_prediction_is_dropped(unet):
    learned = to_diffusers(make(unet, "unipc", learned_grid())[1], diffusers.DDPMScheduler())
    ends = []
    for answer in (noise(), torch.cat([noise(), noise() + 1], 1)):
        learned.set_timesteps(5)
        ends.append(learned.step(answer, learned.timesteps[0], noise()).prev_sample)
    assert torch.equal(*ends)


def test_gains_reach_every_form_of_answer(unet):
    timing = make(unet, "ddim", learned_grid(), gains=True)[1]
    n, x, tau = timing.times[0] * 1000 - 1, noise(), torch.full((2,), timing.taus[0] * 1000 - 1)
    expected = timing.gains[0] * unet(x, tau).sample
    assert torch.allclose(TunedUNet(unet, timing)(x, n).sample, expected, atol=1e-6)
    assert torch.allclose(TunedUNet(unet, timing)(x, n, return_dict=False)[0], expected, atol=1e-6)
    with pytest.raises(TimingMismatch, match="ended after 1 of 5"), tuned_times(unet, timing):
        assert torch.allclose(unet(x, n).sample, expected, atol=1e-6)


MORE = ["ddim", "unipc", "heun", "deis-tab", "dpmpp-3m", "dpmpp-2s", "ipndm", "ipndm-v", "dpm-solver-2", "plms", "pndm"]


@pytest.mark.parametrize("solver", MORE)
def test_every_solver_that_draws_no_noise_runs_in_a_pipeline(solver, unet):
    nfe = {"pndm": 15}.get(solver, 5)
    own, steps = make_solver(solver).for_nfe(nfe)
    sampler = Sampler(EpsPredictor(unet, LINEAR), LINEAR, own, make_grid("logsnr", steps, LINEAR), SHAPE)
    taus = [min(1.0, each.t * (0.9 + 0.02 * k)) for k, each in enumerate(sampler.evaluations)]
    timing = sampler.make_timing("mine", taus)
    expected = dataclasses.replace(sampler, timing=timing)(range(2), start=noise()).x
    pipeline = pipeline_of(unet, to_diffusers(timing, diffusers.DDIMScheduler()))
    with tuned_times(pipeline, timing):
        assert same(run(pipeline, nfe), as_images(expected))


def test_noise_gamma_and_diffusers_own_are_refused(unet):
    timing = make(unet, "ddim", learned_grid())[1]
    cases = [
        ({"options": {"eta": 0.5}}, "ddim with eta=0.5 draws noise"),
        ({"solver": "analytic-ddim"}, "analytic-ddim draws noise or needs its measured gamma"),
        ({"solver": "UniPCMultistepScheduler"}, "diffusers' own UniPCMultistepScheduler"),
    ]
    for changed, message in cases:
        with pytest.raises(BadValue, match=message):
            to_diffusers(dataclasses.replace(timing, **changed), diffusers.DDIMScheduler())


def test_schedulers_of_another_network_are_refused(unet):
    timing = make(unet, "unipc", learned_grid())[1]
    by_hand = diffusers.DDIMScheduler()
    by_hand.alphas_cumprod = by_hand.alphas_cumprod**1.1
    cases = [
        (diffusers.DDIMScheduler(beta_schedule="scaled_linear"), "'linear', and DDIMScheduler has 'scaled_linear"),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "'linear', and DDIMScheduler has 'zero-snr'"),
        (diffusers.EDMEulerScheduler(), "'linear', and EDMEulerScheduler has 've'"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), "prediction_type 'flow_prediction'"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "'linear', and FlowMatchEulerDiscreteScheduler has 'flow'"),
        (by_hand, "not those of its configuration"),
        (None, "NoneType"),
    ]
    for scheduler, message in cases:
        with pytest.raises((BadValue, TimingMismatch), match=message) as caught:
            to_diffusers(timing, scheduler)
        assert "\n" not in str(caught.value)
    with pytest.raises(TimingMismatch, match="'continuous-linear', and DDIMScheduler has 'linear'"):
        to_diffusers(dataclasses.replace(timing, schedule="continuous-linear"), diffusers.DDIMScheduler())
    # A learned scheduler says what the network was trained on, too.
    to_diffusers(timing, to_diffusers(timing, diffusers.DDIMScheduler()))


def test_a_network_on_another_path_is_none_of_a_pipeline(unet):
    """Its eps would be taken for a velocity without a word."""
    grid = Grid(LEARNED, (1.0, *TIMES[6][1:], 0.0))
    timing = make(unet, "unipc", grid, kind="velocity", schedule=make_schedule("flow"))[1]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    to_diffusers(timing, scheduler)
    with pytest.raises(TimingMismatch, match="for tiny,path=flow, a network on another path than its own"):
        to_diffusers(dataclasses.replace(timing, model="tiny,path=flow"), scheduler)


def test_the_weights_of_a_flow_are_compared(unet):
    flow = Model(unet, make_schedule("flow"), SHAPE, "flow", kind="velocity")
    timing = make(unet, "unipc", Grid(LEARNED, (*TIMES[6], 0.0)), kind="velocity", schedule=flow.schedule)[1]
    TunedUNet(unet, dataclasses.replace(timing, weights=flow.digest))
    other = Model(unet, make_schedule("ve"), SHAPE, "ve", kind="edm")
    with pytest.raises(TimingMismatch, match="this network has others"):
        TunedUNet(unet, dataclasses.replace(timing, weights=other.digest))


def test_no_configuration_holds_the_times(unet, tmp_path):
    learned = to_diffusers(make(unet, "unipc", learned_grid())[1], diffusers.DDPMScheduler())
    with pytest.raises(BadValue, match=r"cannot be saved.*save the timing"):
        learned.save_pretrained(tmp_path / "scheduler")
    assert not (tmp_path / "scheduler").exists()
    with pytest.raises(BadValue, match="cannot be made from a configuration"):
        type(learned).from_config(learned.config)
    with pytest.raises(BadValue, match="cannot adapt LearnedScheduler"):
        from_scheduler(learned, 5)


def test_the_examples_of_the_guide_run(monkeypatch):
    guide = (PACKAGE_ROOT / "notebooks/commands.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", guide, flags=re.S)
    assert any("to_diffusers" in example for example in examples)
    monkeypatch.chdir(PACKAGE_ROOT)
    names: dict = {}
    for example in examples:
        if "path/to/" not in example:  # what the reader has
            exec(example.replace("batch_size=4", "batch_size=1"), names)
    assert len(names["images"]) == 1
