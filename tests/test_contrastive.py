"""Features learnt without labels: the network, its loss, its views, its training on digits, and the probe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from tt_lib.datasets import load_dataset, to_float
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.files import file_hash
from tt_lib.metrics.augment import DRAWS, TO_YIQ, random_views
from tt_lib.metrics.contrastive import PlainNet, nt_xent
from tt_lib.metrics.features import load_feature_extractor
from tt_lib.metrics.networks import count_parameters, load_features, save_features
from tt_lib.metrics.probe import PENALTY, fit_logistic, linear_probe
from tt_lib.metrics.train_simclr import ContrastiveRecipe, ContrastiveRun, cosine_rate, epoch_draws, train_simclr
from tt_lib.metrics.training_run import TIMED, UNTIMED
from tt_lib.results import TRAINING_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = dict(widths=(8, 16), epochs=4, batch=50, lr=4e-3, flip=False, device="cpu")
RECIPE = ContrastiveRecipe("x", (4,), epochs=1, batch=10, lr=1.0, seed=0, flip=True)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setenv("TT_COMMIT", "test")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train").take(slice(0, 600)), load_dataset("digits", "test")


@pytest.fixture(scope="module")
def trained(digits, one_thread, tmp_path_factory):
    """A small network of digits: (folder, report, log lines)."""
    folder, lines = tmp_path_factory.mktemp("features") / "digits-simclr", []
    report = train_simclr(*digits, folder, log=lines.append, results=folder.parent / "training.csv", **SETTINGS)
    return folder, report, lines


# The network and the loss


def test_default_network_is_small_enough_to_ship(tmp_path):
    torch.manual_seed(0)
    network = PlainNet()
    assert 2e6 < count_parameters(network) < 6e6
    save_features(network, tmp_path, {})
    assert (tmp_path / "model.safetensors").stat().st_size < 12e6
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = network(pixels)
    assert features.shape == (2, 384) and features.dtype == torch.float32
    assert torch.allclose(features[:1], network(pixels[:1]), atol=1e-5), "also in training an image's features are its own"
    again = load_features(tmp_path)
    assert isinstance(again, PlainNet) and torch.allclose(again(pixels), features, rtol=0.02, atol=0.01)


def test_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3, dtype=torch.float64)
    views, total = [*first, *second], 0.0
    for i, view in enumerate(views):
        likeness = [torch.cosine_similarity(view, other, dim=0) / 0.3 for other in views]
        others = sum(one.exp() for k, one in enumerate(likeness) if k != i)
        total -= (likeness[(i + 4) % 8].exp() / others).log()
    assert nt_xent(first, second, 0.3).item() == pytest.approx(total.item() / 8, rel=1e-5)
    assert nt_xent(first, first, 0.3) < nt_xent(first, second, 0.3)
    for views, temperature in (((first[:1], second[:1]), 0.3), ((first, second), 0.0)):
        with pytest.raises(BadValue, match="at least 2 images and a temperature above 0"):
            nt_xent(*views, temperature)


# Views

PLAIN = {"area": 1.0, "shape": 0.5, "row": 0.5, "column": 0.5, "mirror": 0.9, "jitters": 0.9, "brightness": 0.5,
         "contrast": 0.5, "saturation": 0.5, "hue": 0.5, "grey": 0.9}  # fmt: skip


def view(pixels, flip=True, **draw):
    """One view of each image, by draws that change nothing but what is named."""
    draws = torch.tensor([[(PLAIN | draw)[name] for name in DRAWS]]).expand(len(pixels), -1)
    return random_views(pixels, draws, flip=flip)


@pytest.fixture
def pixels():
    """Colours without extremes, so that no change of them is clamped."""
    return torch.randint(90, 150, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_view_may_be_the_image_itself_or_its_mirror_image(pixels):
    assert torch.allclose(view(pixels), to_float(pixels), atol=1e-5)
    assert torch.allclose(view(pixels, mirror=0.1), to_float(pixels).flip(3), atol=1e-5)
    assert torch.allclose(view(pixels, mirror=0.1, flip=False), to_float(pixels), atol=1e-5)


@pytest.mark.parametrize(("column", "first", "last"), [(0.0, 0, 16), (1.0, 16, 32), (0.5, 8, 24)])
def test_a_crop_is_scaled_to_the_whole(column, first, last):
    """A quarter of the area of a ramp: half its width, at the place that was drawn."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(1, 3, 32, 32)
    found = (view(ramp, area=(0.25 - 0.2) / 0.8, column=column) + 1) * 127.5 / 8 + 0.5
    inside = found[0, 0, 5, 2:-2]
    expected = first + (torch.arange(32) + 0.5) / 2
    assert torch.allclose(inside, expected[2:-2], atol=1e-3) and first < inside.min() and inside.max() < last


