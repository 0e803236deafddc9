"""diffusers both ways: adapted schedulers against its own loop, pipelines with tuned times against our engine."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch
from diffusers_helpers import as_images, draw, engine, gap, loop, moved
from torch import Tensor

from tt_lib.engine import Request, drive, replay
from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch
from tt_lib.grids import make_grid
from tt_lib.guidance import ClassifierFree
from tt_lib.interop import Calls, TunedUNet, from_scheduler, tuned_times
from tt_lib.networks.unet import make_unet
from tt_lib.predictors import EpsPredictor
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import Timing, load_timing
from tt_lib.toy import MixturePredictor, ring_2d
from tt_lib.tuning import TuneConfig, tune

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = make_schedule("linear")
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun-leading": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
}


def make(name: str, **options):
    """A scheduler by its name above or by its class."""
    kind, own = SCHEDULERS.get(name, (name, {}))
    scheduler = getattr(diffusers, kind)
    betas = BETAS if "beta_start" in inspect.signature(scheduler.__init__).parameters else {}
    return scheduler(**betas | own | options)


def skip_if_diffusers_cannot(scheduler, steps: int) -> None:
    """Some releases cannot make some numbers of steps: 0.30's singlestep DPM-Solver beside a new torch."""
    try:
        copy.deepcopy(scheduler).set_timesteps(steps)
    except ValueError as error:
        pytest.skip(f"diffusers {diffusers.__version__} itself fails: {error}")


NOISE = draw(2, 1, 8, 8)


def plain_loop(network, scheduler, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    return loop(scheduler, network, state=NOISE * scheduler.init_noise_sigma)


def ours(adapted, network, taus=None) -> Tensor:
    return engine(adapted, network, adapted.start(NOISE), taus)


@pytest.fixture(scope="module")
def unet(one_thread):
    torch.manual_seed(0)
    return make_unet("digits", 16).eval().requires_grad_(False)


# ---- schedulers as solvers


@pytest.mark.parametrize(
    ("name", "solver", "options", "skip_last"),
    [
        ("ddim", "ddim", {}, False),
        ("euler-leading", "ddim", {"steps_offset": 0}, False),
        ("heun-leading", "heun", {}, False),
        ("pndm", "pndm", {"set_alpha_to_one": True}, True),
    ],
)
def test_requests_are_those_of_our_own_solver(name, solver, options, skip_last):
    """The state is the variance-preserving one, at our times and stages, whatever the scheduler keeps."""
    adapted = from_scheduler(make(name, **options), 10)
    assert adapted.grid.times == pytest.approx(make_grid("uniform", 10, LINEAR).times)
    predictor, x = MixturePredictor(ring_2d(), LINEAR), draw(5, 2, dtype=torch.float64)
    own = drive(make_solver(solver)(x, adapted.grid, LINEAR), predictor, keep=True)
    theirs = drive(adapted.solver(x, adapted.grid, adapted.schedule), predictor, keep=True)
    for a, b in zip(own.trajectory, theirs.trajectory, strict=True):
        assert (float(a.t), a.stage) == (pytest.approx(float(b.t)), b.stage) and gap(a.x, b.x) < 1e-4
    # Their step into clean data mixes four answers, see test_multistep.
    assert skip_last or gap(own.x, theirs.x) < 1e-4


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("heun", "010101010"),
        ("plms", "010000"),
        # The last evaluation of diffusers' default leads from t = 0.001 to t = 0.001: it is no step.
        ("pndm", "01230123012301"),
        ("dpm-single", "01010"),
        ("euler", "00000"),
    ],
)
def test_what_is_a_step_and_repeated_times(name, stages):
    scheduler = make(name)
    skip_if_diffusers_cannot(scheduler, 5)
    adapted = from_scheduler(scheduler, 5)
    evaluations = layout(adapted.solver, adapted.grid.tensor(), adapted.schedule)
    assert "".join(str(each.stage) for each in evaluations) == stages
    begins = [each.t for each in evaluations if each.stage == 0]
    assert begins == pytest.approx(adapted.grid.times[:-1]) and adapted.grid.steps == stages.count("0")
    assert adapted.grid.times[-1] == (0.001 if name in ("plms", "pndm") else 0)
    assert (adapted.times[1] == adapted.times[2]) == (name in ("heun", "plms", "pndm"))


