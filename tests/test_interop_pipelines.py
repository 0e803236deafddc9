"""Real pipelines of diffusers, tiny and with random weights: untuned, tuned and learned, from the same noise."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tt_lib.engine import drive
from tt_lib.errors import TimingMismatch
from tt_lib.grids import LEARNED, Grid, make_grid
from tt_lib.guidance import ClassifierFree
from tt_lib.interop import Adapted, TunedUNet, from_scheduler, to_diffusers, tuned_times
from tt_lib.networks.unet import make_unet
from tt_lib.predictors import EpsPredictor, Predictor
from tt_lib.sampling import Sampler, fine_sampler
from tt_lib.schedules import Schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.learn import LearnConfig, learn

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="the pipelines of text import it")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
STEPS = 4
TUNING = TuneConfig(objective="truncation", optimiser="search", substeps=4)
LEARNING = LearnConfig(noises=4, validation=2, batch=4, iterations=8, lr=0.003)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Case:
    """A pipeline, and what it does with its network.

    Attributes:
        pipeline: of diffusers.
        network: the one that it samples with.
        shape: of one state.
        predictor: for a schedule and a kind of prediction, guidance included.
        run: the pipeline's samples from a batch of noise, in so many steps.
        solver: what is learned.
        set_up: sets a scheduler's timesteps as the pipeline does.
        calls: of the network for each evaluation.
        of_state: makes a sample of a final state.
    """

    pipeline: Any
    network: nn.Module
    shape: tuple[int, ...]
    predictor: Callable[[Schedule, str], Predictor]
    run: Callable[[Tensor, int], Tensor]
    solver: str
    set_up: Callable[[Any, int], None] = lambda scheduler, steps: scheduler.set_timesteps(steps)
    calls: int = 1
    of_state: Callable[[Tensor], Tensor] = lambda x: x


def as_images(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def pixels(kind: str, scheduler: Any) -> Case:
    """DDPM and DDIM, which answer with images."""
    network = make_unet("digits", 16).eval().requires_grad_(False)
    pipeline = getattr(diffusers, kind)(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def run(noise: Tensor, steps: int) -> Tensor:
        assert torch.equal(noise, draw(*noise.shape))
        options = {"num_inference_steps": steps, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
        return torch.as_tensor(pipeline(batch_size=len(noise), **options).images)

    def predictor(schedule: Schedule, kind: str) -> Predictor:
        return EpsPredictor(network, schedule, kind=kind)

    return Case(pipeline, network, (1, 8, 8), predictor, run, "dpmpp-2m", of_state=as_images)


def ddpm() -> Case:
    return pixels("DDPMPipeline", diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"))


def ddim() -> Case:
    return pixels("DDIMPipeline", diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"))


def small_vae(channels: int) -> Any:
    sizes = {"block_out_channels": (8,), "latent_channels": channels, "norm_num_groups": 4, "sample_size": 8}
    return diffusers.AutoencoderKL(**sizes, shift_factor=0.0).eval()


def latents_of(pipeline: Any, inputs: dict[str, Any]) -> Callable[[Tensor, int], Tensor]:
    pipeline.set_progress_bar_config(disable=True)

    def run(noise: Tensor, steps: int) -> Tensor:
        given = {
            key: value.expand(len(noise), *value.shape[1:]) for key, value in inputs.items() if torch.is_tensor(value)
        }
        own = {"latents": noise, "num_inference_steps": steps, "output_type": "latent", "height": 8, "width": 8}
        return pipeline(**(inputs | given | own)).images

    return run


def guided(networks: list[Callable[[Tensor, Tensor], Tensor]], scale: float) -> Callable[[Schedule, str], Predictor]:
    return lambda schedule, kind: ClassifierFree(*(EpsPredictor(n, schedule, kind=kind) for n in networks), scale)


def stable_diffusion() -> Case:
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    network.eval().requires_grad_(False)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = diffusers.StableDiffusionPipeline(
        vae=small_vae(4), unet=network, scheduler=scheduler, requires_safety_checker=False, **left_out
    )
    words = draw(1, 5, 16, seed=1), draw(1, 5, 16, seed=2)

    def with_words(own: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, c: network(x, c, encoder_hidden_states=own.expand(len(x), -1, -1)).sample

    inputs = {"prompt_embeds": words[0], "negative_prompt_embeds": words[1], "guidance_scale": 3.0}
    run = latents_of(pipeline, inputs)
    return Case(pipeline, network, (4, 8, 8), guided([with_words(own) for own in words], 3.0), run, "unipc")


def stable_diffusion_3() -> Case:
    """Without T5, and with the embeddings that its other text encoders make."""
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        out_channels=4,
        pos_embed_max_size=8,
    )
    network.eval().requires_grad_(False)
    left_out = dict.fromkeys(f"{what}{n}" for what in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=network, vae=small_vae(4), scheduler=scheduler, **left_out
    )
    words = [{"prompt": draw(1, 5, 16, seed=k), "pooled": draw(1, 12, seed=k + 10)} for k in (1, 2)]

    def with_words(own: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, c: (
            network(
                hidden_states=x,
                timestep=c,
                encoder_hidden_states=own["prompt"].expand(len(x), -1, -1),
                pooled_projections=own["pooled"].expand(len(x), -1),
            ).sample
        )

    inputs = {
        "prompt_embeds": words[0]["prompt"],
        "negative_prompt_embeds": words[1]["prompt"],
        "pooled_prompt_embeds": words[0]["pooled"],
        "negative_pooled_prompt_embeds": words[1]["pooled"],
        "guidance_scale": 3.0,
    }
    run = latents_of(pipeline, inputs)
    return Case(pipeline, network, (4, 8, 8), guided([with_words(own) for own in words], 3.0), run, "unipc")


def flux() -> Case:
    """Its state is a row of patches, its shift depends on their number, and guidance is a second call."""
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )
    network.eval().requires_grad_(False)
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = diffusers.FluxPipeline(transformer=network, vae=small_vae(4), scheduler=scheduler, **left_out)
    words = [{"prompt": draw(1, 5, 16, seed=k), "pooled": draw(1, 12, seed=k + 10)} for k in (1, 2)]
    places = torch.zeros(4, 4, 3)
    places[..., 1], places[..., 2] = torch.arange(4.0)[:, None], torch.arange(4.0)

    def with_words(own: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, c: (
            network(
                hidden_states=x,
                timestep=c / 1000,
                encoder_hidden_states=own["prompt"].expand(len(x), -1, -1),
                pooled_projections=own["pooled"].expand(len(x), -1),
                txt_ids=torch.zeros(5, 3),
                img_ids=places.reshape(16, 3),
            ).sample
        )

    inputs = {
        "prompt_embeds": words[0]["prompt"],
        "negative_prompt_embeds": words[1]["prompt"],
        "pooled_prompt_embeds": words[0]["pooled"],
        "negative_pooled_prompt_embeds": words[1]["pooled"],
        "true_cfg_scale": 3.0,
    }

    def set_up(scheduler: Any, steps: int) -> None:
        # calculate_shift of 16 patches: 0.5 at 256 and 1.15 at 4096
        mu = 0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    predictor = guided([with_words(own) for own in words], 3.0)
    return Case(pipeline, network, (16, 16), predictor, latents_of(pipeline, inputs), "euler", set_up, 2)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def adapted_of(case: Case, steps: int = STEPS) -> Adapted:
    scheduler = copy.deepcopy(case.pipeline.scheduler)
    case.set_up(scheduler, steps)
    return from_scheduler(scheduler)


@torch.no_grad()
def engine(case: Case, adapted: Adapted, noise: Tensor, timing: Timing | None = None) -> Tensor:
    predictor = case.predictor(adapted.schedule, adapted.kind)
    start = adapted.start(noise)
    taus = timing.taus if timing else adapted.taus
    return case.of_state(drive(adapted.solver(start, adapted.grid, adapted.schedule), predictor, taus).x)


@pytest.mark.parametrize("make_case", [ddpm, ddim, stable_diffusion, stable_diffusion_3, flux])
def test_untuned_tuned_and_learned(make_case):
    torch.manual_seed(1)
    case = make_case()
    pipeline, noise = case.pipeline, draw(2, *case.shape)
    adapted = adapted_of(case)

    # Untuned: the pipeline's own samples.
    plain = case.run(noise, STEPS)
    assert gap(engine(case, adapted, noise), plain) < 1e-5
    with tuned_times(pipeline, adapted.timing(), calls_per_evaluation=case.calls):
        assert gap(case.run(noise, STEPS), plain) < 1e-6

    # Tuned: the pipeline's own scheduler, with other times for its network.
    predictor = case.predictor(adapted.schedule, adapted.kind)
    sampler = Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, case.shape)
    timing = tune(sampler, 0.5 * draw(3, *case.shape, seed=3), TUNING).timing
    before, after = timing.tuning["loss_untuned"], timing.tuning["loss_tuned"]
    assert sum(after) < sum(before) and timing.taus != timing.times
    with tuned_times(pipeline, timing, calls_per_evaluation=case.calls):
        tuned = case.run(noise, STEPS)
    assert gap(tuned, engine(case, adapted, noise, timing)) < 1e-5 and gap(tuned, plain) > 1e-4
    with pytest.raises(TimingMismatch), tuned_times(pipeline, timing, calls_per_evaluation=case.calls):
        case.run(noise, STEPS + 1)
    assert torch.equal(case.run(noise, STEPS), plain)

    # Learned: grid and times, in a scheduler of this library.
    schedule = adapted.schedule
    grid = make_grid("uniform-trailing" if schedule.name == "flow" else "uniform", STEPS, schedule)
    own = Sampler(case.predictor(schedule, adapted.kind), schedule, make_solver(case.solver), grid, case.shape)
    learned = learn(own, config=LEARNING, converged=fine_sampler(own, 12, start=1.0)).timing
    assert learned.tuning["validation_learned"] < learned.tuning["validation_start"]
    with torch.no_grad():
        learned_grid = Grid(LEARNED, learned.grid_times)
        expected = dataclasses.replace(own, grid=learned_grid, timing=learned)(range(2), start=noise).x
    expected = case.of_state(expected)
    pipeline.scheduler = to_diffusers(learned, pipeline.scheduler)
    with tuned_times(pipeline, learned, calls_per_evaluation=case.calls):
        assert gap(case.run(noise, STEPS), expected) < 1e-5 and gap(expected, plain) > 1e-4
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    setattr(pipeline, name, TunedUNet(case.network, learned, calls_per_evaluation=case.calls))
    assert gap(case.run(noise, STEPS), expected) < 1e-5
