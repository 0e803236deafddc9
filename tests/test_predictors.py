"""Predictors: what reaches a network, what its answer means at t, and batches in pieces."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from solver_helpers import LINEAR, SCHEDULES, float64, points
from torch import Tensor, nn

from tt_lib.errors import BadValue
from tt_lib.networks.unet import make_unet
from tt_lib.predictors import KINDS, Chunked, EpsPredictor, to_eps, to_v, to_x0
from tt_lib.toy import GaussianMixture, MixturePredictor

BOTH = GaussianMixture([0.3, 0.7], [[-0.6, 0.2], [0.7, -0.1]], [0.2, 0.3])
T, TAU = float64(0.6), float64(0.5)
pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Writes down its input; answers in a diffusers-like object if ``wrap``."""

    def __init__(self, wrap: bool = False) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.layer.weight, 0.3)
        self.wrap, self.seen, self.dtype = wrap, [], None

    def forward(self, x, c):
        self.seen.append((x, c))
        answer = self.layer(x)
        self.dtype = answer.dtype
        answer = answer + torch.sin(c / 100).to(answer.dtype).reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=answer) if self.wrap else answer


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("wrap", [False, True])
def test_the_network_is_conditioned_on_a_fractional_tensor_of_tau(name, wrap):
    network, x = Network(wrap), points(3, 4).reshape(3, 1, 2, 2).float()
    answer = EpsPredictor(network, SCHEDULES[name])(x, float64(0.9), float64(0.34567))
    (seen, c) = network.seen[0]
    index = 0.34567 * 999 if name == "continuous-linear" else 0.34567 * 1000 - 1
    assert isinstance(c, Tensor) and c.shape == (3,) and c.dtype == torch.float32
    assert c.tolist() == pytest.approx([index] * 3, rel=1e-6) and c[0] != c[0].round()
    assert torch.equal(seen, x) and answer.shape == x.shape and answer.dtype == torch.float32


def test_each_sample_may_have_its_own_tau_and_t_does_not_reach_the_network():
    network, x = Network(), torch.zeros(2, 1, 2, 2)
    first, second = (EpsPredictor(network, LINEAR)(x, float64(t), float64([0.3, 0.6])) for t in (0.9, 0.1))
    assert network.seen[0][1].tolist() == pytest.approx([299, 599])
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_gradients_reach_tau_through_the_network():
    tau = float64(0.4).requires_grad_(True)
    EpsPredictor(Network(), LINEAR)(torch.zeros(1, 1, 1, 1), T, tau).sum().backward()
    # d sin((1000 tau - 1) / 100) / dtau
    assert tau.grad.item() == pytest.approx(10 * math.cos(3.99), rel=1e-5)


def test_bf16_runs_the_network_in_bf16_and_answers_in_float32():
    network, x = Network(), points(2, 16).reshape(2, 1, 4, 4).float()
    exact = EpsPredictor(network, LINEAR)(x, T, T)
    rough = EpsPredictor(network, LINEAR, bf16=True)(x, T, T)
    assert network.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert network.seen[1][1].dtype == torch.float32, "the time itself is not rounded to 8 bits"
    assert 0 < (rough - exact).abs().max() < 0.02


def test_a_unet_of_diffusers_hears_the_fraction():
    torch.manual_seed(0)
    predictor = EpsPredictor(make_unet("digits", 32).eval(), LINEAR)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert not torch.equal(predictor(x, T, T), predictor(x, T, T + 0.0004))


# ---- what an answer means


class ExactNetwork:
    """A network of any kind: what the exact eps at the index's time says of x at ``level``, by default that time."""

    def __init__(self, kind: str, level: Tensor | None = None) -> None:
        self.kind, self.level = kind, level

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        tau = ((c.double() + 1) / 1000)[:, None]
        at = tau if self.level is None else self.level
        eps = BOTH.eps(x.double(), tau[:, 0], LINEAR)
        alpha, sigma = LINEAR.alpha(at), LINEAR.sigma(at)
        x0 = (x - sigma * eps) / alpha
        kinds = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma, "velocity": eps - x0}
        return kinds[self.kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "edm"])
def test_a_conversion_uses_t(kind):
    """The network believes tau; what its answer means for a state at noise level t is asked at t."""
    x = points(5, 2)
    untuned = EpsPredictor(ExactNetwork(kind), LINEAR, kind=kind)(x, T, T)
    assert torch.allclose(untuned.double(), BOTH.eps(x, T, LINEAR), atol=2e-5)
    expected = BOTH.eps(x, TAU, LINEAR)
    at_t = EpsPredictor(ExactNetwork(kind, T), LINEAR, kind=kind)(x, T, TAU)
    assert torch.allclose(at_t.double(), expected, atol=2e-5)
    mixed = EpsPredictor(ExactNetwork(kind), LINEAR, kind=kind)(x, T, TAU).double()
    assert torch.allclose(mixed, expected, atol=2e-5) == (kind == "eps")


def test_conversions_undo_each_other_and_take_one_time_a_sample():
    x, eps, times = points(5, 2), points(5, 2, seed=1), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x0 = to_x0(eps, x, times, LINEAR)
    assert torch.allclose(to_eps("x0", x0, x, times, LINEAR), eps)
    v = to_v(eps, x0, LINEAR.alpha(times), LINEAR.sigma(times))
    assert torch.allclose(to_eps("v", v, x, times, LINEAR), eps)
    for make in (lambda: to_eps("noise", eps, x, times, LINEAR), lambda: EpsPredictor(Network(), LINEAR, kind="noise")):
        with pytest.raises(BadValue, match=r"'noise'.*edm, eps, score, v, velocity, x0"):
            make()


def test_a_networks_variance_is_left_aside():
    x = points(5, 2).reshape(5, 2, 1, 1)
    predictor = EpsPredictor(lambda x, c: torch.cat([x, 7 + x], dim=1), LINEAR)
    assert torch.equal(predictor(x, T, T), x.float())


@pytest.mark.parametrize("size, fill, sizes", [(3, False, [3, 3, 1]), (3, True, [3, 3, 3]), (9, True, [9])])
@pytest.mark.parametrize("vector", [False, True])
def test_chunks_answer_as_the_whole(size, fill, sizes, vector):
    x, exact, seen = points(7, 2), MixturePredictor(BOTH, LINEAR), []
    t = torch.linspace(0.2, 0.9, 7, dtype=torch.float64) if vector else T

    def counted(x, t, tau):
        seen.append(len(x))
        return exact(x, t, tau)

    answer = Chunked(counted, size, fill)(x, t, 0.9 * t)
    assert seen == sizes and torch.allclose(answer, exact(x, t, 0.9 * t), rtol=1e-12, atol=1e-14)
