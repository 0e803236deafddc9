"""Networks as folders: what is written is what is read, by us and by diffusers, and damage is named."""

from __future__ import annotations

import copy
import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import file_hash, read_json, write_json
from tt_lib.interop.scheduler import STAGES
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import (
    CARD,
    DIFFUSION,
    INDEX,
    PRETRAINED,
    WEIGHTS,
    Model,
    find_model,
    load_model,
    make_unet,
    save_model,
    weights_hash,
)
from tt_lib.schedules import DiscreteSchedule, make_schedule

pytestmark = pytest.mark.usefixtures("one_thread")

# What google/ddpm-cifar10-32 holds beside its weights (but for the comments, as on the Hub).
GOOGLE_CONFIG = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
GOOGLE_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


@pytest.fixture(scope="module")
def network(one_thread):
    torch.manual_seed(0)
    return make_unet("digits", 32).eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """A network of digits as a model folder, on the cosine schedule: one that is nobody's default."""
    folder = tmp_path_factory.mktemp("saved") / "small"
    save_model(network, folder, name="my digits", schedule="cosine", card={"dataset": "digits", "note": 7})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def tiny(one_thread, tmp_path_factory):
    """A folder shaped like google/ddpm-cifar10-32, but tiny: a network and a scheduler, no ``tt_model.json``."""
    torch.manual_seed(1)
    small = UNet2DModel.from_config(GOOGLE_CONFIG | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4})
    place = tmp_path_factory.mktemp("tiny") / "ddpm-tiny"
    small.save_pretrained(place)
    (place / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER))
    return place


@pytest.fixture
def google(tiny, tmp_path):
    """A copy of the tiny folder, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "ddpm-tiny"))


def answer(network, channels=1, size=8):
    """The network's answer to a fixed input, at levels that are no whole numbers."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, channels, size, size, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([3.25, 400.0, 999.0])).sample


# Making


def test_width_128_is_the_network_of_ho_et_al():
    with torch.device("meta"):
        ours, theirs = make_unet("cifar10", 128), UNet2DModel.from_config(GOOGLE_CONFIG)
    assert sum(weight.numel() for weight in ours.parameters()) == 35_746_307
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    # But for the attention heads, which hold no weights of their own.
    differing = {key for key in GOOGLE_CONFIG if key[0] != "_" and ours.config[key] != theirs.config[key]}
    assert {key for key in differing if ours.config[key] != tuple(theirs.config[key] or ())} <= {"attention_head_dim"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"dataset": "cifar10", "width": width}, f"multiple of 32, got {width}") for width in (0, -32, 16, 33)),
        ({"dataset": "digits", "width": 8}, "multiple of 16, got 8"),
        ({"dataset": "mnist"}, "'mnist'; choose one of: cifar10, digits"),
        ({"dataset": "digits", "width": 16, "attention": (8, 4)}, "side 8 needs a width of at least 32, got 16"),
        ({"attention": (16, 5)}, r"some of the sides \[32, 16, 8, 4\], got \[16, 5\]"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(BadValue, match=message):
        make_unet(**options)


def test_width_and_attention():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in make_unet().parameters()) == 8_952_067
        config = make_unet(attention=(16, 8), dropout=0.1).config
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert config.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert config.dropout == 0.1


# Saving and loading


def test_round_trip(network, saved):
    model = load_model(str(saved))
    assert (model.name, model.shape, model.schedule.name) == ("my digits", (1, 8, 8), "cosine")
    assert model.digest == file_hash(saved / WEIGHTS) == model.card["sha256"]
    assert model.card["dataset"] == "digits" and model.card["note"] == 7
    assert model.card["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert not model.network.training and not any(weight.requires_grad for weight in model.network.parameters())
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}
    # float16 keeps 11 bits; the smallest weights are rounded to multiples of 2^-24.
    written = dict(model.network.state_dict())
    for name, weight in network.state_dict().items():
        assert torch.allclose(written[name], weight, rtol=2**-11, atol=2**-25), name
    assert torch.allclose(answer(model.network), answer(network), atol=5e-3)
    theirs = UNet2DModel.from_pretrained(str(saved)).eval()
    assert torch.allclose(answer(theirs), answer(model.network), atol=1e-5), "plain diffusers loads it, too"
    assert {value.dtype for value in load_file(saved / WEIGHTS).values()} == {torch.float16}
    assert sorted(file.name for file in saved.iterdir()) == sorted([WEIGHTS, "config.json", CARD])
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}, "saving leaves it as it was"


