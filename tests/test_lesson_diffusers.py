"""Notebook 09: schedulers call by call, and the network with a known answer in a pipeline of diffusers."""

import diffusers
import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.figures.frames import picture
from tt_lib.lessons.diffusers import MixtureNetwork, digits_mixture, draw_calls, make_scheduler, toy_timing
from tt_lib.predictors import EpsPredictor
from tt_lib.schedules import linear_betas
from tt_lib.toy import MixturePredictor

LINEAR = linear_betas()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return digits_mixture()


@pytest.fixture(scope="module")
def classes():
    return [digits_mixture(label) for label in (3, 8)]


def images(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_call_is_drawn_and_times_repeat_with_taus_of_their_own():
    timing = toy_timing("Heun", 5)
    nominal, conditioned = picture(draw_calls, "Heun").axes[0].lines
    assert list(nominal.get_ydata()) == list(timing.times) and list(conditioned.get_ydata()) == list(timing.taus)
    assert timing.nfe == 9 and timing.times[1] == timing.times[2] and timing.taus[1] != timing.taus[2]
    with pytest.raises(BadValue, match="'Euler'"):
        make_scheduler("Euler")


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_every_kind_gives_the_exact_noise(digits, kind):
    network, t = MixtureNetwork(digits, LINEAR, (1, 8, 8), kind=kind), torch.tensor(0.401, dtype=torch.float64)
    eps = EpsPredictor(network, LINEAR, kind=kind)(images(), t, t)
    exact = MixturePredictor(digits, LINEAR)(images().flatten(1), t, t)
    assert torch.allclose(eps.flatten(1), exact, atol=1e-4)


def test_a_batch_may_mix_classes_and_times(digits, classes):
    network = MixtureNetwork(digits, LINEAR, (1, 8, 8), classes)
    x, labels, times = images(), torch.tensor([0, 1, 2, 0]), torch.tensor([900.0, 500.5, 500.5, 0.0])
    mixed = network(x, times, class_labels=labels).sample
    for k, label in enumerate(labels):
        alone = network(x[k : k + 1], times[k], class_labels=label[None]).sample
        assert torch.allclose(mixed[k], alone[0], atol=1e-5)
    plain = network(x, 500.5).sample
    assert torch.allclose(plain[2], mixed[2], atol=1e-5), "the label behind the last class means no class"
    assert not torch.allclose(plain[1], mixed[1], atol=1e-3)


def test_a_pipeline_takes_it(digits):
    network = MixtureNetwork(digits, LINEAR, (1, 8, 8))
    pipeline = diffusers.DDIMPipeline(network, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    assert made.shape == (2, 8, 8, 1)


def test_diffusers_ddpm_pipeline_gives_every_scheduler_a_generator_that_not_all_take(digits):
    pipeline = diffusers.DDPMPipeline(MixtureNetwork(digits, LINEAR, (1, 8, 8)), diffusers.UniPCMultistepScheduler())
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'generator'"):
        pipeline(1, num_inference_steps=4)


def test_wrong_values(digits):
    with pytest.raises(BadValue, match="between 0 and 9, got 10"):
        digits_mixture(10)
    with pytest.raises(BadValue, match=r"'score'.*eps, v, x0"):
        MixtureNetwork(digits, LINEAR, (1, 8, 8), kind="score")
