"""Learning samplers of pipelines of diffusers in their latents: against the pipelines' own runs, on a tiny one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys

import pytest
import torch
from diffusers_helpers import draw, engine, gap
from torch import Tensor
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch, TTError
from tt_lib.files import file_hash
from tt_lib.grids import Grid
from tt_lib.guidance import ClassifierFree
from tt_lib.interop import TunedUNet, to_diffusers, tuned_times
from tt_lib.interop.pipeline import network_in
from tt_lib.networks.unet import make_unet, weights_hash
from tt_lib.noise import LEARN_FIRST_SEED, VALIDATION_FIRST_SEED, SampleNoise
from tt_lib.sampling import Sampler
from tt_lib.timing import load_timing
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning import latents as module
from tt_lib.tuning.latents import (
    LATENTS,
    adapt_pipeline,
    check_prompts,
    learn_pipeline,
    load_pipeline,
    read_prompts,
)
from tt_lib.tuning.learn import SEEDS, LearnConfig, _Learning

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers", reason="text encoders are its")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

PROMPTS = ["a cat", "two dogs", "the moon", "a boat at sea", "trees", "a red house", "rain"]
"""The fourth is held out, and seven are not a multiple of four."""
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's."""
SMALL = LearnConfig(noises=12, validation=4, batch=6, iterations=6, lr=0.05)
START = {"nfe": 3, "guidance": 3.0, "config": SMALL, "at_once": 6}


def scheduler_of(name: str = "PNDMScheduler", **options):
    """As Stable Diffusion's folders have it."""
    own = {} if "Single" in name else {"steps_offset": 1, "timestep_spacing": "leading"}
    own |= {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    own |= {"clip_sample": False, "set_alpha_to_one": False} if name == "DDIMScheduler" else {}
    return getattr(diffusers, name)(**BETAS | own | options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """CLIP's, whose words are letters."""
    folder = tmp_path_factory.mktemp("words")
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def text_encoder(kind: str = "CLIPTextModel"):
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return getattr(transformers, kind)(config).eval()


def decoder():
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8, shift_factor=0.1
    )


def stable_diffusion(tokenizer):
    """Text encoder and all."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return diffusers.StableDiffusionPipeline(
        vae=decoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler_of(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def folder(one_thread, tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    stable_diffusion(tokenizer).save_pretrained(folder)
    return folder


def stable_diffusion_3(tokenizer):
    """Without T5. Its guidance doubles the batch."""
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=network.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=decoder(),
        text_encoder=text_encoder("CLIPTextModelWithProjection"),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder("CLIPTextModelWithProjection"),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(tokenizer):
    """Its latents are rows of patches, its shift depends on their number, and its guidance is an embedding."""
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    t5 = transformers.T5Config(vocab_size=54, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return diffusers.FluxPipeline(
        transformer=network.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=decoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer,
        text_encoder_2=transformers.T5EncoderModel(t5).eval(),
        tokenizer_2=tokenizer,
    )


@pytest.fixture
def pipeline(folder):
    return load_pipeline(folder)[0]


def noise(*seeds: int, size: int = 8) -> Tensor:
    return SampleNoise(seeds).start((4, size, 8))


def run(pipeline, prompts, start: Tensor, steps: int, **options) -> Tensor:
    """The pipeline's own latents."""
    pipeline.set_progress_bar_config(disable=True)
    options |= {"latents": start, "num_inference_steps": steps, "output_type": "latent"}
    return pipeline(list(prompts), **options).images


# ---- prompts


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\r\n  eine Brücke \n猫\na cat, asleep".encode())
    assert read_prompts(path) == ["a cat", "eine Brücke", "猫", "a cat, asleep"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 4 are needed, got 0"),
        ("one\ntwo\nBr\xfccke\nfour".encode("latin-1"), r"not text in UTF-8 \(byte 10\); save it in UTF-8"),
        (b"A  cat\ntwo\nthree\na CAT\n", "prompt 4, 'a CAT', is prompt 1 once more"),
        ("cat\ntwo\nthree\ncat\u200b".encode(), "prompt 4, .* is prompt 1 once more"),
        ("one\ntwo\nthree\n\u200b".encode(), "prompt 4 is empty"),
        ("one\u2028still one\ntwo\nthree\nfour".encode(), r"holds '\\u2028', a control character"),
        ("one\ntwo\n\ufeffthree\nfour".encode(), r"holds '\\ufeff', .* mark of damage"),
    ],
)
def test_files_of_prompts_that_are_refused(content, message, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(BadValue, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "message"), [("a cat", "list of texts"), ([*"abc", 4], "must be text"), ([*"abc", " "], "4 is empty")]
)
def test_lists_of_prompts_that_are_refused(prompts, message):
    with pytest.raises(BadValue, match=message):
        check_prompts(prompts)


