"""Kinds of prediction, guidance and clipping: identities on mixtures whose eps, x0 and class are known exactly."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.guidance import ClassifierFree, Clipped
from tt_lib.predictors import KINDS, EpsPredictor, to_eps, to_v, to_x0
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import GaussianMixture, MixturePredictor
from tt_lib.tuning import TuneConfig, tune

LINEAR = make_schedule("linear")
WEIGHTS, MEANS, SCALES = [0.3, 0.7], [[-0.6, 0.2], [0.7, -0.1]], [0.2, 0.3]
BOTH = GaussianMixture(WEIGHTS, MEANS, SCALES)
ONE = GaussianMixture([1.0], MEANS[:1], SCALES[:1])  # the class y = 0 alone
EXACT, CONDITIONAL = MixturePredictor(BOTH, LINEAR), MixturePredictor(ONE, LINEAR)
pytestmark = pytest.mark.usefixtures("one_thread")
T, TAU = (torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.5))


def states(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Network:
    """A network of any kind, told the index of a time: what the exact eps at that time says of x at ``level``."""

    def __init__(self, kind: str, level: torch.Tensor | None = None) -> None:
        self.kind, self.level = kind, level

    def __call__(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        tau = ((c.double() + 1) / 1000)[:, None]
        at = tau if self.level is None else self.level
        eps = BOTH.eps(x.double(), tau[:, 0], LINEAR)
        alpha, sigma = LINEAR.alpha(at), LINEAR.sigma(at)
        x0 = (x - sigma * eps) / alpha
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma}[self.kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_the_same_noise_at_t(kind):
    x = states()
    found = EpsPredictor(Network(kind), LINEAR, kind=kind)(x, T, T)
    assert found.dtype == torch.float32 or found.dtype == torch.float64
    assert torch.allclose(found.double(), BOTH.eps(x, T, LINEAR), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_uses_t(kind):
    """The network believes tau; what its answer means for a state at noise level t is asked at t."""
    x = states()
    expected = BOTH.eps(x, TAU, LINEAR)
    at_t = EpsPredictor(Network(kind, T), LINEAR, kind=kind)(x, T, TAU)
    assert torch.allclose(at_t.double(), expected, atol=2e-5)
    mixed = EpsPredictor(Network(kind), LINEAR, kind=kind)(x, T, TAU).double()
    assert torch.allclose(mixed, expected, atol=2e-5) == (kind == "eps")


def test_conversions_undo_each_other_and_take_one_time_a_sample():
    x, eps = states(), states().flip(0)
    times = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.allclose(to_eps("x0", to_x0(eps, x, times, LINEAR), x, times, LINEAR), eps)
    alpha, sigma = LINEAR.alpha(times), LINEAR.sigma(times)
    assert torch.allclose(to_eps("v", to_v(eps, to_x0(eps, x, times, LINEAR), alpha, sigma), x, times, LINEAR), eps)
    with pytest.raises(BadValue, match=r"'noise'.*eps, score, v, x0"):
        to_eps("noise", eps, x, times, LINEAR)


def test_a_networks_variance_is_left_aside():
    def network(x, c):
        return torch.cat([x, 7 + x], dim=1)

    x = states().reshape(5, 2, 1, 1)
    assert torch.equal(EpsPredictor(network, LINEAR)(x, T, T), x.float())


# ---- guidance


def test_what_the_scales_of_classifier_free_guidance_mean():
    x = states()
    plain, conditional = EXACT(x, T, TAU), CONDITIONAL(x, T, TAU)
    for scale, expected in ((0, plain), (1, conditional), (3, 3 * conditional - 2 * plain)):
        assert torch.allclose(ClassifierFree(CONDITIONAL, EXACT, scale)(x, T, TAU), expected)


WRAPPED = {
    "classifier-free": ClassifierFree(CONDITIONAL, EXACT, 2.0),
    "clipped": Clipped(EXACT, LINEAR),
    "thresholded": Clipped(EXACT, LINEAR, 0.9),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_differentiable_in_state_and_tau(name):
    predictor, x = WRAPPED[name], 0.6 * states(2)
    assert gradcheck(
        lambda x, tau: predictor(x, T, tau),
        (x.requires_grad_(True), (TAU + 1e-4).clone().requires_grad_(True)),
        rtol=1e-3,
    )


@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_timing_is_tuned_under_every_kind(name, strategy):
    grid, solver, x0 = make_grid("uniform", 4, LINEAR), make_solver("ddim"), BOTH.sample(8)
    for optimiser in ("adam", "search"):
        config = TuneConfig(strategy=strategy, optimiser=optimiser, iterations=5, lr=0.01)
        timing = tune(WRAPPED[name], LINEAR, solver, grid, x0, config).timing
        assert timing.ratios[0] != 1
        run = drive(solver(states(), grid, LINEAR), WRAPPED[name], timing.taus)
        assert run.nfe == 4 and run.x.isfinite().all(), "a guided evaluation counts once"


# ---- clipping


def test_clipping_derives_eps_again():
    x = states()

    def rough(x, t, tau):
        return 0.85 * EXACT(x, t, tau)

    eps = Clipped(rough, LINEAR)(x, T, TAU)
    plain = to_x0(rough(x, T, TAU), x, T, LINEAR)
    assert (plain.abs() > 1).any() and (plain.abs() < 1).all(1).any()
    assert torch.allclose(to_x0(eps, x, T, LINEAR), plain.clamp(-1, 1))
    inside = (plain.abs() <= 1).all(1)
    assert torch.allclose(eps[inside], rough(x, T, TAU)[inside])
    assert not torch.allclose(eps[~inside], rough(x, T, TAU)[~inside])


def test_dynamic_thresholding_is_imagens():
    x = 4 * torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    predictor = Clipped(lambda x, t, tau: 0.3 * x, LINEAR, 0.8)
    plain, found = to_x0(0.3 * x, x, T, LINEAR), to_x0(predictor(x, T, T), x, T, LINEAR)
    for image, result in zip(plain, found, strict=True):
        s = max(torch.quantile(image.abs(), 0.8).item(), 1.0)
        assert torch.allclose(result, image.clamp(-s, s) / s)
    with pytest.raises(BadValue, match=r"percentile must lie in \(0, 1\], got 1\.5"):
        Clipped(EXACT, LINEAR, 1.5)