def test_schedule_is_the_scheduler_s():
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    adapted = from_scheduler(scheduler, 4)
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(adapted.schedule.alpha(levels) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-12)
    assert (adapted.schedule.name, adapted.kind) == ("scaled_linear-0.00085-0.012-1000", "eps")
    assert adapted.schedule.network_time(adapted.times[0]) == pytest.approx(750)


def test_restarts_replays_and_leaves_the_scheduler_alone():
    scheduler = make("pndm")
    adapted = from_scheduler(scheduler, 5)
    assert scheduler.num_inference_steps is None and not scheduler.ets
    predictor, x = MixturePredictor(ring_2d(), LINEAR), draw(3, 2)

    def fresh():
        return adapted.solver(x, adapted.grid, adapted.schedule)

    run = drive(fresh(), predictor, keep=True)
    begun = fresh()  # another one, half way, while the others run
    begun.send(None)
    begun.send(run.answers[0])
    kept = [answer.clone() for answer in run.answers]
    for k in (0, 3, 12):
        request = replay(fresh(), run.answers[:k])
        assert isinstance(request, Request) and torch.equal(request.x, run.trajectory[k].x)
    assert torch.equal(begun.send(run.answers[1]).x, run.trajectory[2].x)
    assert torch.equal(replay(fresh(), run.answers), run.x)
    assert all(torch.equal(a, b) for a, b in zip(kept, run.answers, strict=True))


@pytest.mark.parametrize("name", ["pndm", "dpm", "unipc", "heun"])
def test_gradients_reach_every_tau(name):
    adapted = from_scheduler(make(name), 5)
    predictor, x = MixturePredictor(ring_2d(scale=0.5), LINEAR), draw(4, 2, dtype=torch.float64)
    # Half way between two levels: log alpha bends at each.
    taus = (torch.tensor(adapted.times, dtype=torch.float64) * 970).floor().clamp(min=2) / 1000 + 0.0005

    def loss(taus: Tensor, grad: bool = False) -> Tensor:
        return drive(adapted.solver(x, adapted.grid, adapted.schedule), predictor, taus, grad=grad).x.square().sum()

    leaf = taus.clone().requires_grad_()
    loss(leaf, grad=True).backward()
    # PNDM's wasted evaluation changes nothing.
    last = adapted.nfe - (adapted.times[-1] == adapted.grid.times[-1])
    for k in range(last):
        h = torch.zeros_like(taus)
        h[k] = 4e-4
        numeric = ((loss(taus + h) - loss(taus - h)) / (2 * h[k])).item()
        assert leaf.grad[k].item() == pytest.approx(numeric, rel=1e-2, abs=2e-3), k
    assert leaf.grad[:last].abs().max() > 0.1 and not leaf.grad[last:].any()


def test_other_times_are_refused():
    adapted, other = (from_scheduler(make("ddim"), steps) for steps in (4, 5))
    x = torch.zeros(4, 2)
    for times in (other.grid, torch.tensor([adapted.grid.times] * 2).T, torch.tensor(adapted.grid.times) * 0.9):
        with pytest.raises(BadValue, match=r"runs its own grid of 4 steps.*strategy='sequential'"):
            adapted.solver(x, times, LINEAR)
    config = TuneConfig(strategy="parallel", optimiser="search")
    with pytest.raises(BadValue, match="strategy='sequential'"):
        tune(Sampler(MixturePredictor(ring_2d(), LINEAR), LINEAR, adapted.solver, adapted.grid, (2,)), x, config)
    with pytest.raises(BadValue, match="adapted for 4 evaluations, not 7"):
        adapted.solver.for_nfe(7)
    assert adapted.solver.for_nfe(4)[1] == 4


