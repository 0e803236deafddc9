"""Noise and sampling: which random stream a sample has, what a sampler checks, and samplers by name."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from solver_helpers import LINEAR
from torch import nn

from tt_lib import noise
from tt_lib.engine import drive
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import make_grid
from tt_lib.networks.unet import Model
from tt_lib.noise import HELD_OUT_NOISE, SampleNoise, StartNoise, check_seeds, derive_seed
from tt_lib.sampling import Sampler, batches, fine_sampler, make_sampler, run_batches, sample_images
from tt_lib.solvers.registry import make_solver
from tt_lib.study.workbench import HELD_OUT
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d

RING = ring_2d(3, scale=0.2)
EXACT = MixturePredictor(RING, LINEAR)
GRID = make_grid("uniform", 4, LINEAR)
pytestmark = pytest.mark.usefixtures("one_thread")


def sampler(eta: float = 0.0, grid=GRID, **options) -> Sampler:
    solver = make_solver("ddim", eta=eta) if eta else make_solver("ddim")
    return Sampler(EXACT, LINEAR, solver, grid, (2,), **options)


TIMING = sampler(model="ring", weights="aaaa").make_timing("made up", (0.7, 0.5, 0.2, 0.001))


# ---- noise


def test_a_seed_has_its_own_stream():
    three = SampleNoise([5, 6, 7])
    first, second = three.start((2, 2)), three(torch.empty(3, 2, 2))
    assert first.shape == second.shape == (3, 2, 2) and first.dtype == torch.float32
    assert len({tuple(row.flatten().tolist()) for row in torch.cat([first, second])}) == 6
    alone = SampleNoise([6])
    assert torch.equal(alone.start((2, 2))[0], first[1]) and torch.equal(alone(first[:1])[0], second[1])
    assert torch.equal(SampleNoise([7, 5]).start((2, 2)), first[[2, 0]])
    assert three(first.double()).dtype == torch.float64
    draws = SampleNoise(range(2000)).start((5,))
    assert (draws.mean().item(), draws.var().item()) == pytest.approx((0, 1), abs=0.07)


@pytest.mark.parametrize(
    ("seed", "count"), [(-1, 1), (10**9, 1), (999_999_999, 2), (2**32, 1), (2**64, 1), (10**30, 1), (0, 10**9 + 1)]
)
def test_seeds_that_there_are_not(seed, count):
    """torch's CPU generator takes seed + 2**32 for seed, and from 10^9 on are the images for tuning."""
    with pytest.raises(BadValue, match=rf"from 0 to 999,999,999, got the seeds? {seed}.*give a seed in this range"):
        check_seeds(seed, count)


def test_seeds_are_whole_numbers():
    check_seeds(0, 10**9)
    check_seeds(np.int64(999_999_999))
    for seed in (1.0, "1", True, None, math.nan):
        with pytest.raises(BadValue, match=f"a seed is a whole number, got {seed!r}"):
            check_seeds(seed)
    for seed in (-1, 2**32, 0.5, False):
        with pytest.raises(BadValue, match="seed"):
            sampler()([3, seed])
        with pytest.raises(BadValue, match="seed"):
            sample_images(sampler(), 2, first_seed=seed)
    assert torch.equal(sampler()([np.int64(3)]).x, sampler()([3]).x)
    with pytest.raises(BadValue, match="999999999 to 1000000000 of 2 samples"):
        sample_images(sampler(), 2, first_seed=999_999_999)


def test_the_projects_own_seeds_are_apart_and_fit_32_bits():
    """Users' seeds, then each range up to the next: with all that is added to its first seed."""
    users = noise.GENERATED_FIRST_SEED
    added = {
        "GENERATED": noise.HELD_OUT_FIRST_SEED - noise.GENERATED_FIRST_SEED,  # Bench.tuning_images checks
        "HELD_OUT": HELD_OUT,
        "GAMMA": noise.LEARN_FIRST_SEED - noise.GAMMA_FIRST_SEED,  # estimate_gamma checks seed + images
        "LEARN": 1000 * 100_000,
        "VALIDATION": 1000 * 100_000,
    }
    names = {name.removesuffix("_FIRST_SEED") for name in vars(noise) if name.endswith("_FIRST_SEED")}
    assert names == set(added)
    first = {name: getattr(noise, f"{name}_FIRST_SEED") for name in added}
    ranges = sorted([(0, users), *((first[name], first[name] + added[name]) for name in added)])
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges)) and ranges[-1][1] <= 2**32


def test_derived_seeds_differ_where_torch_can_see_it():
    derived = {derive_seed(seed, counter) for seed in range(20) for counter in range(200)}
    assert len(derived) == 20 * 200 and all(0 <= seed < 2**32 for seed in derived)
    # Those of seeds that differ by less than 4,000 lie a million apart.
    first = [derive_seed(seed, 0) for seed in range(1, 4000)]
    assert min(min(each, 2**32 - each) for each in first) >= 1_000_000
    # The noise on a gate's images is not that on the images that are tuned on.
    assert all(derive_seed(seed, HELD_OUT_NOISE) != seed for seed in range(0, 10**9, 99_991))


