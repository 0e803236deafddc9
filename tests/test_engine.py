"""The engine, predictors, noise and sampling: what is counted, in which order, from which random stream."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tt_lib import engine
from tt_lib.engine import Request, drive, replay
from tt_lib.errors import BadValue, NotFinite, TimingMismatch
from tt_lib.grids import make_grid
from tt_lib.noise import SampleNoise, derive_seed
from tt_lib.predictors import Chunked, EpsPredictor
from tt_lib.sampling import Sampler, batches, sample_pixels
from tt_lib.schedules import make_schedule
from tt_lib.solvers.orders import one_each
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.timing import Timing
from tt_lib.toy import MixturePredictor, ring_2d

LINEAR = make_schedule("linear")
RING = ring_2d(3, scale=0.2)
EXACT = MixturePredictor(RING, LINEAR)
ONE_EACH = sorted(name for name, solver in SOLVERS.items() if not solver.stochastic and solver.plan is one_each)
pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """A predictor that writes down what it is asked, and answers as another one."""

    def __init__(self, inner=EXACT) -> None:
        self.inner, self.calls = inner, []

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        self.calls.append((x, t, tau))
        return self.inner(x, t, tau)

    @property
    def times(self) -> list:
        return [t.tolist() for _, t, _ in self.calls]

    @property
    def taus(self) -> list:
        return [tau.tolist() for _, _, tau in self.calls]


def points(n: int = 4, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- drive


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_are_counted_and_asked_at_the_grids_times(name, steps):
    grid, recorder, heard = make_grid("uniform", steps, LINEAR), Recorder(), []
    run = drive(make_solver(name)(points(), grid, LINEAR), recorder, progress=heard.append)
    assert run.nfe == len(recorder.calls) == steps
    assert heard == list(range(1, steps + 1))
    assert recorder.times == list(grid.times[:-1])
    assert recorder.taus == recorder.times, "untuned, every tau is its t"


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("kind", ["tuple", "tensor"])
def test_taus_are_used_in_their_order_and_leave_the_times_alone(name, kind):
    grid, recorder = make_grid("uniform", 4, LINEAR), Recorder()
    values = (0.71, 0.505, 0.2503, 0.0017)
    taus = values if kind == "tuple" else torch.tensor(values, dtype=torch.float64)
    drive(make_solver(name)(points(), grid, LINEAR), recorder, taus)
    assert recorder.taus == list(values)
    assert recorder.times == list(grid.times[:-1])
    # A tensor and float64, or diffusers would truncate it.
    assert all(isinstance(tau, Tensor) and tau.dtype == torch.float64 for _, _, tau in recorder.calls)


def test_a_row_of_taus_may_be_a_vector_over_samples():
    grid = make_grid("uniform", 3, LINEAR)
    taus = torch.tensor([[0.7, 0.6], [0.5, 0.4], [0.01, 0.02]], dtype=torch.float64)
    x = points(2)
    together = drive(make_solver("ddim")(x, grid, LINEAR), EXACT, taus)
    for i in range(2):
        alone = drive(make_solver("ddim")(x[i : i + 1], grid, LINEAR), EXACT, taus[:, i])
        assert torch.allclose(together.x[i : i + 1], alone.x, rtol=1e-12, atol=1e-12)


def test_tuned_times_change_the_result_and_only_through_the_network():
    grid = make_grid("uniform", 3, LINEAR)

    def end(predictor, taus):
        return drive(make_solver("ddim")(points(), grid, LINEAR), predictor, taus).x

    assert not torch.allclose(end(EXACT, (0.6, 0.3, 0.001)), end(EXACT, None), atol=1e-3)

    def deaf(x, t, tau):
        return EXACT(x, t, t)

    assert torch.equal(end(deaf, (0.6, 0.3, 0.001)), end(EXACT, None))


@pytest.mark.parametrize("count, message", [(2, "2 conditioning times"), (4, "4 conditioning times")])
@pytest.mark.parametrize("kind", [list, lambda taus: torch.tensor(taus)])
def test_too_few_or_too_many_taus(count, message, kind):
    grid = make_grid("uniform", 3, LINEAR)
    with pytest.raises(ValueError, match=f"{message}.*3"):
        drive(make_solver("ddim")(points(), grid, LINEAR), EXACT, kind([0.5] * count))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_names_the_evaluation_t_and_tau(bad):
    grid, calls = make_grid("uniform", 5, LINEAR), []

    def breaks(x, t, tau):
        calls.append(t)
        answer = EXACT(x, t, tau)
        if len(calls) == 4:  # messages count evaluations from 1, as those about too many or too few taus do
            answer[1, 0] = bad
        return answer

    with pytest.raises(NotFinite, match=r"evaluation 4, t = 0\.201, tau = 0\.1875;"):
        drive(make_solver("ddim")(points(), grid, LINEAR), breaks, (0.8, 0.6, 0.4, 0.1875, 0.001))
    assert len(calls) == 4, "nothing runs on after a bad answer"


def test_not_finite_sees_opposite_infinities_and_names_a_range_of_times():
    times = torch.tensor([[0.9, 0.8], [0.4, 0.3]], dtype=torch.float64)

    def breaks(x, t, tau):
        return torch.tensor([[math.inf, -math.inf], [0.0, 0.0]])

    with pytest.raises(NotFinite, match=r"evaluation 1, t = 0\.8\.\.0\.9, tau = 0\.8\.\.0\.9"):
        drive(make_solver("ddim")(points(2), times, LINEAR), breaks)


@pytest.mark.parametrize("name", ONE_EACH)
def test_the_trajectory_is_kept_on_demand(name):
    grid, recorder = make_grid("uniform", 4, LINEAR), Recorder()
    x = points()
    run = drive(make_solver(name)(x, grid, LINEAR), recorder, keep=True)
    assert torch.equal(run.trajectory[0].x, x)
    assert [request.t.item() for request in run.trajectory] == list(grid.times[:-1])
    for (state, t, _), answer, asked in zip(run.trajectory, run.answers, recorder.calls, strict=True):
        assert torch.equal(state, asked[0]) and torch.equal(answer, EXACT(state, t, t))
    plain = drive(make_solver(name)(x, grid, LINEAR), EXACT)
    assert plain.trajectory == [] and plain.answers == []
    assert torch.equal(plain.x, run.x)


def test_gradients_are_kept_only_if_asked_and_the_mode_is_restored():
    grid = make_grid("uniform", 3, LINEAR)
    taus = (0.99 * torch.tensor(grid.times[:-1], dtype=torch.float64)).requires_grad_(True)
    x = points().requires_grad_(True)
    plain = drive(make_solver("ddim")(x, grid, LINEAR), EXACT, taus, keep=True)
    assert torch.is_grad_enabled()
    assert not plain.x.requires_grad and not any(answer.requires_grad for answer in plain.answers)
    kept = drive(make_solver("ddim")(x, grid, LINEAR), EXACT, taus, grad=True)
    to_taus, to_x = torch.autograd.grad(kept.x.square().sum(), (taus, x))
    assert to_taus.ne(0).all() and to_x.ne(0).any()
    with torch.no_grad():
        assert drive(make_solver("ddim")(x, grid, LINEAR), EXACT, taus, grad=True).x.requires_grad
        assert not torch.is_grad_enabled()
    assert torch.equal(kept.x.detach(), plain.x)


def test_the_mode_is_restored_after_an_error():
    def breaks(x, t, tau):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        drive(make_solver("ddim")(points(), make_grid("uniform", 3, LINEAR), LINEAR), breaks)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ONE_EACH)
def test_replay_is_driving(name):
    grid, x = make_grid("uniform", 4, LINEAR), points()
    run = drive(make_solver(name)(x, grid, LINEAR), EXACT, keep=True)
    for k in range(4):
        item = replay(make_solver(name)(x, grid, LINEAR), run.answers[:k])
        assert isinstance(item, Request)
        assert torch.equal(item.x, run.trajectory[k].x) and item.t == grid.times[k]
    end = replay(make_solver(name)(x, grid, LINEAR), run.answers)
    assert isinstance(end, Tensor) and torch.equal(end, run.x)


# ---- predictors


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


@pytest.mark.parametrize("name", ["linear", "cosine", "continuous-linear"])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_network_is_conditioned_on_a_fractional_tensor_of_tau(name, wrap):
    schedule, network = make_schedule(name), Network(wrap)
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.9, dtype=torch.float64)
    answer = EpsPredictor(network, schedule)(x, t, torch.tensor(0.34567, dtype=torch.float64))
    (seen, c) = network.seen[0]
    index = 0.34567 * 999 if name == "continuous-linear" else 0.34567 * 1000 - 1
    assert isinstance(c, Tensor) and c.shape == (3,) and c.dtype == torch.float32
    assert c.tolist() == pytest.approx([index] * 3, rel=1e-6)
    assert c[0] != c[0].round()
    assert torch.equal(seen, x) and answer.shape == x.shape and answer.dtype == torch.float32


def test_each_sample_may_have_its_own_tau_and_t_does_not_reach_the_network():
    network = Network()
    predictor = EpsPredictor(network, LINEAR)
    x, tau = torch.zeros(2, 1, 2, 2), torch.tensor([0.3, 0.6], dtype=torch.float64)
    first = predictor(x, torch.tensor(0.9), tau)
    second = predictor(x, torch.tensor(0.1), tau)
    assert network.seen[0][1].tolist() == pytest.approx([299, 599])
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_gradients_reach_tau_through_the_network():
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    EpsPredictor(Network(), LINEAR)(torch.zeros(1, 1, 1, 1), torch.tensor(0.4), tau).sum().backward()
    # d sin((1000 tau - 1) / 100) / dtau
    assert tau.grad.item() == pytest.approx(10 * math.cos(3.99), rel=1e-5)


def test_bf16_runs_the_network_in_bf16_and_answers_in_float32():
    network, x = Network(), torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    time = torch.tensor(0.5, dtype=torch.float64)
    exact = EpsPredictor(network, LINEAR)(x, time, time)
    assert network.dtype == torch.float32
    rough = EpsPredictor(network, LINEAR, bf16=True)(x, time, time)
    assert network.dtype == torch.bfloat16
    assert network.seen[1][1].dtype == torch.float32, "the time itself is not rounded to 8 bits"
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.02


def test_a_unet_of_diffusers_hears_the_fraction():
    pytest.importorskip("diffusers")
    from tt_lib.networks.unet import make_unet

    torch.manual_seed(0)
    network = make_unet("digits", 32).eval()
    predictor = EpsPredictor(network, LINEAR)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        at, between = predictor(x, t, t), predictor(x, t, t + 0.0004)
    assert not torch.equal(at, between)


@pytest.mark.parametrize("size, fill, sizes", [(3, False, [3, 3, 1]), (3, True, [3, 3, 3]), (9, True, [9])])
@pytest.mark.parametrize("vector", [False, True])
def test_chunks_answer_as_the_whole(size, fill, sizes, vector):
    x = points(7)
    t = torch.linspace(0.2, 0.9, 7, dtype=torch.float64) if vector else torch.tensor(0.5, dtype=torch.float64)
    recorder = Recorder()
    answer = Chunked(recorder, size, fill)(x, t, 0.9 * t)
    assert [len(asked) for asked, _, _ in recorder.calls] == sizes
    assert torch.allclose(answer, EXACT(x, t, 0.9 * t), rtol=1e-12, atol=1e-14)


# ---- noise


def test_a_seed_has_its_own_stream():
    x = torch.empty(3, 2, 2)
    noise = SampleNoise([5, 6, 7])
    first, second = noise.start((2, 2)), noise(x)
    assert first.shape == second.shape == (3, 2, 2) and first.dtype == torch.float32
    assert not torch.equal(first, second), "each call takes the next numbers"
    assert len({tuple(row.flatten().tolist()) for row in torch.cat([first, second])}) == 6
    alone = SampleNoise([6])
    assert torch.equal(alone.start((2, 2))[0], first[1]) and torch.equal(alone(x[:1])[0], second[1])
    other_order = SampleNoise([7, 5])
    assert torch.equal(other_order.start((2, 2)), first[[2, 0]])
    assert noise(x.double()).dtype == torch.float64


def test_noise_is_standard_normal():
    draws = SampleNoise(range(2000)).start((5,))
    assert draws.mean().item() == pytest.approx(0, abs=0.05)
    assert draws.var().item() == pytest.approx(1, abs=0.07)


def test_derived_seeds_differ_where_torch_can_see_it():
    pairs = [(seed, counter) for seed in range(20) for counter in range(200)]
    derived = {derive_seed(*pair) for pair in pairs}
    assert len(derived) == len(pairs)
    assert all(0 <= seed < 2**32 for seed in derived)


# ---- sampling


def sampler(eta: float = 0.0, steps: int = 4, **options) -> Sampler:
    solver = make_solver("ddim", eta=eta) if eta else make_solver("ddim")
    return Sampler(EXACT, LINEAR, solver, make_grid("uniform", steps, LINEAR), (2,), **options)


def timing(**changes) -> Timing:
    grid = make_grid("uniform", 4, LINEAR)
    facts = {
        "name": "made up",
        "taus": (0.7, 0.5, 0.2, 0.001),
        "times": grid.times[:-1],
        "model": "ring",
        "schedule": "linear",
        "solver": "ddim",
        "options": {},
        "grid": "uniform",
        "grid_times": grid.times,
    }
    return Timing(**{**facts, **changes})


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_seed_gives_the_same_image_in_any_batch_and_order(eta):
    sample = sampler(eta)
    whole = sample(range(7)).x
    assert whole.dtype == torch.float32 and whole.shape == (7, 2)
    for size in (1, 3, 7):
        parts = torch.cat([sample(seeds).x for seeds in batches(0, 7, size)])
        assert torch.allclose(parts, whole, rtol=0, atol=1e-6)
    assert torch.allclose(sample([6, 2]).x, whole[[6, 2]], rtol=0, atol=1e-6)
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
    alpha, sigma = LINEAR.alpha(grid.times[:2]), LINEAR.sigma(grid.times[:2])
    c = sigma[1] / sigma[0] * (1 - (alpha[0] / alpha[1]) ** 2).sqrt()
    assert torch.allclose(seen[1], (alpha[1] / alpha[0] * start + c * step).float(), rtol=1e-5)


def test_a_start_may_be_given_to_a_deterministic_sampler_only():
    start = SampleNoise(range(3)).start((2,))
    assert torch.equal(sampler()(range(3), start=start).x, sampler()(range(3)).x)
    with pytest.raises(BadValue, match="give seeds, not start"):
        sampler(1.0)(range(3), start=start)


def test_the_sampler_uses_its_timing_and_checks_it():
    plain = sampler()(range(3), keep=True)
    tuned = sampler(timing=timing(), model="ring")(range(3), keep=True)
    assert len(tuned.trajectory) == tuned.nfe == plain.nfe == 4
    start = SampleNoise(range(3)).start((2,))
    expected = drive(make_solver("ddim")(start, make_grid("uniform", 4, LINEAR), LINEAR), EXACT, timing().taus)
    assert torch.equal(tuned.x, expected.x) and not torch.equal(tuned.x, plain.x)
    for changes, options in (
        ({}, {"model": "another"}),
        ({}, {"model": "ring", "steps": 5}),
        ({}, {"model": "ring", "eta": 1.0}),
        ({"schedule": "cosine"}, {"model": "ring"}),
        ({"weights": "aaaa"}, {"model": "ring", "weights": "bbbb"}),
    ):
        with pytest.raises(TimingMismatch):
            sampler(timing=timing(**changes), **options)


def test_batches():
    assert [list(seeds) for seeds in batches(10, 7, 3)] == [[10, 11, 12], [13, 14, 15], [16]]
    assert list(batches(0, 2, 64)) == [range(0, 2)]
    for count, size in ((0, 4), (-1, 4), (4, 0)):
        with pytest.raises(BadValue, match=f"n {count} and batch {size}"):
            list(batches(0, count, size))


def test_sample_pixels():
    whole, heard = sampler()(range(5, 12)).x, []
    pixels = sample_pixels(sampler(), 7, first_seed=5, batch=3, progress=lambda *words: heard.append(words))
    assert pixels.dtype == torch.uint8 and pixels.shape == (7, 2)
    expected = ((whole.double() + 1) * 127.5).round().clamp(0, 255)
    assert (pixels.double() - expected).abs().max() <= 0, "rounded to nearest"
    assert heard == [(done, 7, "4 evaluations an image") for done in (3, 6, 7)]
    asked = []

    def start(seeds):
        asked.append(seeds)
        return SampleNoise(seeds).start((2,))

    assert torch.equal(sample_pixels(sampler(), 7, first_seed=5, batch=3, start=start), pixels)
    assert asked == [range(5, 8), range(8, 11), range(11, 12)]
    with pytest.raises(BadValue):
        sample_pixels(sampler(), 0)


def test_a_bad_answer_on_another_device_is_found_at_the_end(monkeypatch):
    """Answers that lie on a GPU are looked at several at once; the error names the first bad one all the same."""
    watch, t = engine._Watch(), torch.tensor(0.5)
    monkeypatch.setattr(engine._Watch, "AT_ONCE", 3)
    for evaluation, value in enumerate((1.0, math.nan)):
        watch.sums.append(
            torch.tensor(value, dtype=torch.float64)
        )  # as add() does for an answer that is not on the CPU
        watch.where.append((evaluation, t, t))
    with pytest.raises(NotFinite, match=r"evaluation 2, t = 0\.5"):
        watch.add(torch.ones(2), 2, t, t)
    watch.read()
