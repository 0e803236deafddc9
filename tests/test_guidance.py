"""Guidance and clipping: identities on mixtures whose eps and class are known exactly, and tuning under each."""

from __future__ import annotations

import pytest
import torch
from solver_helpers import LINEAR, float64, points
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.guidance import ClassifierFree, Clipped
from tt_lib.predictors import to_x0
from tt_lib.sampling import Sampler
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import GaussianMixture, MixturePredictor
from tt_lib.tuning import STRATEGIES, TuneConfig, tune

BOTH = GaussianMixture([0.3, 0.7], [[-0.6, 0.2], [0.7, -0.1]], [0.2, 0.3])
EXACT = MixturePredictor(BOTH, LINEAR)
CONDITIONAL = MixturePredictor(GaussianMixture([1.0], [[-0.6, 0.2]], [0.2]), LINEAR)  # the first class alone
T, TAU = float64(0.6), float64(0.5)
WRAPPED = {
    "classifier-free": ClassifierFree(CONDITIONAL, EXACT, 2.0),
    "clipped": Clipped(EXACT, LINEAR),
    "thresholded": Clipped(EXACT, LINEAR, 0.9),
}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_the_scales_of_classifier_free_guidance_mean():
    x = points(5, 2)
    plain, conditional = EXACT(x, T, TAU), CONDITIONAL(x, T, TAU)
    for scale, expected in ((0, plain), (1, conditional), (3, 3 * conditional - 2 * plain)):
        assert torch.allclose(ClassifierFree(CONDITIONAL, EXACT, scale)(x, T, TAU), expected)


@pytest.mark.parametrize("name", WRAPPED)
def test_differentiable_in_state_and_tau_and_tuned(name):
    predictor, x = WRAPPED[name], (0.6 * points(2, 2)).requires_grad_(True)
    tau = (TAU + 1e-4).clone().requires_grad_(True)
    assert gradcheck(lambda x, tau: predictor(x, T, tau), (x, tau), rtol=1e-3)
    sampler = Sampler(predictor, LINEAR, make_solver("ddim"), make_grid("uniform", 4, LINEAR), (2,))
    for strategy in STRATEGIES:
        config = TuneConfig(strategy=strategy, iterations=5, lr=0.01)
        timing = tune(sampler, BOTH.sample(8, torch.Generator().manual_seed(0)), config).timing
        assert timing.ratios[0] != 1
        run = drive(sampler.solver(points(5, 2), sampler.grid, LINEAR), predictor, timing.taus)
        assert run.nfe == 4 and run.x.isfinite().all(), "a guided evaluation counts once"


def test_clipping_derives_eps_again():
    x = points(5, 2)

    def rough(x, t, tau):
        return 0.85 * EXACT(x, t, tau)

    eps = Clipped(rough, LINEAR)(x, T, TAU)
    plain = to_x0(rough(x, T, TAU), x, T, LINEAR)
    inside = (plain.abs() <= 1).all(1)
    assert inside.any() and not inside.all()
    assert torch.allclose(to_x0(eps, x, T, LINEAR), plain.clamp(-1, 1))
    assert torch.allclose(eps[inside], rough(x, T, TAU)[inside])
    assert not torch.allclose(eps[~inside], rough(x, T, TAU)[~inside])


def test_dynamic_thresholding_is_imagens():
    x = 4 * points(6, 16, seed=1).reshape(6, 1, 4, 4)
    predictor = Clipped(lambda x, t, tau: 0.3 * x, LINEAR, 0.8)
    plain, thresholded = to_x0(0.3 * x, x, T, LINEAR), to_x0(predictor(x, T, T), x, T, LINEAR)
    for image, result in zip(plain, thresholded, strict=True):
        s = max(torch.quantile(image.abs(), 0.8).item(), 1.0)
        assert torch.allclose(result, image.clamp(-s, s) / s)
    with pytest.raises(BadValue, match=r"percentile must lie in \(0, 1\], got 1\.5"):
        Clipped(EXACT, LINEAR, 1.5)