def test_a_timing_belongs_to_one_configuration(tmp_path, unet):
    adapted = from_scheduler(make("dpm"), 5)
    timing = moved(adapted)
    timing.save(tmp_path / "timing.json")
    timing = load_timing(tmp_path / "timing.json")
    predictor = EpsPredictor(unet, adapted.schedule)

    def sampler(adapted):
        return Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, (1, 8, 8), timing)

    assert sampler(adapted)([3, 4]).nfe == 5
    changes = ({"solver_order": 3}, {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False})
    for other in (*(make("dpm", **change) for change in changes), make("unipc")):
        with pytest.raises(TimingMismatch):
            sampler(from_scheduler(other, 5))
    with pytest.raises(TimingMismatch, match=r"5 steps.*6 steps"):
        sampler(from_scheduler(make("dpm"), 6))


def test_noise_belongs_to_the_sample():
    """DDIM with eta is ours draw for draw, and a seed gives its image in any batch; the SDE solver draws, too."""
    adapted = from_scheduler(make("ddim"), 5, eta=1.0)
    sde = from_scheduler(make("dpm", algorithm_type="sde-dpmsolver++"), 5)
    predictor = MixturePredictor(ring_2d(), LINEAR)
    for one in (adapted, sde):
        assert one.solver.stochastic
        sampler = Sampler(predictor, one.schedule, one.solver, one.grid, (2,))
        several, alone = sampler([5, 6, 7]).x, sampler([6]).x
        assert torch.allclose(several[1:2], alone, atol=1e-6) and not torch.allclose(several[0], several[1], atol=0.1)
    ours = Sampler(predictor, LINEAR, make_solver("ddim", eta=1.0), adapted.grid, (2,))
    theirs = Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, (2,))
    assert torch.allclose(ours([1, 2]).x, theirs([1, 2]).x, atol=1e-4)
    with pytest.raises(BadValue, match="draws noise"):
        drive(sde.solver(torch.zeros(1, 2), sde.grid, sde.schedule), predictor)