def test_loading_by_name(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    with pytest.raises(
        MissingFile, match=r"no network of digits at .*; train it: tt train --dataset digits --out .*ddpm"
    ):
        load_model("digits")
    for name in ("small", PRETRAINED["digits"]):
        assert find_model(name) is None
        (tmp_path / "pretrained" / name).symlink_to(saved)
        assert find_model(name) == tmp_path / "pretrained" / name
    assert load_model("digits").name == load_model("small").name == "my digits"
    with pytest.raises(MissingFile, match=r"no model 'a/b/c': .*pretrained \(there: digits-ddpm, small\).*owner/name"):
        load_model("a/b/c")
    # A path goes before a name.
    (tmp_path / "small").mkdir()
    assert find_model("small") == Path("small")
    # But not before that of a network that belongs to a data set: it would be taken for it without a word.
    (tmp_path / PRETRAINED["digits"]).mkdir()
    assert find_model("digits") == tmp_path / "pretrained" / PRETRAINED["digits"]


# What is damaged or not there


def test_damaged_weights(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-7] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CorruptFile, match=r"copy/diffusion.* damaged or another file; restore the file .*`tt train`"):
        load_model(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(MissingFile, match=r"copy/diffusion.*restore the file"):
        load_model(str(folder))


@pytest.mark.parametrize("name", [CARD, "config.json"])
@pytest.mark.parametrize("content", ['{"half": ', None])
def test_damaged_or_missing_descriptions(folder, name, content):
    (folder / name).unlink()
    if content:
        (folder / name).write_text(content)
    with pytest.raises((CorruptFile, MissingFile), match="copy"):
        load_model(str(folder))


@pytest.mark.parametrize("change", [{}, {"conv_in.bias": torch.zeros(7)}])
def test_weights_of_another_network(folder, change):
    """Weights that lack a tensor or hold one of another shape would leave part of the network random."""
    stored = load_file(folder / WEIGHTS)
    del stored["conv_in.bias"]
    save_file(stored | change, folder / WEIGHTS, metadata={"format": "pt"})
    # The hash says that the file is the one that was meant; it only does not fit.
    write_json(folder / CARD, read_json(folder / CARD) | {"sha256": file_hash(folder / WEIGHTS)})
    with pytest.raises(CorruptFile, match=r"(?s)copy .*conv_in\.bias"):
        load_model(str(folder))


def test_weights_of_a_larger_network(google):
    """Diffusers leaves out what a smaller network has no place for, and says so to nobody."""
    config = read_json(google / "config.json")
    UNet2DModel.from_config(config | {"layers_per_block": 3}).save_pretrained(google)
    write_json(google / "config.json", config)
    with pytest.raises(CorruptFile, match=r"ddpm-tiny do not fit its config\.json: it has no \['"):
        load_model(str(google))


def test_a_changed_configuration_under_the_same_weights(folder):
    write_json(folder / "config.json", read_json(folder / "config.json") | {"norm_eps": 0.01, "sample_size": 16})
    with pytest.raises(CorruptFile, match=r"copy/config\.json is not the one that .*restore the file"):
        load_model(str(folder))


@pytest.mark.parametrize("change", [{"kind": "flow"}, {"name": ""}, {"sha256": ""}])
def test_cards_that_say_nothing(folder, change):
    write_json(folder / CARD, read_json(folder / CARD) | change)
    with pytest.raises((BadValue, CorruptFile), match=r"unknown kind of prediction 'flow'|must be text"):
        load_model(str(folder))


def test_a_card_says_schedule_and_kind_and_they_must_fit(folder):
    card = read_json(folder / CARD)
    for schedule, kind in (("flow", "velocity"), ("ve,sigma_max=100", "edm"), ("zero-snr", "v")):
        write_json(folder / CARD, card | {"schedule": schedule, "kind": kind})
        model = load_model(str(folder))
        assert (model.schedule.name, model.kind) == (schedule, kind)
    for schedule, kind, message in (("flow", "eps", "alpha is 0 at t = 1"), ("linear", "edm", "for the schedule 've'")):
        write_json(folder / CARD, card | {"schedule": schedule, "kind": kind})
        with pytest.raises(BadValue, match=message):
            load_model(str(folder))


def test_one_s_own_cards_on_two_paths_are_two_models(folder):
    """Rows are found by name and hash: those of another schedule would have passed for the network's own."""
    digests = set()
    for schedule, kind in (("flow", "velocity"), ("linear", "velocity"), ("ve", "edm"), ("ve,sigma_max=20", "edm")):
        write_json(folder / CARD, {"name": "own", "schedule": schedule, "kind": kind})
        digests.add(load_model(str(folder)).digest)
    assert len(digests) == 4
    assert load_model(f"{folder},path=flow").digest in digests, "a path of a network has its hash"
    write_json(folder / CARD, {"name": "own", "schedule": "linear"})
    model = load_model(str(folder))
    assert model.digest == weights_hash(model.network)


@pytest.mark.parametrize("target, schedule, kind", [("flow", "linear", "velocity"), ("eps", "flow", "velocity")])
def test_a_card_that_contradicts_its_training_is_damaged(folder, target, schedule, kind):
    says = {"schedule": schedule, "kind": kind, "training": {"target": target}}
    write_json(folder / CARD, read_json(folder / CARD) | says)
    with pytest.raises(CorruptFile, match=f"trained for the target {target}, .*it says {kind} on {schedule}; restore"):
        load_model(str(folder))


def test_schedule_that_is_unknown(folder):
    write_json(folder / CARD, read_json(folder / CARD) | {"schedule": "sigmoid"})
    with pytest.raises(BadValue, match=r"unknown schedule 'sigmoid'; .*cosine"):
        load_model(str(folder))
    (folder / CARD).unlink()
    with pytest.raises(MissingFile, match=r"no scheduler_config\.json.*add tt_model\.json"):
        load_model(str(folder))


def test_hub_name_without_a_network(monkeypatch):
    def resolve(*arguments, **options):
        raise AssertionError("offline, and still it asked the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(
        MissingFile, match=r"cannot load 'tt-lib/no-such-network': .*the Hub.*download.*give its folder"
    ):
        load_model("tt-lib/no-such-network")
    for name in ("runs/misspelled", "./misspelled", "data/misspelled"):  # no owner: nothing is asked of the network
        with pytest.raises(MissingFile, match=f"no model '{name}': it is neither a folder"):
            load_model(name)


# Networks of others


def test_a_folder_from_the_hub(google):
    """Stored in half precision, it runs in full."""
    theirs = UNet2DModel.from_pretrained(str(google)).half()
    theirs.save_pretrained(google)
    model = load_model(str(google))
    assert (model.name, model.shape, model.card) == ("ddpm-tiny", (3, 32, 32), {})
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}
    assert torch.allclose(answer(model.network, 3, 32), answer(theirs.float().eval(), 3, 32), atol=1e-5)
    times, linear = torch.linspace(0, 1, 1001, dtype=torch.float64), make_schedule("linear")
    assert (model.schedule.name, model.schedule.levels, model.schedule.t_min) == ("linear", 1000, 1e-3)
    assert torch.allclose(model.schedule.log_alpha(times), linear.log_alpha(times), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("place", ["scheduler_config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(("theirs", "kind"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_schedule_and_prediction_are_the_repository_s_own(google, place, theirs, kind):
    (google / "scheduler_config.json").unlink()
    (google / place).parent.mkdir(exist_ok=True)
    own = {"beta_end": 0.03, "num_train_timesteps": 500, "prediction_type": theirs}
    (google / place).write_text(json.dumps(GOOGLE_SCHEDULER | own))
    model = load_model(str(google))
    linear = DiscreteSchedule(torch.linspace(1e-4, 0.03, 500, dtype=torch.float64), "linear")
    assert model.schedule.levels == 500
    assert torch.allclose(model.schedule.log_alpha(0.7), linear.log_alpha(0.7), rtol=1e-6)
    assert model.kind == kind and make_predictor(model).kind == kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "'flow_prediction'.*epsilon, v_prediction, sample"),
        ({"beta_schedule": "no-such"}, "no-such"),
    ],
)
def test_networks_that_cannot_be_used(google, change, message):
    """A network that predicts something else would be sampled as if it predicted eps, and give noise without a word."""
    (google / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER | change))
    with pytest.raises(BadValue, match=message):
        load_model(str(google))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler: it samples a flow"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler: it scales its states and times as EDM does"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler: .* variance-exploding"),
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler: its noise schedule is not known here"),
        ({"_class_name": None}, "None: its noise schedule is not known here"),
        (
            {"use_flow_sigmas": True, "_class_name": "UniPCMultistepScheduler"},
            "use_flow_sigmas=True of its UniPC.*flow",
        ),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True of its DDPMScheduler: at its last level"),
        ({"timestep_type": "continuous", "_class_name": "EulerDiscreteScheduler"}, "timestep_type='continuous'"),
    ],
)
def test_other_kinds_of_diffusion_are_refused_by_name(google, change, reason):
    """Each would be sampled as if it predicted the noise of a variance-preserving diffusion."""
    (google / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER | change))
    with pytest.raises(BadValue, match=f"cannot sample .*ddpm-tiny with .*{reason}") as caught:
        load_model(str(google))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DIFFUSION)