def test_colours_change_as_they_are_named(pixels):
    image = (to_float(pixels) + 1) / 2

    def luma(x):
        return torch.einsum("c,nchw->nhw", TO_YIQ[0], x)

    changed = {name: (view(pixels, jitters=0.1, **{name: 1.0}) + 1) / 2 for name in ("brightness", "contrast", "saturation", "hue")}
    assert torch.allclose(changed["brightness"], 1.4 * image, atol=1e-5)
    middle = luma(image).mean((1, 2)).view(-1, 1, 1, 1)
    assert torch.allclose(changed["contrast"], middle + 1.4 * (image - middle), atol=1e-4)
    for name in ("saturation", "hue"):
        assert torch.allclose(luma(changed[name]), luma(image), atol=1e-4)
    grey = luma(image).unsqueeze(1)
    assert torch.allclose(changed["saturation"] - grey, 1.4 * (image - grey), atol=1e-3)
    assert torch.allclose((view(pixels, grey=0.1) + 1) / 2, grey.expand_as(image), atol=1e-4)
    # A tenth of a turn about the grey axis: colours keep their distance from grey in YIQ, and turn by 36 degrees.
    before, after = (torch.einsum("ij,njhw->nihw", TO_YIQ, x)[:, 1:] for x in (image, changed["hue"]))
    cosine = torch.cosine_similarity(before, after, dim=1)
    assert torch.allclose(before.norm(dim=1), after.norm(dim=1), atol=1e-4) and cosine.mean() == pytest.approx(0.809, abs=2e-3)
    # Without the luck of the draw nothing changes.
    assert torch.allclose(view(pixels, jitters=0.9, brightness=1.0, contrast=0.0, hue=0.0), to_float(pixels), atol=1e-5)


