"""Learning grid, conditioning times and gains: bounded knobs that begin as the identity; no result that is worse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tt_lib.datasets import to_float
from tt_lib.errors import BadValue, CorruptFile, NothingLearned
from tt_lib.grids import make_grid
from tt_lib.networks.feature_nets import FeatureNet
from tt_lib.sampling import Sampler
from tt_lib.schedules import ContinuousLinearVP, linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, ring_2d
from tt_lib.tuning.learn import (
    KNOBS,
    PIXELS,
    SMALLEST_SHARE,
    Knobs,
    LearnConfig,
    converged_sampler,
    feature_distance,
    learn,
)

SMALL = LearnConfig(noises=64, validation=64, batch=32, iterations=24, lr=0.1)


def toy_sampler(solver: str = "ddim", grid: str = "uniform", nfe: int = 4) -> Sampler:
    schedule = linear_betas()
    made, steps = make_solver(solver).for_nfe(nfe)
    return Sampler(
        MixturePredictor(ring_2d(), schedule), schedule, made, make_grid(grid, steps, schedule), (2,), model="ring"
    )


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "logsnr"])
@pytest.mark.parametrize("schedule", [linear_betas(), ContinuousLinearVP()])
def test_knobs_begin_as_the_identity(grid, schedule):
    start = make_grid(grid, 5, schedule)
    knobs = Knobs(start, 5, schedule, KNOBS)
    lam, moved = (schedule.lam(times[:-1]) for times in (start.tensor(), knobs.times()))
    # Only a share of 0 begins elsewhere, by twice the smallest share of the range of lambda.
    assert (lam - moved).abs().max() <= 2 * SMALLEST_SHARE * (knobs.high - knobs.low) + 1e-9
    assert knobs.times()[-1] == 0
    for t in start.tensor()[:-1]:
        assert knobs.tau(0, t).item() == pytest.approx(t.item(), rel=1e-9)
    assert knobs.gains().tolist() == [1.0] * 5


def test_knobs_are_bounded_whatever_their_parameters():
    schedule = linear_betas()
    knobs = Knobs(make_grid("uniform", 4, schedule), 4, schedule, KNOBS)
    with torch.no_grad():
        knobs.parameters["grid"].copy_(torch.tensor([100.0, -100, 50, -50, 0]))
        knobs.parameters["timing"].copy_(torch.tensor([100.0, -100, 100, -100]))
        knobs.parameters["gain"].copy_(torch.tensor([100.0, -100, 0, 1]))
    times = knobs.times().detach()
    assert (times.diff() < 0).all() and times[0] <= 1 and times[-2] >= schedule.t_min and times[-1] == 0
    for k, t in enumerate(times[:-1]):
        tau = knobs.tau(k, t).item()
        assert schedule.t_min - 1e-12 <= tau <= 1
        assert abs(float(schedule.lam(tau) - schedule.lam(t))) <= 1.5 + 1e-9
    assert knobs.gains().tolist() == pytest.approx([1.2, 0.8, 1, 1 + 0.2 * math.tanh(1)])


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_that_is_off_stays(name):
    config = LearnConfig((name,), noises=32, validation=32, batch=16, iterations=12, lr=0.05)
    sampler = toy_sampler()
    timing = learn(sampler, PIXELS, config).timing
    assert timing.name == f"learned-{name}"
    assert (timing.grid, timing.grid_times == sampler.grid.times) == (
        ("learned", False) if name == "grid" else ("uniform", True)
    )
    assert (timing.taus == pytest.approx(timing.times, rel=1e-9)) == (name != "timing")
    assert bool(timing.gains) == (name == "gain")


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc,final=lower", "heun"])
def test_learned_samplers_end_nearer_to_the_converged_solution(solver):
    sampler = toy_sampler(solver, nfe=5)
    result = learn(sampler, PIXELS, SMALL)
    tuning = result.timing.tuning
    assert tuning["validation_learned"] < 0.7 * tuning["validation_start"]
    # What is stored makes those samples: from other noises, the learned sampler is nearer, too.
    grid = type(sampler.grid)(result.timing.grid, result.timing.grid_times)
    learned = replace(sampler, grid=grid, timing=result.timing)
    seeds = range(200)
    exact = converged_sampler(sampler)(seeds).x
    distances = [float(PIXELS.function(each(seeds).x, exact).mean()) for each in (sampler, learned)]
    assert distances[1] < 0.8 * distances[0]


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole = learn(toy_sampler(), PIXELS, SMALL)
    assert whole.history["iteration"].tolist() == list(range(1, 25))
    assert whole.history["loss"].tail(5).mean() < whole.history["loss"].head(5).mean()
    assert whole.history["validation"].notna().sum() == 12

    class Stop(Exception):
        pass

    def stop(done: int, total: int, message: str) -> None:
        if done == 13:
            raise Stop

    with pytest.raises(Stop):
        learn(toy_sampler(), PIXELS, SMALL, state=tmp_path / "state", progress=stop)
    resumed = learn(toy_sampler(), PIXELS, SMALL, state=tmp_path / "state")
    assert resumed.timing.taus == whole.timing.taus and resumed.timing.grid_times == whole.timing.grid_times
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()
    with pytest.raises(BadValue, match="state of another run"):
        learn(toy_sampler(nfe=5), PIXELS, SMALL, state=tmp_path / "state")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: torch.zeros(3),
        lambda content: content | {"now": {}},
        lambda content: {key: value for key, value in content.items() if key != "optimizer"},
        lambda content: content | {"iteration": 99},
        lambda content: content | {"history": content["history"][:-1]},
    ],
)
def test_a_damaged_state_is_one_error(tmp_path, damage):
    state, config = tmp_path / "state", replace(SMALL, iterations=2)
    learn(toy_sampler(), PIXELS, config, state=state)
    torch.save(damage(torch.load(state, weights_only=True)), state)
    with pytest.raises(CorruptFile, match="state of learning") as caught:
        learn(toy_sampler(), PIXELS, config, state=state)
    assert "\n" not in str(caught.value)


def test_nothing_that_is_no_better_is_given_back():
    # One enormous step throws every knob to its bound.
    config = LearnConfig(noises=16, validation=16, batch=8, iterations=1, lr=1e6)
    with pytest.raises(NothingLearned, match="came no nearer to the converged solution than its start"):
        learn(toy_sampler(nfe=10), PIXELS, config)


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(BadValue, match="ddpm: it draws noise"):
        learn(toy_sampler("ddpm"), PIXELS, SMALL)
    timing = learn(toy_sampler(), PIXELS, LearnConfig(("timing",), 32, 32, 16, 12, 0.05)).timing
    with pytest.raises(BadValue, match="begins from an untuned sampler"):
        learn(replace(toy_sampler(), timing=timing), PIXELS, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knobs": ()}, "knobs must be one or more"),
        ({"iterations": 0}, "iterations of learning must be at least 1, got 0"),
        ({"lr": math.nan}, "lr must be a number, got nan"),
        ({"noises": 200_000}, "at most 100,000, got 200,000"),
        ({"validation": True}, "validation must be a whole number, got True"),
        ({"seed": 1000}, "seed of learning must be at most 999, got 1,000"),
    ],
)
def test_choices_out_of_range_are_refused(changes, message):
    with pytest.raises(BadValue, match=message):
        LearnConfig(**changes)


def test_the_feature_distance_is_the_formula():
    torch.manual_seed(0)
    network = FeatureNet((4, 8), in_channels=1).eval()
    x, y = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    expected = torch.zeros(3)
    for a, b in zip(network.maps(x), network.maps(y), strict=True):
        a, b = a / a.square().sum(1, keepdim=True).sqrt(), b / b.square().sum(1, keepdim=True).sqrt()
        expected += (a - b).square().sum(1).mean((1, 2))
    distance = feature_distance(network, "digits-resnet")
    assert torch.allclose(distance.function(x, y), expected, rtol=1e-5)
    assert torch.equal(distance.function(x, x), torch.zeros(3))
    pixels = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(network.norm(network.maps(to_float(pixels))[-1]).relu().mean((2, 3)), network(pixels))