# ---- samplers


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_seed_gives_the_same_image_in_any_batch_and_order(eta):
    whole = sampler(eta)(range(7)).x
    assert whole.dtype == torch.float32 and whole.shape == (7, 2)
    for size in (1, 3, 7):
        parts = torch.cat([sampler(eta)(seeds).x for seeds in batches(0, 7, size)])
        assert torch.allclose(parts, whole, rtol=0, atol=1e-6)
    assert torch.allclose(sampler(eta)([6, 2]).x, whole[[6, 2]], rtol=0, atol=1e-6)
    assert len(whole.unique(dim=0)) == 7, "seeds differ"


def test_eta_draws_after_the_start_and_not_the_start_again():
    seen = []

    def answer(x, t, tau):
        seen.append(x.clone())
        return torch.zeros_like(x)

    solver, grid = make_solver("ddim", eta=1.0), make_grid("uniform", 2, LINEAR)
    Sampler(answer, LINEAR, solver, grid, (2,))([11])
    stream = SampleNoise([11])
    start, step = stream.start((2,)), stream.start((2,))
    assert torch.equal(seen[0], start)
    alpha, sigma = LINEAR.alpha(grid.tensor()[:2]), LINEAR.sigma(grid.tensor()[:2])
    c = sigma[1] / sigma[0] * (1 - (alpha[0] / alpha[1]) ** 2).sqrt()
    assert torch.allclose(seen[1], (alpha[1] / alpha[0] * start + c * step).float(), rtol=1e-5)


def test_a_start_may_be_given_to_a_deterministic_sampler_only():
    start = SampleNoise(range(3)).start((2,))
    assert torch.equal(sampler()(range(3), start=start).x, sampler()(range(3)).x)
    with pytest.raises(BadValue, match="give seeds, not start"):
        sampler(1.0)(range(3), start=start)


def test_the_sampler_uses_its_timing_and_checks_it():
    plain, tuned = (
        sampler()(range(3), keep=True),
        sampler(timing=TIMING, model="ring", weights="aaaa")(range(3), keep=True),
    )
    assert len(tuned.trajectory) == tuned.nfe == plain.nfe == 4
    expected = drive(make_solver("ddim")(SampleNoise(range(3)).start((2,)), GRID, LINEAR), EXACT, TIMING.taus)
    assert torch.equal(tuned.x, expected.x) and not torch.equal(tuned.x, plain.x)
    for options in (
        {"model": "other"},
        {"eta": 1.0},
        {"grid": make_grid("uniform", 5, LINEAR)},
        {"weights": "bbbb"},
        {"weights": ""},
    ):
        with pytest.raises(TimingMismatch):
            sampler(timing=TIMING, **{"model": "ring", "weights": "aaaa", **options})


def test_the_fine_sampler_ends_where_the_flow_does():
    tuned = sampler(timing=TIMING, model="ring", weights="aaaa")
    fine, start = fine_sampler(tuned, 60), SampleNoise(range(3)).start((2,)).double()
    assert fine.timing is None and fine.grid.times[0] == GRID.times[0] and fine(range(3)).nfe == 60
    exact = exact_flow(RING, start, GRID.times[0], 0.0, LINEAR)
    few, many = ((fine_sampler(tuned, steps)(range(3)).x - exact).norm() for steps in (20, 60))
    assert many < 0.02 and many < few / 3


def test_samplers_by_name():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.5))

        def forward(self, x, c):
            return self.factor * x

    model = Model(Half().requires_grad_(False), LINEAR, (1, 2, 2), "half", "ab")
    made = make_sampler(model, "heun", "quadratic", 5)
    assert (made.solver.name, made.grid.name, made.grid.steps) == ("heun", "quadratic", 3)
    assert (made.model, made.weights, made.shape, made.device.type) == ("half", "ab", (1, 2, 2), "cpu")
    assert made([0]).nfe == 5 == len(made.evaluations)
    timing = made.make_timing("mine", [0.9 * each.t for each in made.evaluations])
    assert make_sampler(model, "heun", "quadratic", 5, timing).timing is timing
    with pytest.raises(TimingMismatch):
        make_sampler(model, "ddim", "quadratic", 5, timing)
    assert make_sampler(model, eta=0.5).solver.eta == 0.5


# ---- many samples


def test_batches():
    assert [list(seeds) for seeds in batches(10, 7, 3)] == [[10, 11, 12], [13, 14, 15], [16]]
    for count, size in ((0, 4), (-1, 4), (4, 0)):
        with pytest.raises(BadValue, match=f"n {count} and batch {size}"):
            list(batches(0, count, size))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_images_of_many_seeds(eta):
    heard, whole = [], sampler(eta)(range(5, 12)).x
    options = {"first_seed": 5, "batch": 3}
    images = sample_images(sampler(eta), 7, **options, progress=lambda *words: heard.append(words))
    assert torch.allclose(images, whole, rtol=0, atol=1e-6)
    assert heard == [(done, 7, "4 evaluations an image") for done in (3, 6, 7)]
    kept = StartNoise((2,), "cpu")
    parts = list(batches(5, 7, 3))
    for _ in range(2):
        runs = [run.x for _, run in run_batches(sampler(eta), parts, kept)]
        assert torch.allclose(torch.cat(runs), whole, rtol=0, atol=1e-6)
    assert list(kept.kept) == ([] if eta else parts)