def test_every_scheduler_of_a_diffusion_names_the_betas(google, name):
    (google / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER | {"_class_name": name}))
    model = load_model(str(google))
    assert model.schedule.name == "linear" and model.schedule.levels == 1000
    assert torch.allclose(model.schedule.log_alpha(0.7), make_schedule("linear").log_alpha(0.7), rtol=1e-6)


def test_what_can_be_adapted_can_be_loaded():
    """Flows and EDM's networks need a card beside them, as tt train --target flow writes it."""
    assert {name for name in STAGES if not name.startswith(("Flow", "EDM"))} <= set(DIFFUSION)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({}, "linear"),
        ({"beta_end": 0.03}, "linear-0.0001-0.03-1000"),
        ({"num_train_timesteps": 500}, "linear-0.0001-0.02-500"),
        ({"trained_betas": [0.001, 0.002]}, r"trained-[0-9a-f]{8}"),
    ],
)
def test_other_betas_have_another_name(google, own, name):
    """A timing, or samples of an interrupted evaluation, know the schedule by its name."""
    (google / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER | own))
    assert re.fullmatch(name, load_model(str(google)).schedule.name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_class_embeds": 10}, r"class-conditional \(num_class_embeds=10\), and labels are not supported"),
        ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel and no UNet2DModel"),
        ({"in_channels": 6}, "makes 3 channels of 6"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [32]}, r"sample_size is \[32\]"),
    ],
)
def test_networks_that_need_more_than_an_image_and_a_time(google, change, reason):
    write_json(google / "config.json", read_json(google / "config.json") | change)
    with pytest.raises(BadValue, match=rf"cannot sample .*ddpm-tiny: its .*{reason}.*; choose another model"):
        load_model(str(google))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", {**GOOGLE_CONFIG, "norm_num_groups": "four"}),
        ("scheduler_config.json", 3),
        ("scheduler_config.json", {**GOOGLE_SCHEDULER, "trained_betas": 3}),
        ("scheduler_config.json", {**GOOGLE_SCHEDULER, "prediction_type": ["epsilon"]}),
        (CARD, []),
        (CARD, {"schedule": ["linear"]}),
    ],
)
def test_descriptions_of_the_wrong_kind_are_one_error(google, name, content):
    (google / "scheduler").mkdir()
    shutil.copy(google / "scheduler_config.json", google / "scheduler")  # which does not stand in for a damaged one
    write_json(google / name, content)
    with pytest.raises((BadValue, CorruptFile), match="ddpm-tiny") as caught:
        load_model(str(google))
    assert "\n" not in str(caught.value)


