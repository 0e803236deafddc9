"""Guidance: identities on mixtures whose eps and class are known exactly, and tuning under it."""

from __future__ import annotations

import pytest
import torch
from solver_helpers import LINEAR, float64, points
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.grids import make_grid
from tt_lib.guidance import ClassifierFree
from tt_lib.sampling import Sampler
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import GaussianMixture, MixturePredictor
from tt_lib.tuning import STRATEGIES, TuneConfig, tune

BOTH = GaussianMixture([0.3, 0.7], [[-0.6, 0.2], [0.7, -0.1]], [0.2, 0.3])
EXACT = MixturePredictor(BOTH, LINEAR)
CONDITIONAL = MixturePredictor(GaussianMixture([1.0], [[-0.6, 0.2]], [0.2]), LINEAR)  # the first class alone
T, TAU = float64(0.6), float64(0.5)
pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_the_scales_of_classifier_free_guidance_mean():
    x = points(5, 2)
    plain, conditional = EXACT(x, T, TAU), CONDITIONAL(x, T, TAU)
    for scale, expected in ((0, plain), (1, conditional), (3, 3 * conditional - 2 * plain)):
        assert torch.allclose(ClassifierFree(CONDITIONAL, EXACT, scale)(x, T, TAU), expected)


def test_differentiable_in_state_and_tau_and_tuned():
    predictor, x = ClassifierFree(CONDITIONAL, EXACT, 2.0), (0.6 * points(2, 2)).requires_grad_(True)
    tau = (TAU + 1e-4).clone().requires_grad_(True)
    assert gradcheck(lambda x, tau: predictor(x, T, tau), (x, tau), rtol=1e-3)
    sampler = Sampler(predictor, LINEAR, make_solver("ddim"), make_grid("uniform", 4, LINEAR), (2,))
    for strategy in STRATEGIES:
        config = TuneConfig(strategy=strategy, iterations=5, lr=0.01)
        timing = tune(sampler, BOTH.sample(8, torch.Generator().manual_seed(0)), config).timing
        assert timing.ratios[0] != 1
        run = drive(sampler.solver(points(5, 2), sampler.grid, LINEAR), predictor, timing.taus)
        assert run.nfe == 4 and run.x.isfinite().all(), "a guided evaluation counts once"