REFUSED = [  # more of them, class by class and option by option, in test_interop_options
    (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True},
        {},
        "cannot make 5 steps .*`mu` must be passed",
    ),
    ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}, {}, "num_train_timesteps=500 on a flow"),
    (
        "EDMEulerScheduler",
        {"prediction_type": "v_prediction"},
        {},
        "'v_prediction' as EDM's; it must be one of epsilon",
    ),
    ("dpm", {"prediction_type": "flow_prediction"}, {}, "'flow_prediction'.*use_flow_sigmas=True is what makes it"),
    (
        "dpm",
        {"use_flow_sigmas": True},
        {},
        "prediction_type 'epsilon' on a flow; it must be one of flow_prediction, sa",
    ),
    (
        *("dpm", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_karras_sigmas": True}, {}),
        "sigmas of a flow lie between 0 and 1, and it has 157.*no karras",
    ),
    ("dpm-single", {"algorithm_type": "sde-dpmsolver++"}, {}, "'sde-dpmsolver.*DPMSolverMultistepScheduler"),
    (
        *("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}),
        "predicts eps, .* alpha is 0 at t = 1, where that says nothing",
    ),
    ("ddim", {"trained_betas": [0.01] * 500 + [1.0] + [0.01] * 499}, {}, "got 1 at index 500 of 1000"),
    ("dpm", {"use_dynamic_shifting": True}, {}, "use_dynamic_shifting=True: it shifts flows alone"),
    ("ddim", {}, {"steps": 0}, "at least 1, got 0"),
    ("ddim", {}, {"steps": 1001}, "cannot make 1001 steps.*another number"),
    ("ddim", {}, {"eta": 1.5}, "eta must lie.*got 1.5"),
    ("heun", {}, {"eta": 0.5}, "takes no eta, got 0.5"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "config", "options", "message"), REFUSED)
def test_what_cannot_be_adapted_is_refused_with_a_remedy(name, config, options, message):
    try:
        scheduler = make(name, **config)
    except TypeError:
        pytest.skip(f"diffusers {diffusers.__version__} has no such option of this scheduler")
    with pytest.raises(BadValue, match=message) as caught:
        from_scheduler(scheduler, **{"steps": 5} | options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# ---- tuned times in pipelines


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def ddim(unet):
    """A DDIM pipeline whose images are not saturated, its adapted solver, and a function that samples with seed 0."""
    scheduler = make("ddim", prediction_type="v_prediction")
    pipeline = quiet(diffusers.DDIMPipeline(unet, scheduler))

    def images(pipeline=pipeline, steps=5, **options):
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(pipeline(2, generator, num_inference_steps=steps, output_type="np", **options).images)

    return pipeline, from_scheduler(scheduler, 5), images


def test_identity_is_bit_identical_and_tuned_is_the_engine_s(ddim, unet):
    pipeline, adapted, images = ddim
    plain = images()
    assert ((plain > 0) & (plain < 1)).float().mean() > 0.7  # most of it is not clipped away
    with tuned_times(pipeline, adapted.timing()):
        assert torch.equal(images(), plain)
    timing = moved(adapted)
    expected = as_images(ours(adapted, unet, timing.taus))
    with tuned_times(pipeline, timing) as calls:
        assert gap(images(), expected) < 1e-5
        assert gap(images(), expected) < 1e-5  # a second run begins by itself
        assert calls.complete_runs == 2
    assert gap(expected, plain) > 1e-3
    assert torch.equal(images(), plain)  # the block leaves nothing behind
    wrapped = quiet(diffusers.DDIMPipeline(TunedUNet(unet, timing), pipeline.scheduler))
    assert gap(images(wrapped), expected) < 1e-5 and torch.equal(images(wrapped), images(wrapped))
    wrapped.unet = TunedUNet(unet, adapted.timing())
    assert torch.equal(images(wrapped), plain)


def test_a_network_with_another_number_of_levels(unet):
    scheduler = make("ddim", num_train_timesteps=100, beta_start=0.001, beta_end=0.2)
    adapted = from_scheduler(scheduler, 5)
    timing = moved(adapted)
    expected = ours(adapted, unet, timing.taus)
    assert gap(plain_loop(TunedUNet(unet, timing, levels=100), scheduler, 5), expected) < 1e-5
    with pytest.raises(TimingMismatch, match="num_train_timesteps must be levels=1000"):
        plain_loop(TunedUNet(unet, timing), scheduler, 5)


def test_guidance_by_two_calls_and_by_one(unet):
    scheduler = make("heun", prediction_type="v_prediction")
    adapted = from_scheduler(scheduler, 4)
    timing = moved(adapted)

    def guided(network, joint: bool):
        def run(x, n):
            if joint:
                one, other = network(torch.cat([x, -x]), n).sample.chunk(2)
            else:
                one, other = network(x, n).sample, network(-x, n).sample
            return other + 3.0 * (one - other)

        return run

    one = EpsPredictor(unet, adapted.schedule, kind="v")
    other = EpsPredictor(lambda x, c: unet(-x, c), adapted.schedule, kind="v")
    expected = engine(adapted, None, adapted.start(NOISE), timing.taus, ClassifierFree(one, other, 3.0))
    for joint, calls in ((True, 1), (False, 2)):
        tuned = TunedUNet(unet, timing, calls_per_evaluation=calls)
        for _ in range(2):
            # Guidance enlarges what float32 rounds differently in batches of 4 and of 2.
            assert gap(plain_loop(guided(tuned, joint), scheduler, 4), expected) < 5e-5
    assert gap(plain_loop(guided(unet, joint=True), scheduler, 4), expected) > 1e-3
    once, twice = TunedUNet(unet, timing), TunedUNet(unet, timing, calls_per_evaluation=2)
    message = r"^call 2 of 7 calls asks for timestep 999 \(t = 1\)\. .*give calls_per_evaluation=2\. .*reset\(\)"
    with pytest.raises(TimingMismatch, match=message) as caught:
        plain_loop(guided(once, joint=False), scheduler, 4)
    assert "spacing" not in str(caught.value) and "levels" not in str(caught.value), "they are right"
    with pytest.raises(TimingMismatch, match=r"call 2 of 14 calls \(2 for.*less often, give calls_per_evaluation=1\."):
        plain_loop(guided(twice, joint=True), scheduler, 4)
    for tuned, joint in ((once, True), (twice, False)):
        assert gap(plain_loop(guided(tuned, joint), scheduler, 4), expected) < 5e-5, "the error began a new run"


def test_another_number_of_steps_spacing_scheduler_or_timing(ddim, unet):
    pipeline, adapted, images = ddim
    for spacing in ("leading", "trailing"):
        scheduler = make("ddim", timestep_spacing=spacing)
        tuned = TunedUNet(unet, moved(from_scheduler(scheduler, 5)))
        for steps in (4, 6, 10):
            with pytest.raises(TimingMismatch, match=r"of 5 calls .*5 steps.*number of steps"):
                plain_loop(tuned, scheduler, steps)
        plain_loop(tuned, scheduler, 5)  # an error leaves nothing behind
    other = moved(from_scheduler(make("unipc"), 5))
    with pytest.raises(TimingMismatch, match="UniPCMultistepScheduler"), tuned_times(pipeline, other):
        images()
    # The same times in another order of evaluations: the first repeated one gives it away.
    heun = TunedUNet(unet, moved(from_scheduler(make("heun"), 5)))
    with pytest.raises(TimingMismatch, match="call 3 of 9"):
        plain_loop(heun, make("euler"), 5)
    pipeline.scheduler = make("ddim", timestep_spacing="trailing", prediction_type="v_prediction")
    message = r"call 1 of 5.*asks for timestep 999 \(t = 1\).*timing's is 800 \(t = 0.801\)"
    with pytest.raises(TimingMismatch, match=message), tuned_times(pipeline, moved(adapted)):
        images()


def test_runs_that_are_too_short_or_too_long(ddim, unet):
    _, adapted, _ = ddim
    timing, x = moved(adapted), draw(1, 1, 8, 8)
    levels = [round(1000 * t - 1) for t in adapted.times]
    with pytest.raises(TimingMismatch, match=r"ended after 3 of 5 calls"), tuned_times(unet, timing):
        for n in levels[:3]:
            unet(x, n)
    tuned = TunedUNet(unet, timing)
    for n in levels[:3]:
        tuned(x, n)
    with pytest.raises(TimingMismatch, match=r"ended after 3 of 5 calls.*call reset\(\)"):
        tuned(x, levels[0])
    for n in levels:
        tuned(x, torch.tensor(n))
    with pytest.raises(TimingMismatch, match=r"at least 6 calls, the timing 5"):
        tuned(x, levels[-1])
    tuned(x, levels[0])
    tuned.reset()
    tuned(x, timestep=levels[0])


def test_what_calls_may_look_like(unet):
    timing = from_scheduler(make("ddim"), 5).timing()
    calls, x = Calls(timing), draw(3, 1, 8, 8)
    asked = calls.next_time(torch.tensor(800, dtype=torch.bfloat16), x)
    assert torch.equal(asked, torch.full((3,), 800.0))
    assert torch.equal(calls.next_time(torch.tensor([600, 600, 600]), x), torch.full((3,), 600.0))
    with pytest.raises(TimingMismatch, match="400"):
        calls.next_time(torch.tensor([400, 400, 401]), x)
    with pytest.raises(BadValue, match="without a timestep"):
        TunedUNet(unet, timing)(x)
    with pytest.raises(BadValue, match="calls_per_evaluation must be at least 1, got 0"):
        TunedUNet(unet, timing, calls_per_evaluation=0)
    with pytest.raises(BadValue, match="tuned already"):
        TunedUNet(TunedUNet(unet, timing), timing)
    with pytest.raises(BadValue, match="no network called unet or transformer"), tuned_times(make("ddim"), timing):
        pass
    continuous = Timing("x", (0.5,), (0.5,), "", "continuous-linear", "ddim", {}, "g", (0.5, 0.0))
    with pytest.raises(BadValue, match="continuous-linear"):
        Calls(continuous)


def test_the_wrapper_passes_for_the_network(unet):
    tuned = TunedUNet(unet, from_scheduler(make("ddim"), 5).timing())
    assert tuned.config is unet.config and tuned.dtype == torch.float32 and tuned.device.type == "cpu"
    assert tuned.config.sample_size == 8 and tuned.conv_in is unet.conv_in
    with pytest.raises(AttributeError):
        _ = tuned.add_embedding
    again = copy.deepcopy(tuned)
    assert again.unet is not unet and again.timing == tuned.timing
    assert len(list(tuned.parameters())) == len(list(unet.parameters()))
    x = draw(1, 1, 8, 8)
    assert torch.equal(tuned(x, 800, return_dict=False)[0], unet(x, 800, return_dict=False)[0])


# ---- folders


@pytest.fixture
def saved(unet, tmp_path):
    timing = moved(from_scheduler(make("heun"), 4))
    tuned = TunedUNet(unet, dataclasses.replace(timing, gains=tuple(0.9 + 0.02 * k for k in range(timing.nfe))))
    tuned.save_pretrained(tmp_path / "tuned")
    return tuned, tmp_path / "tuned"


def test_save_and_load(saved, unet):
    tuned, folder = saved
    again = TunedUNet.from_pretrained(folder)
    assert again.timing == tuned.timing and again.unet is not unet
    assert torch.equal(plain_loop(again, make("heun"), 4), plain_loop(tuned, make("heun"), 4))
    names = ["config.json", "diffusion_pytorch_model.safetensors", "timing.json", "tuned_unet.json"]
    assert sorted(file.name for file in folder.iterdir()) == names and len(list(folder.parent.iterdir())) == 1
    # Plain diffusers reads the network.
    plain = diffusers.UNet2DModel.from_pretrained(str(folder)).eval()
    assert torch.equal(plain(NOISE, 5).sample, unet(NOISE, 5).sample)


def test_a_later_save_replaces_the_earlier_one_and_nothing_else(saved, unet, monkeypatch):
    """diffusers reads weights in several files before one file, and safetensors before .bin, whichever is the newer."""
    tuned, folder = saved
    old = copy.deepcopy(unet)
    for weight in old.parameters():
        weight.mul_(0.5)
    TunedUNet(old, tuned.timing, calls_per_evaluation=2).save_pretrained(folder, max_shard_size="100KB")
    assert TunedUNet.from_pretrained(folder).calls.calls_per_evaluation == 2
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tt_lib.interop.pipeline.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        tuned.save_pretrained(folder)
    (folder / "notes.txt").write_text("a note")
    with pytest.raises(BadValue, match=r"holds other files \(notes\.txt\); choose another folder or remove them"):
        tuned.save_pretrained(folder)
    (folder / "notes.txt").unlink()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "nothing was written"
    tuned.save_pretrained(folder, safe_serialization=False)
    assert torch.equal(TunedUNet.from_pretrained(folder).unet.conv_in.weight, unet.conv_in.weight)
    assert len(list(folder.iterdir())) == 4 and len(list(folder.parent.iterdir())) == 1
    unet.save_pretrained(folder)  # safetensors, beside
    with pytest.raises(CorruptFile, match=r"diffusion_pytorch_model\.safetensors is of another save than.*remove it"):
        TunedUNet.from_pretrained(folder)


def test_tied_weights_are_one_error(saved, unet, tmp_path):
    tied = copy.deepcopy(unet)
    tied.mid_block.resnets[0].conv2.weight = tied.mid_block.resnets[0].conv1.weight
    with pytest.raises(BadValue, match=r"cannot save the network \(.*\); give safe_serialization=False") as caught:
        TunedUNet(tied, saved[0].timing).save_pretrained(tmp_path / "tied")
    assert "\n" not in str(caught.value) and not (tmp_path / "tied").exists()


@pytest.mark.parametrize(
    "name", ["timing.json", "tuned_unet.json", "diffusion_pytorch_model.safetensors", "config.json"]
)
def test_folders_that_are_damaged(saved, name):
    _, folder = saved
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFile, match=name.replace(".", r"\.")):
        TunedUNet.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(MissingFile, match=name.replace(".", r"\.")):
        TunedUNet.from_pretrained(folder)