def test_held_out_prompts_are_never_learned_from(pipeline):
    latents = adapt_pipeline(pipeline, PROMPTS).encoded()
    of = [{latents.prompt_of(first + 3 * SEEDS + k) for k in range(50)} for first in (LEARN_FIRST_SEED, 0)]
    held_out = {latents.prompt_of(VALIDATION_FIRST_SEED + 3 * SEEDS + k) for k in range(50)}
    assert (of[0], held_out, of[1]) == ({0, 1, 2, 4, 5, 6}, {3}, set(range(7)))


# ---- latents


@pytest.mark.parametrize(
    ("name", "kind", "guidance", "size"),
    [
        ("PNDMScheduler", "epsilon", None, None),
        ("DDIMScheduler", "v_prediction", 2.0, (16, 8)),
        ("EulerDiscreteScheduler", "epsilon", 4.0, None),
        ("HeunDiscreteScheduler", "epsilon", 1.0, None),
        ("DPMSolverMultistepScheduler", "v_prediction", 7.5, None),
    ],
)
def test_latents_are_the_pipeline_s_own(name, kind, guidance, size, pipeline):
    """Its own scheduler with our predictor, each latent with a prompt of its own."""
    pipeline.scheduler = scheduler_of(name, prediction_type=kind)
    latents = adapt_pipeline(pipeline, PROMPTS, guidance=guidance, size=size).encoded()
    assert (latents.kind, latents.guidance) == ("v" if kind == "v_prediction" else "eps", guidance or 7.5)
    seeds = [3, 11, 6]
    start = noise(*seeds, size=16 if size else 8)
    options = {"guidance_scale": guidance} if guidance else {}
    options |= {"height": 16, "width": 8} if size else {}
    theirs = run(pipeline, [PROMPTS[seed % 7] for seed in seeds], start, 6, **options)
    assert gap(latents.teacher(6)(seeds).x, theirs) < 1e-5
    other = run(pipeline, PROMPTS[:3], start, 6, **options)
    assert gap(other, theirs) > 1e-3  # the prompts matter


def test_what_is_known_of_no_seed_is_an_error(pipeline):
    latents = adapt_pipeline(pipeline, PROMPTS).encoded()
    with pytest.raises(BadValue, match=r"for_seeds\(seeds\)"):
        latents(noise(1), torch.tensor(0.5), torch.tensor(0.5))


def test_memory_changes_no_gradient(pipeline):
    latents = adapt_pipeline(pipeline, PROMPTS, guidance=3.0).encoded()
    pipeline.unet.requires_grad_(False)
    config = LearnConfig(("grid", "timing", "gain"), noises=6, validation=1, batch=6)
    seen: list[int] = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(len(kwargs[name]) for name in ("sample",) if name in kwargs),
        with_kwargs=True,
    )
    gradients, x, y = [], noise(*range(6)), noise(*range(6, 12))
    for size in (6, 4, 1):
        learning = _Learning(latents.sampler(nfe=3), LATENTS, config, latents.sampler(), {}, None, None, size, {})
        seen.clear()
        learning.step(x, y, torch.arange(6))
        gradients.append(torch.cat([each.grad for each in learning.knobs.moving()]))
        assert max(seen) == size
    assert gradients[0].abs().min() > 0
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], rtol=1e-4, atol=1e-6)


# ---- learning