def test_views_are_drawn_for_each_image(pixels):
    draws = torch.rand(3, len(DRAWS), generator=torch.Generator().manual_seed(1))
    together = random_views(pixels, draws)
    alone = torch.cat([random_views(pixels[i : i + 1], draws[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6) and together.abs().max() <= 1
    same = random_views(pixels[:1].repeat(3, 1, 1, 1), draws)
    assert (same[0] - same[1]).abs().max() > 0.05 and (same[1] - same[2]).abs().max() > 0.05
    grey = random_views(pixels[:, :1], draws)
    assert grey.shape == (3, 1, 32, 32) and (grey - together[:, :1]).abs().max() > 1e-3


def test_draws_are_set_by_seed_and_epoch(digits):
    first, again, later, other = (
        epoch_draws(digits[0].pixels, replace(RECIPE, seed=seed), epoch) for seed, epoch in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert first[1].shape == (600, 2, len(DRAWS)) and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for drawn in (later, other):
        assert not any(torch.equal(a, b) for a, b in zip(first, drawn, strict=True))
    assert (first[1][:, 0] != first[1][:, 1]).any(), "two views"


def test_learning_rate_rises_and_falls_to_nothing():
    rates = [cosine_rate(RECIPE, step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1, rel=0.02) and rates.index(max(rates)) in (49, 50)
    assert rates[525] == pytest.approx(0.5, abs=0.01) and 0 < rates[-1] < 1e-4


# Training


def test_training_learns_and_reports(trained, digits):
    folder, report, lines = trained
    torch.manual_seed(1)
    untrained = PlainNet((8, 16), in_channels=1).eval()
    untrained.set_normalisation(digits[0].pixels)
    assert report["probe_accuracy"] > linear_probe(untrained, *digits) + 0.03 and report["probe_accuracy"] > 0.85
    assert report == json.loads((folder / "config.json").read_text())
    assert report["sha256"] == file_hash(folder / "model.safetensors") and report["widths"] == [8, 16]
    assert report["probe_accuracy"] == pytest.approx(linear_probe(load_features(folder), *digits), abs=1e-6)
    assert any("left" in line for line in lines) and "probe accuracy" in lines[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not any(key.startswith("projection") for key in load_file(folder / "model.safetensors"))
    rows = read_rows(folder.parent / "training.csv", TRAINING_COLUMNS)
    assert rows["step"].tolist() == [12, 24, 36, 48] and rows["loss"].iloc[-1] < rows["loss"].iloc[0]
    assert set(rows["run"]) == {"digits-simclr"} and rows["images"].iloc[-1] == 2400


def test_labels_are_used_by_the_probe_only(trained, digits, tmp_path):
    train, test = digits
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    report = train_simclr(replace(train, labels=train.labels[order]), test, tmp_path, log=str, **SETTINGS)
    assert report["sha256"] == trained[1]["sha256"] and report["probe_accuracy"] < 0.4


def test_interrupted_training_ends_the_same(trained, digits, tmp_path):
    out = tmp_path / "digits-simclr"
    options = {"log": str, "results": tmp_path / "training.csv", **SETTINGS}
    for stop, expected in ((17, 17), (19, 36)):  # in the middle of an epoch, and at the end of one
        assert train_simclr(*digits, out, stop_after=stop, **options) == {"step": expected, "steps": 48}
    assert train_simclr(*digits, out, **options)["sha256"] == trained[1]["sha256"]
    ours, whole = (read_rows(folder / "training.csv", TRAINING_COLUMNS) for folder in (tmp_path, trained[0].parent))
    assert ours[["run", "step", "images", "loss"]].equals(whole[["run", "step", "images", "loss"]])


def test_seconds_are_turned_into_epochs_before_the_first_step(digits, tmp_path):
    """The run is then the one that this number of epochs makes; a run that goes on keeps it."""
    short = SETTINGS | {"epochs": 1}
    by_hand = train_simclr(*digits, tmp_path / "a", log=str, **short)
    lines: list[str] = []
    fitted = train_simclr(*digits, tmp_path / "b", log=lines.append, seconds=1e-9, **SETTINGS)
    assert fitted["sha256"] == by_hand["sha256"] and fitted["epochs"] == 1 and lines[0].startswith("1 epochs fit into")
    train_simclr(*digits, tmp_path / "c", log=str, stop_after=5, **SETTINGS | {"epochs": 2})
    assert train_simclr(*digits, tmp_path / "c", log=str, seconds=1e9, **SETTINGS)["epochs"] == 2
    with pytest.raises(BadValue, match="above 0, got 0"):
        train_simclr(*digits, tmp_path / "d", log=str, seconds=0, **SETTINGS)


def test_epochs_are_as_many_as_fit(digits, monkeypatch):
    """By a clock that says 2 s for drawing an epoch, and 2 s for the timed steps."""
    run = ContrastiveRun(replace(RECIPE, batch=100, epochs=7), *digits, torch.device("cpu"), compile=False)
    ticks = iter(range(0, 100, 2))
    steps = []
    make_step = run.make_step
    monkeypatch.setattr(run, "clock", lambda: next(ticks))
    monkeypatch.setattr(run, "make_step", lambda *args: steps.append(args[1]) or make_step(*args))
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.fit(100)
    # 6 steps an epoch of 2 / TIMED s each.
    assert run.recipe.epochs == int(100 / (2 + 6 * 2 / TIMED)) and run.steps == 6 * run.recipe.epochs
    assert len(steps) == UNTIMED + TIMED and set(steps) == set(range(6)) and run.step == 0
    assert all(torch.equal(value, before[key]) for key, value in run.network.state_dict().items())
    assert not run.optimizer.state_dict()["state"]


def test_checkpoint_of_another_run(digits, trained, tmp_path):
    train_simclr(*digits, tmp_path, log=str, stop_after=1, **SETTINGS)
    with pytest.raises(BadValue, match=r"'lr': \(0\.004, 0\.1\)"):
        train_simclr(*digits, tmp_path, log=str, **SETTINGS | {"lr": 0.1})
    config = json.loads((trained[0] / "config.json").read_text()) | {"architecture": "preact-resnet-2-blocks"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptFile, match="does not describe"):
        load_features(tmp_path)


def test_extractor_by_name(trained):
    features = load_feature_extractor("digits-simclr", trained[0])
    assert (features.name, features.dimension, features.metric) == ("digits-simclr", 16, "FD (digits-simclr)")
    pixels = load_dataset("digits", "test").pixels[:5]
    assert torch.equal(features(pixels), load_features(trained[0])(pixels))


def test_probe_is_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    features, noise = torch.randn(300, 4, generator=generator), torch.randn(300, 3, generator=generator)
    labels = (features[:, :3] + noise).argmax(1)
    ours = fit_logistic(features, labels, 3)
    theirs = LogisticRegression(C=1 / (PENALTY * 300), tol=1e-8, max_iter=1000).fit(features.numpy(), labels.numpy())
    assert torch.allclose(ours[:-1].T, torch.from_numpy(theirs.coef_).float(), atol=2e-3)
    bias = ours[-1] - ours[-1].mean()
    assert torch.allclose(bias, torch.from_numpy(theirs.intercept_).float(), atol=2e-3)