# Pipelines, and the layouts of weights


LAYOUTS = {
    "plain": {},
    "fp16": {"variant": "fp16"},
    "bin": {"safe_serialization": False},
    "fp16 bin": {"variant": "fp16", "safe_serialization": False},
    "in several files": {"max_shard_size": "100KB"},
    "fp16 in several files": {"variant": "fp16", "max_shard_size": "100KB"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_pipeline_of_diffusers_saves(google, tmp_path, layout):
    """``unet/`` and ``scheduler/``, as DDPMPipeline.save_pretrained and diffusers' training example write them."""
    unet, place = UNet2DModel.from_pretrained(str(google)), tmp_path / "pipeline"
    DDPMPipeline(unet, DDPMScheduler(beta_end=0.03)).save_pretrained(place)
    shutil.rmtree(place / "unet")
    unet.save_pretrained(place / "unet", **LAYOUTS[layout])
    model = load_model(str(place))
    assert (model.name, model.shape, model.schedule.name) == ("pipeline", (3, 32, 32), "linear-0.0001-0.03-1000")
    assert torch.allclose(answer(model.network, 3, 32), answer(unet.eval(), 3, 32), atol=1e-5)
    assert model.digest == weights_hash(unet), "whatever the files, they are the same weights"


def test_pipelines_that_cannot_be_used(google, tmp_path):
    unet, place = UNet2DModel.from_pretrained(str(google)), tmp_path / "latent"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(place)
    index = read_json(place / "model_index.json")
    write_json(place / "model_index.json", index | {"vqvae": ["diffusers", "VQModel"], "safety_checker": [None, None]})
    with pytest.raises(BadValue, match="latent: its pipeline has vqvae beside network and scheduler"):
        load_model(str(place))
    write_json(place / "model_index.json", index)
    unet.save_pretrained(place)
    with pytest.raises(BadValue, match="latent holds two networks"):
        load_model(str(place))
    for name in ("config.json", WEIGHTS):
        (place / name).unlink()
    weights = place / "unet" / WEIGHTS
    for variant in ("fp16", "ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    assert load_model(str(place)).digest == weights_hash(unet), "plain weights go before variants"
    weights.unlink()
    with pytest.raises(BadValue, match="weights in the variants ema, fp16; keep one"):
        load_model(str(place))


# Which network it is


def test_a_folder_s_name_is_never_empty(google, monkeypatch):
    (google / "inner").mkdir()
    for here, given in ((google, "."), (google / "inner", "..")):
        monkeypatch.chdir(here)
        assert load_model(given).name == "ddpm-tiny"


def test_other_choices_with_the_same_weights_are_another_network(google):
    config, scheduler = read_json(google / "config.json"), read_json(google / "scheduler_config.json")
    digests = [load_model(str(google)).digest]
    for change in ({"act_fn": "gelu"}, {"norm_eps": 0.01}, {"flip_sin_to_cos": True}):
        write_json(google / "config.json", config | change)
        digests.append(load_model(str(google)).digest)
    # What its class has anyway says nothing.
    write_json(google / "config.json", config | {"dropout": 0.0, "resnet_time_scale_shift": "default"})
    assert load_model(str(google)).digest == digests[0]
    write_json(google / "scheduler_config.json", scheduler | {"prediction_type": "v_prediction"})
    model = load_model(str(google))
    digests.append(model.digest)
    assert len(set(digests)) == 5
    assert model.digest == weights_hash(model.network, "v")


def test_the_hash_is_of_the_weights(google, tmp_path):
    first = load_model(str(google))
    assert first.digest == weights_hash(first.network) and re.fullmatch("[0-9a-f]{64}", first.digest)
    other = UNet2DModel.from_pretrained(str(google))
    with torch.no_grad():
        other.conv_in.bias[0] += 1e-6
    other.save_pretrained(tmp_path / "elsewhere" / "ddpm-tiny")
    shutil.copy(google / "scheduler_config.json", tmp_path / "elsewhere" / "ddpm-tiny")
    second = load_model(str(tmp_path / "elsewhere" / "ddpm-tiny"))
    assert second.name == first.name and second.digest != first.digest
    made = Model(other.eval(), first.schedule, first.shape, "made")
    assert made.digest == second.digest, "in memory as from a file"
    # Names, types and shapes count, and where the numbers lie does not.
    layer = torch.nn.Linear(2, 3, bias=False)
    hashes = [weights_hash(layer), weights_hash(torch.nn.Sequential(layer)), weights_hash(layer.double())]
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.zeros(2, 3)
    hashes += [weights_hash(layer)]
    layer.weight.data = torch.zeros(3, 2)
    hashes += [weights_hash(layer)]
    assert len(set(hashes)) == 5
    layer.weight.data = torch.zeros(2, 3).t()
    assert weights_hash(layer) == hashes[-1]


def test_weights_in_several_files_do_not_pass_for_those_of_the_card(network, folder):
    """Loaders take them, if they are there, and not the file whose hash the card names."""
    UNet2DModel.from_config(network.config).save_pretrained(folder, max_shard_size="100KB")
    save_model(network, folder, name="my digits", schedule="cosine", card={})
    assert not (folder / INDEX).exists(), "a save removes the index"
    assert torch.allclose(answer(load_model(str(folder)).network), answer(network), atol=5e-3)
    UNet2DModel.from_config(network.config).save_pretrained(folder, max_shard_size="100KB")
    save_model(network, folder.parent / "again", name="my digits", schedule="cosine", card={})
    for name in (WEIGHTS, CARD):
        shutil.copy(folder.parent / "again" / name, folder / name)
    with pytest.raises(CorruptFile, match=rf"{INDEX} names other weights than {CARD}.*remove it"):
        load_model(str(folder))


@pytest.mark.parametrize("half", [False, True])
def test_tied_weights_are_saved(network, tmp_path, half):
    tied = copy.deepcopy(network)
    tied.mid_block.resnets[0].conv2.weight = tied.mid_block.resnets[0].conv1.weight
    tied = tied.half() if half else tied
    save_model(tied, tmp_path / "tied", name="tied", schedule="linear", card={})
    stored = load_file(tmp_path / "tied" / WEIGHTS)
    first, second = (stored[f"mid_block.resnets.0.conv{i}.weight"] for i in (1, 2))
    assert torch.equal(first, second) and torch.equal(first, tied.mid_block.resnets[0].conv1.weight.half())


def test_shipped_cifar10_network():
    model = load_model("cifar10")
    assert (model.name, model.shape, model.schedule.name) == (PRETRAINED["cifar10"], (3, 32, 32), "linear")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        high, low = (model.network(x, torch.full((2,), level)).sample for level in (999.0, 0.0))
    assert (high - x).square().mean() < 0.02, "pure noise is its own direction"
    assert (low - high).square().mean() > 0.1, "at the lowest level the same input is no image with a little noise"