def test_learned_and_run_in_the_pipeline(pipeline, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    encoded, messages = [], []
    handle = pipeline.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    result = learn_pipeline(pipeline, path, **START, progress=lambda done, of, message: messages.append(message))
    handle.remove()
    timing, tuning = result.timing, result.timing.tuning
    assert tuning["validation_learned"] < 0.9 * tuning["validation_start"]
    assert any("prompts encoded: 7 of 7" in each for each in messages) and "of the start's" in messages[-1]
    # With and without prompt, once for each prompt, and for the few runs that show what the pipeline does.
    assert len(encoded) == 2 * (len(PROMPTS) + 6)
    assert timing.weights == weights_hash(pipeline.unet) and (timing.model, timing.grid) == ("sd", "learned")
    own = {"guidance": 3.0, "size": None, "latents": [4, 8, 8], "prompts": 7, "prompts_sha256": file_hash(path)}
    assert own.items() <= tuning.items()
    assert (tuning["teacher"]["scheduler"], tuning["teacher"]["steps"]) == ("PNDMScheduler", 60)
    # The pipeline is as it was.
    assert all(weight.requires_grad and weight.grad is None for weight in pipeline.unet.parameters())
    assert "step" not in vars(pipeline.scheduler) and not pipeline.unet._forward_pre_hooks

    # The learned sampler ends nearer to the pipeline's own 60 steps, and in the pipeline as in our engine.
    latents, seeds = adapt_pipeline(pipeline, PROMPTS, guidance=3.0).encoded(), range(7)
    untuned = latents.sampler(nfe=3)
    learned = dataclasses.replace(untuned, grid=Grid("learned", timing.grid_times), timing=timing)
    exact = run(pipeline, PROMPTS, noise(*seeds), 60, guidance_scale=3.0)
    ends = learned(seeds).x
    assert LATENTS.function(ends, exact).mean() < 0.9 * LATENTS.function(untuned(seeds).x, exact).mean()
    unet, pipeline.scheduler = pipeline.unet, to_diffusers(timing, pipeline.scheduler)
    pipeline.unet = TunedUNet(unet, timing)
    assert gap(run(pipeline, PROMPTS, noise(*seeds), 3, guidance_scale=3.0), ends) < 1e-4
    with pytest.raises(BadValue, match="tuned already"):
        learn_pipeline(pipeline, PROMPTS)


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_3, flux])
def test_untuned_tuned_and_learned(make, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CONVERGED_STEPS", 8)
    torch.manual_seed(1)
    pipeline, options = make(tokenizer), {"height": 8, "width": 8}
    name, network = network_in(pipeline)
    if flow := make is not stable_diffusion:
        # As a trained network's, its answer varies slowly with the time: without the fast half of the time's waves.
        waves = network.time_text_embed.timestep_embedder.linear_1.weight.data.unflatten(1, (2, -1))
        waves[:, :, :64] = 0
    latents = adapt_pipeline(pipeline, PROMPTS, size=(8, 8)).encoded()
    own = ("flow", "velocity") if flow else ("scaled_linear-0.00085-0.012-1000", "eps")
    assert (latents.schedule.name, latents.kind, len(latents.conditions[0])) == (*own, 1 + (make != flux))
    seeds = [3, 11, 6]
    start, prompts = SampleNoise(seeds).start(latents.shape), [PROMPTS[seed % 7] for seed in seeds]
    assert gap(latents.teacher(6)(seeds).x, run(pipeline, prompts, start, 6, **options)) < 1e-5

    # Tuned: the pipeline's own scheduler, with other times for its network.
    adapted, predictor, calls = latents.own(4), latents.for_seeds(seeds), 1
    guided = dict(options)
    if make is flux:  # beside its embedding it has guidance by a second call
        predictor, calls = ClassifierFree(predictor, latents.for_prompts([0] * 3), 3.0), 2
        guided |= {"true_cfg_scale": 3.0, "negative_prompt": [PROMPTS[0]] * 3}
    plain = run(pipeline, prompts, start, 4, **guided)
    assert gap(engine(adapted, start=adapted.start(start), predictor=predictor), plain) < 1e-5
    sampler = Sampler(
        lambda x, t, tau: latents.for_prompts([0] * len(x))(x, t, tau),
        *(latents.schedule, adapted.solver, adapted.grid, latents.shape),
    )
    config = TuneConfig(objective="truncation", optimiser="search", substeps=4)
    tuned = tune(sampler, 0.5 * draw(3, *latents.shape, seed=3), config).timing
    assert sum(tuned.tuning["loss_tuned"]) < sum(tuned.tuning["loss_untuned"])
    expected = engine(adapted, start=adapted.start(start), predictor=predictor, taus=tuned.taus)
    with tuned_times(pipeline, tuned, calls_per_evaluation=calls):
        assert gap(run(pipeline, prompts, start, 4, **guided), expected) < 1e-5 and gap(expected, plain) > 1e-4
    with pytest.raises(TimingMismatch), tuned_times(pipeline, tuned, calls_per_evaluation=calls):
        run(pipeline, prompts, start, 5, **guided)
    assert torch.equal(run(pipeline, prompts, start, 4, **guided), plain)

    # Learned: grid and times, in a scheduler of this library.
    config = dataclasses.replace(SMALL, noises=4, batch=4, iterations=8)
    grid = "uniform-trailing" if flow else ""
    timing = learn_pipeline(pipeline, PROMPTS, 3, start=grid, config=config, size=(8, 8)).timing
    assert timing.tuning["validation_learned"] < 0.99 * timing.tuning["validation_start"]
    assert (timing.grid_times[0] == 1 or not flow) and timing.taus != timing.times
    learned = dataclasses.replace(latents.sampler(nfe=3), grid=Grid("learned", timing.grid_times), timing=timing)
    pipeline.scheduler = to_diffusers(timing, pipeline.scheduler)
    expected = learned(seeds).x
    with tuned_times(pipeline, timing):
        assert gap(run(pipeline, prompts, start, 3, **options), expected) < 1e-4
    setattr(pipeline, name, TunedUNet(network, timing))
    assert gap(run(pipeline, prompts, start, 3, **options), expected) < 1e-4


class Twice(diffusers.StableDiffusionPipeline):
    """Calls its network with the prompt and then without, as pipelines of videos do."""

    @torch.no_grad()
    def __call__(self, prompt, guidance_scale=3.0, latents=None, num_inference_steps=4, **options):
        conditions = self.encode_prompt(prompt, "cpu", 1, True)
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.zeros(len(prompt), 4, 8, 8) if latents is None else latents
        for n in self.scheduler.timesteps:
            own, empty = (self.unet(x, n, encoder_hidden_states=each).sample for each in conditions)
            x = self.scheduler.step(empty + guidance_scale * (own - empty), n, x).prev_sample
        return (x,)


def test_guidance_in_two_calls(pipeline):
    twice = Twice.from_pipe(pipeline)
    latents, start = adapt_pipeline(twice, PROMPTS).encoded(), noise(0, 1, 2)
    theirs = twice(PROMPTS[:3], latents=start, num_inference_steps=6)[0]
    assert gap(latents.teacher(6)(range(3)).x, theirs) < 1e-5
    assert gap(run(pipeline, PROMPTS[:3], start, 6, guidance_scale=3.0), theirs) < 1e-5


def test_half_precision(pipeline):
    """Latents are float32 all along, and rounded where the network is."""
    pipeline.to(torch.bfloat16)
    latents = adapt_pipeline(pipeline, PROMPTS).encoded()
    theirs = run(pipeline, PROMPTS[:3], noise(0, 1, 2).bfloat16(), 6).float()
    ours = latents.teacher(6)(range(3)).x
    assert ours.dtype == torch.float32 and 1e-4 < gap(ours, theirs) < 0.05


def tt(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", *map(str, words)])
        return CliRunner().invoke(app, list(map(str, words)))


def test_killed_and_started_again_by_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONVERGED_STEPS", 8)
    config = dataclasses.replace(SMALL, noises=4, validation=1, batch=4, iterations=4)
    monkeypatch.setattr(module, "DEFAULTS", config)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "six.json"
    prompts.write_text("\n".join(PROMPTS))
    words = f"learn --pipeline {folder} --prompts {prompts} --nfe 3 --guidance 3 --size 8 --out {out} --batch 3".split()
    step, steps = _Learning.step, []

    def stop(learning, *args):
        if len(steps) == 2:
            raise MemoryError("out of memory")
        steps.append(step(learning, *args))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(_Learning, "step", stop)
        result = tt(*words)
    assert result.exit_code == 2 and "not enough memory" in result.stderr.splitlines()[-1] and not out.exists()
    state = tmp_path / "six.json.state"
    assert state.exists()
    changed = tt(*words, "--guidance", 4)
    assert "is the state of another run" in changed.stderr.splitlines()[-1]
    result = tt(*words)
    assert result.exit_code == 0 and "loss on held-out prompts" in result.output and not state.exists()
    resumed, (pipeline, weights) = load_timing(out), load_pipeline(folder)
    options = START | {"config": config, "size": (8, 8), "at_once": 3, "weights": weights}
    whole = learn_pipeline(pipeline, prompts, **options).timing
    assert (resumed.taus, resumed.grid_times, resumed.weights) == (whole.taus, whole.grid_times, whole.weights)
    assert resumed.tuning | {"seconds": 0} == whole.tuning | {"seconds": 0}
    assert "exists; give --force" in tt(*words).stderr.splitlines()[-1]


# ---- refusals


class Rescaled(diffusers.StableDiffusionPipeline):
    """Does more than guidance: it rescales the guided answer."""

    def __call__(self, prompt=None, guidance_scale=7.5, **options):
        return super().__call__(prompt, guidance_scale=guidance_scale, guidance_rescale=0.7, **options)


class Scaleless(diffusers.StableDiffusionPipeline):
    """Guides, and nobody can say how much."""

    def __call__(self, prompt=None, **options):
        return super().__call__(prompt, **options)


class Short(diffusers.StableDiffusionPipeline):
    """Its embeddings are as long as the first prompt."""

    def encode_prompt(self, prompt, *args, **options):
        return tuple(each[:, : len(prompt[0])] for each in super().encode_prompt(prompt, *args, **options))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"scheduler": "EulerAncestralDiscreteScheduler"}, {}, "EulerAncestralDiscreteScheduler: it draws noise"),
        ({"scheduler": ("DDIMScheduler", {"prediction_type": "v_prediction"})}, {"config": ("gain",)}, "without gain"),
        ({"scheduler": "DPMSolverSinglestepScheduler"}, {"nfe": 5}, "makes 3 steps with 5 evaluations.* start grid"),
        ({"kind": Short}, {}, r"prompt 2, 'two dogs', have the shape \[1, 8, 16\], .* first \[1, 5, 16\]"),
        ({"kind": Rescaled}, {}, r"does more in a step .* scale 7.5"),
        ({}, {"solver": "ddpm"}, "cannot learn ddpm: it draws noise"),
        ({}, {"size": (12, 8)}, "divisible by 8 but are 12 and 8"),
        ({"kind": Scaleless}, {}, "Scaleless guides by a scale that is not its guidance_scale; learn from"),
        (
            {},
            {"prompts": [*PROMPTS, 12 * "a " + "b", 12 * "a " + "c"]},
            "prompt 9, .* is prompt 8 once more to the net",
        ),
        ({}, {"guidance": -3.0}, "guidance must be at least 0"),
        ({}, {"at_once": 0}, "at_once must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_the_work(change, options, message, pipeline, monkeypatch):
    monkeypatch.setattr(module, "learn", lambda *args, **kwargs: pytest.fail("learned"))
    if "scheduler" in change:
        name = change["scheduler"]
        pipeline.scheduler = scheduler_of(name) if isinstance(name, str) else scheduler_of(name[0], **name[1])
    if "kind" in change:
        pipeline = change["kind"].from_pipe(pipeline)
    if "config" in options:
        options = options | {"config": LearnConfig(options["config"])}
    with pytest.raises(TTError, match=message) as caught:
        learn_pipeline(pipeline, **{"prompts": PROMPTS} | options)
    assert "\n" not in str(caught.value)
    assert "step" not in vars(pipeline.scheduler) and not pipeline.unet._forward_pre_hooks


def test_pipelines_without_prompts_are_refused():
    pipeline = diffusers.DDIMPipeline(make_unet("digits", 16), diffusers.DDIMScheduler())
    with pytest.raises(BadValue, match="DDIMPipeline takes no prompt"):
        learn_pipeline(pipeline, PROMPTS)


def test_folders_that_are_no_pipeline(tmp_path, folder):
    with pytest.raises(MissingFile, match="holds no model_index"):
        load_pipeline(tmp_path)
    with pytest.raises(MissingFile, match="neither a folder nor a Hub repository"):
        load_pipeline(tmp_path / "nothing")
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(CorruptFile, match="cannot be loaded as a pipeline"):
        load_pipeline(tmp_path)
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "text_encoder" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "model_index.json").write_text("{}")
    for damaged in (tmp_path, tmp_path / "cut"):
        with pytest.raises(CorruptFile, match="cannot be loaded as a pipeline"):
            load_pipeline(damaged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pipeline", "here"), "--pipeline needs --prompts"),
        (("--prompts", "p.txt"), "--prompts needs --pipeline"),
        (("--guidance", "3"), "--guidance needs --pipeline"),
        (("--pipeline", "here", "--prompts", "p.txt", "--model", "cifar10"), "--model cannot be used with --pipeline"),
        (("--pipeline", "here", "--prompts", "p.txt", "--size", "8x8x8"), "HEIGHTxWIDTH .* got '8x8x8'"),
        (("--pipeline", "here", "--prompts", "missing.txt"), "no file of prompts at missing.txt"),
        (("--pipeline", "here", "--prompts", "p.txt", "--out", "o.json"), "holds no model_index.json"),
    ],
)
def test_options_that_do_not_go_together(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    result = tt("learn", *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line
