"""The engine: what is counted and asked, in which order, with which gradients, and what a bad answer gives."""

from __future__ import annotations

import math

import pytest
import torch
from solver_helpers import LINEAR, float64, points
from torch import Tensor

from tt_lib import engine
from tt_lib.engine import Request, drive, replay
from tt_lib.errors import NotFinite
from tt_lib.grids import make_grid
from tt_lib.solvers.orders import one_each
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.toy import MixturePredictor, ring_2d

EXACT = MixturePredictor(ring_2d(3, scale=0.2), LINEAR)
ONE_EACH = sorted(name for name, solver in SOLVERS.items() if not solver.stochastic and solver.plan is one_each)
GRID = make_grid("uniform", 4, LINEAR)
pytestmark = pytest.mark.usefixtures("one_thread")


def ddim(x: Tensor | None = None, grid=GRID):
    return make_solver("ddim")(points(4, 2) if x is None else x, grid, LINEAR)


class Recorder:
    """A predictor that writes down what it is asked, and answers as the exact one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        self.calls.append((x, t, tau))
        return EXACT(x, t, tau)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_are_counted_asked_at_the_grids_times_and_kept(name, steps):
    grid, recorder, x = make_grid("uniform", steps, LINEAR), Recorder(), points(4, 2)
    run = drive(make_solver(name)(x, grid, LINEAR), recorder, keep=True)
    assert run.nfe == len(recorder.calls) == steps
    asked = [(t.item(), tau.item()) for _, t, tau in recorder.calls]
    assert asked == [(t, t) for t in grid.times[:-1]], "untuned, every tau is its t"
    assert torch.equal(run.trajectory[0].x, x)
    for (state, t, _), answer, call in zip(run.trajectory, run.answers, recorder.calls, strict=True):
        assert torch.equal(state, call[0]) and torch.equal(answer, EXACT(state, t, t))
    plain = drive(make_solver(name)(x, grid, LINEAR), EXACT)
    assert plain.trajectory == [] and plain.answers == [] and torch.equal(plain.x, run.x)
    for k in range(steps):
        item = replay(make_solver(name)(x, grid, LINEAR), run.answers[:k])
        assert isinstance(item, Request) and torch.equal(item.x, run.trajectory[k].x) and item.t == grid.times[k]
    assert torch.equal(replay(make_solver(name)(x, grid, LINEAR), run.answers), run.x)


@pytest.mark.parametrize("kind", [tuple, float64])
def test_taus_are_used_in_their_order_and_leave_the_times_alone(kind):
    recorder, values = Recorder(), (0.71, 0.505, 0.2503, 0.0017)
    tuned = drive(ddim(), recorder, kind(values)).x
    assert [(t.item(), tau.item()) for _, t, tau in recorder.calls] == list(zip(GRID.times, values, strict=False))
    # A tensor and float64, or diffusers would truncate it.
    assert all(isinstance(tau, Tensor) and tau.dtype == torch.float64 for _, _, tau in recorder.calls)
    untuned = drive(ddim(), EXACT).x
    assert not torch.allclose(tuned, untuned, atol=1e-3)
    assert torch.equal(drive(ddim(), lambda x, t, tau: EXACT(x, t, t), values).x, untuned), "only through the network"


def test_a_row_of_taus_may_be_a_vector_over_samples():
    taus = float64([[0.7, 0.6], [0.5, 0.4], [0.2, 0.1], [0.01, 0.02]])
    x = points(2, 2)
    together = drive(ddim(x), EXACT, taus)
    for i in range(2):
        alone = drive(ddim(x[i : i + 1]), EXACT, taus[:, i])
        assert torch.allclose(together.x[i : i + 1], alone.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [3, 5])
def test_too_few_or_too_many_taus_or_gains(count):
    for values in ([0.5] * count, torch.full((count,), 0.5)):
        with pytest.raises(ValueError, match=f"{count} conditioning times were given.*4"):
            drive(ddim(), EXACT, values)
        with pytest.raises(ValueError, match=f"{count} gains were given.*4"):
            drive(ddim(), EXACT, gains=values)


@pytest.mark.parametrize("kind", [tuple, float64])
def test_a_gain_is_a_factor_on_its_own_answer(kind):
    recorder, gains = Recorder(), (0.9, 1.0, 1.1, 0.8)
    run = drive(ddim(), recorder, gains=kind(gains), keep=True)
    for gain, answer, call in zip(gains, run.answers, recorder.calls, strict=True):
        assert torch.equal(answer, gain * EXACT(*call))
    assert torch.equal(replay(ddim(), run.answers), run.x)
    plain = drive(ddim(), EXACT).x
    assert torch.equal(drive(ddim(), EXACT, gains=kind([1.0] * 4)).x, plain) and not torch.allclose(run.x, plain)
    each = drive(ddim(), EXACT, gains=torch.stack([float64([gain, 1.0, gain, 1.0]) for gain in gains])).x
    assert torch.equal(each[::2], run.x[::2]) and torch.equal(each[1::2], plain[1::2])


def test_gradients_are_kept_only_if_asked_and_the_mode_is_restored():
    taus = (0.99 * GRID.tensor()[:-1]).requires_grad_(True)
    x = points(4, 2).requires_grad_(True)
    plain = drive(ddim(x), EXACT, taus, keep=True)
    assert torch.is_grad_enabled()
    assert not plain.x.requires_grad and not any(answer.requires_grad for answer in plain.answers)
    kept = drive(ddim(x), EXACT, taus, grad=True)
    to_taus, to_x = torch.autograd.grad(kept.x.square().sum(), (taus, x))
    assert to_taus.ne(0).all() and to_x.ne(0).any() and torch.equal(kept.x.detach(), plain.x)
    with torch.no_grad():
        assert drive(ddim(x), EXACT, taus, grad=True).x.requires_grad
        assert not torch.is_grad_enabled()

    def breaks(x, t, tau):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        drive(ddim(), breaks)
    assert torch.is_grad_enabled()


# ---- bad answers


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_names_the_evaluation_t_and_tau(bad):
    calls = []

    def breaks(x, t, tau):
        calls.append(t)
        answer = EXACT(x, t, tau)
        if len(calls) == 3:  # messages count evaluations from 1, as those about too many or too few taus do
            answer[1, 0] = bad
        return answer

    with pytest.raises(NotFinite, match=r"evaluation 3, t = 0\.251, tau = 0\.1875;"):
        drive(ddim(), breaks, (0.8, 0.6, 0.1875, 0.001))
    assert len(calls) == 3, "nothing runs on after a bad answer"


def test_not_finite_sees_opposite_infinities_and_names_a_range_of_times():
    times = float64([[0.9, 0.8], [0.4, 0.3]])
    with pytest.raises(NotFinite, match=r"evaluation 1, t = 0\.8\.\.0\.9, tau = 0\.8\.\.0\.9"):
        drive(ddim(points(2, 2), times), lambda x, t, tau: torch.tensor([[math.inf, -math.inf], [0.0, 0.0]]))


def test_a_bad_answer_on_another_device_is_found_at_the_end(monkeypatch):
    """Answers that lie on a GPU are looked at several at once; the error names the first bad one all the same."""
    watch, t = engine._Watch(), torch.tensor(0.5)
    monkeypatch.setattr(engine._Watch, "AT_ONCE", 3)
    for evaluation, value in enumerate((1.0, math.nan)):  # as add() does for an answer that is not on the CPU
        watch.sums.append(float64(value))
        watch.where.append((evaluation, t, t))
    with pytest.raises(NotFinite, match=r"evaluation 2, t = 0\.5"):
        watch.add(torch.ones(2), 2, t, t)
    watch.check()
