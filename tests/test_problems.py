"""One-step problems: every loss of a tuning against a formula written out by hand, or a plain run of the solver."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from solver_helpers import LOWERED, even_in_lambda, float64
from torch import Tensor
from torch.autograd import gradcheck

from tt_lib.engine import Request, Run, drive
from tt_lib.errors import BadValue, NotFinite
from tt_lib.grids import Grid, make_grid
from tt_lib.sampling import Sampler, fine_solution
from tt_lib.schedules import make_schedule
from tt_lib.solvers.layout import Evaluation
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import GaussianMixture, MixturePredictor, ring_2d
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig, TuneResult, tune
from tt_lib.tuning.problems import CommonNoise, Problems

LINEAR = make_schedule("linear")
RING = ring_2d(5, scale=0.2)
PREDICTOR = MixturePredictor(RING, LINEAR)
GRID = make_grid("uniform", 4, LINEAR)
NAMES = ["ddim", "dpmpp-2m"]  # written out by hand below
pytestmark = pytest.mark.usefixtures("one_thread")


def images(mixture: GaussianMixture = RING, n: int = 16, seed: int = 1) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(seed))


def tuner_noise(x0: Tensor, seed: int) -> Tensor:
    """The noise that a tuning with this seed puts on its images."""
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0.dtype)


def noised(x0: Tensor, noise: Tensor, t: float) -> Tensor:
    return LINEAR.alpha(t) * x0 + LINEAR.sigma(t) * noise


def a_sampler(solver: str | Solver = "ddim", grid: Grid = GRID, predictor=PREDICTOR, **options) -> Sampler:
    solver = make_solver(solver) if isinstance(solver, str) else solver
    return Sampler(predictor, LINEAR, solver, grid, (2,), **options)


def run_tune(solver: str | Solver = "ddim", grid: Grid = GRID, x0: Tensor | None = None, **changes) -> TuneResult:
    """A small tuning of the ring; what is not an argument of ``tune`` is a field of its config."""
    names = ("held_out", "state", "save_seconds", "progress", "source")
    arguments = {name: changes.pop(name) for name in names if name in changes}
    sampler = a_sampler(solver, grid, changes.pop("predictor", PREDICTOR))
    config = TuneConfig(**{"iterations": 4, "batch": 8, "seed": 3, "substeps": 4, **changes})
    return tune(sampler, images() if x0 is None else x0, config, **arguments)


# ---- losses, by hand


def solver_by_hand(name: str, x: Tensor, times, answer) -> list[Tensor]:
    """All states of DDIM (Song et al. 2021, eq. 12) or DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    alpha = [LINEAR.alpha(t).item() for t in times]
    sigma = [LINEAR.sigma(t).item() for t in times]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    states, data = [x], []
    for k in range(len(times) - 1):
        eps = answer(k, x)
        data.append((x - sigma[k] * eps) / alpha[k])
        if name == "ddim":
            x = alpha[k + 1] * data[k] + sigma[k + 1] * eps
        else:
            h, d = lam[k + 1] - lam[k], data[k]
            if k and math.isfinite(h):
                r = (lam[k] - lam[k - 1]) / h
                d = (1 + 1 / (2 * r)) * data[k] - 1 / (2 * r) * data[k - 1]
            x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * (math.exp(-h) - 1) * d
        states.append(x)
    return states


def loss_by_hand(name: str, objective: str, start: Tensor, times, taus, substeps: int) -> float:
    """The loss of the last of the steps along ``times``, made with ``taus``: sums over pixels, a mean over images."""
    states = solver_by_hand(name, start, times, lambda k, x: RING.eps(x, taus[k], LINEAR))
    t, s = times[-2], times[-1]
    if objective == "consistency":
        gap = RING.eps(states[-1], max(s, 0.001), LINEAR) - RING.eps(states[-2], t, LINEAR)
    else:
        between = [t + (s - t) * i / substeps for i in range(substeps)] + [s]
        fine = solver_by_hand("dpmpp-2m", states[-2], between, lambda k, x: RING.eps(x, between[k], LINEAR))
        gap = states[-1] - fine[-1]
    return (gap**2).sum(1).mean().item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_loss_of_a_parallel_tuning_is_the_formulas(name, objective, monkeypatch):
    x0, options = images(), {"strategy": "parallel", "optimiser": "search", "freeze_last": 0, "substeps": 5}
    noise, times, history = tuner_noise(x0, 3), GRID.times, make_solver(name).history
    rows = run_tune(name, objective=objective, **options).history
    monkeypatch.setattr("tt_lib.tuning.tuner.SWEEPS", 1)
    first = run_tune(name, objective=objective, **options)
    # What the evaluation before a step is conditioned on: t in the first sweep, but for the steps without
    # history, which are tuned before; in the second sweep what the first one gave.
    before = {0: [first.timing.taus[0], *times[1:]], 1: first.timing.taus}
    sweep = rows.groupby(["evaluation", "iteration"]).cumcount()
    assert set(sweep) == ({0, 1} if history else {0}), "without history states do not depend on taus: one sweep is all"
    for index, row in list(zip(sweep, rows.itertuples(), strict=True))[::3]:
        k = row.evaluation
        back = k - min(k, history)
        # States come from noising the images where the step's history begins.
        start = noised(x0, noise, times[back])
        expected = loss_by_hand(name, objective, start, times[back : k + 2], [*before[index][back:k], row.tau], 5)
        assert row.loss == pytest.approx(expected, rel=1e-8, abs=1e-12), row


# ---- losses of every solver, by plain runs


def midpoint(x, times, schedule, noise):
    """The midpoint rule in rho: two evaluations a step, but one where a step ends at clean data."""
    for t, s in pairwise(times):
        m = (t + s) / 2
        (at, am, as_), (rt, rm, rs) = ([f(u) for u in (t, m, s)] for f in (schedule.alpha, schedule.rho))

        def tall(c, x=x):
            return c.reshape(-1, *[1] * (x.ndim - 1)) if c.ndim else c

        eps = yield Request(x, t)
        if not bool((s == 0).any()):
            eps = yield Request(tall(am) * (x / tall(at) + tall(rm - rt) * eps), m, 1)
        x = tall(as_) * (x / tall(at) + tall(rs - rt) * eps)
    return x


DETERMINISTIC = {"midpoint": Solver("midpoint", midpoint)} | {
    name: solver for name, solver in SOLVERS.items() if not solver.stochastic
}
DETERMINISTIC["unipc,final=lower"] = make_solver("unipc,final=lower")
SINGLE = [name for name, solver in DETERMINISTIC.items() if not solver.history]


def smallest(name: str, nfe: int = 4) -> tuple[Solver, Grid]:
    """A solver and a grid that suit each other, for this many evaluations or the nearest more that it can make."""
    if name == "midpoint":
        return DETERMINISTIC[name], GRID
    for count in range(nfe, 20):
        try:
            solver, steps = make_solver(name).for_nfe(count)
        except BadValue:
            continue
        return solver, make_grid("uniform", steps, LINEAR)
    raise AssertionError(name)


def loss_of_run(run: Run, evaluations, index: int, end: float, objective: str) -> float:
    """The loss of one evaluation of a finished run: its next state against what its step began with."""
    begin, after = index - evaluations[index].stage, index + 1
    x = run.trajectory[after].x if after < len(evaluations) else run.x
    s, t = float64(evaluations[after].t if after < len(evaluations) else end), float64(evaluations[begin].t)
    state = run.trajectory[begin].x
    if objective == "consistency":
        s = s.clamp(min=LINEAR.t_min)
        gap = PREDICTOR(x, s, s) - PREDICTOR(state, t, t)
    else:
        gap = x - fine_solution(PREDICTOR, LINEAR, state, t, s, 3)
    return (gap**2).sum(1).mean().item()


def start_at(t: float) -> Tensor:
    return noised(images(n=6), tuner_noise(images(n=6), 3), t)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_loss_of_a_sequential_tuning_is_a_runs(name, objective):
    solver, grid = smallest(name)
    result = run_tune(solver, grid, images(n=6), objective=objective, optimiser="search", substeps=3)
    evaluations = a_sampler(solver, grid).evaluations
    assert result.timing.times == tuple(each.t for each in evaluations)
    tuned = [i for i, each in enumerate(evaluations) if each.step < grid.steps - 1]
    assert sorted(set(result.history.evaluation)) == tuned
    for row in result.history.iloc[:: max(1, len(result.history) // 25)].itertuples():
        k = row.evaluation
        taus = [*result.timing.taus[:k], row.tau, *(each.t for each in evaluations[k + 1 :])]
        run = drive(solver(start_at(grid.times[0]), grid, LINEAR), PREDICTOR, taus, keep=True)
        expected = loss_of_run(run, evaluations, k, grid.times[-1], objective)
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


@pytest.mark.parametrize("name", SINGLE)
def test_every_loss_of_a_parallel_tuning_is_a_one_step_runs(name):
    solver, grid = smallest(name)
    result = run_tune(solver, grid, images(n=6), strategy="parallel", optimiser="search", substeps=3)
    evaluations = a_sampler(solver, grid).evaluations
    for row in result.history.iloc[:: max(1, len(result.history) // 25)].itertuples():
        step, stage = evaluations[row.evaluation].step, evaluations[row.evaluation].stage
        own = [i for i, each in enumerate(evaluations) if each.step == step]
        taus = [result.timing.taus[i] if i < row.evaluation else evaluations[i].t for i in own]
        taus[stage] = row.tau
        times = float64(grid.times[step : step + 2])
        part = solver.part(step, 1, grid.steps - step - 1)
        run = drive(part(start_at(grid.times[step]), times, LINEAR), PREDICTOR, taus, keep=True)
        window = [Evaluation(0, evaluations[i].stage, evaluations[i].t) for i in own]
        expected = loss_of_run(run, window, stage, float(times[-1]), "consistency")
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("name", [*LOWERED, "unipc,order=2,final=lower"])
def test_a_step_of_a_parallel_tuning_has_the_order_that_it_has_in_the_run(name, end, monkeypatch):
    """Each loss is that of a run from the beginning of the step's history to the grid's end, where the orders fall."""
    monkeypatch.setattr("tt_lib.tuning.tuner.SWEEPS", 1)
    times = make_grid("logsnr", 7, LINEAR).tensor() if end == 0 else even_in_lambda(7, LINEAR, 1.0, end)
    solver, grid = make_solver(name), Grid("logsnr", tuple(times.tolist()))
    options = {"objective": "truncation", "strategy": "parallel", "optimiser": "search", "freeze_last": 0}
    result = run_tune(solver, grid, images(n=6), **options, substeps=3)
    history, rows = solver.history, result.history

    def alike(k: int) -> tuple[int, int]:
        return min(k, history), min(6 - k, history)

    assert set(rows.evaluation) == set(range(7))
    for row in rows[rows.iteration % 5 == 0].itertuples():
        k, first = row.evaluation, row.evaluation - min(row.evaluation, history)
        # Steps that run alike are tuned together, each with the others untuned, after those before them.
        before = [grid.times[j] if alike(j) == alike(k) else result.timing.taus[j] for j in range(first, k)]
        taus = [*before, row.tau, *grid.times[k + 1 : -1]]
        run = drive(solver(start_at(grid.times[first]), times[first:], LINEAR), PREDICTOR, taus, keep=True)
        rest = [Evaluation(j, 0, t) for j, t in enumerate(grid.times[first:-1])]
        expected = loss_of_run(run, rest, k - first, end, "truncation")
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


# ---- properties of a loss


def problems(name: str, objective: str, n: int = 6) -> list:
    """A sequential problem of the second step, and the parallel one with the same history."""
    both = Problems(a_sampler(name), images(n=n), objective, 4, seed=0)
    start, t = noised(images(n=n), both.noise, GRID.times[0]), both.times[0]
    one = both.sequential(1, [PREDICTOR(start, t, 0.93 * t)])
    indices = [1, 2, 3] if name == "dpmpp-2m" else [0, 1, 2, 3]
    return [one, both.parallel(indices, [0.93 * t for t in GRID.times[:-1]])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_its_finite_difference_and_steps_do_not_see_each_other(name, objective):
    for problem in problems(name, objective):
        taus = (0.9537 * problem.t).clamp(min=0.0012).requires_grad_(True)  # between the levels, which are kinks
        assert gradcheck(problem.losses, (taus,), rtol=1e-4)
        (slope,) = torch.autograd.grad(problem.losses(taus).sum(), taus)
        assert slope.ne(0).all(), "a step that ends at clean data depends on tau, too"
        whole, moved = problem.losses(taus), taus.detach().clone()
        moved[0] *= 0.9
        assert (problem.losses(moved) != whole).tolist() == [True] + [False] * (len(taus) - 1)
        halves = [problem.losses(taus, torch.tensor(rows)) for rows in ([0, 2, 4], [5, 3, 1])]
        assert torch.allclose((halves[0] + halves[1]) / 2, whole, rtol=1e-10)
        assert not torch.allclose(halves[0], whole, rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_grow_with_the_dimension_and_not_with_the_batch(objective):
    # Two independent copies of the line, side by side: a sum over pixels doubles, a mean would not.
    line, plane = GaussianMixture([1.0], [[0.4]], [0.3]), GaussianMixture([1.0], [[0.4, 0.4]], [0.3])
    x0 = images(line, 12)
    noise = tuner_noise(x0, 0)

    def losses(mixture, copies, batch):
        sampler = a_sampler(predictor=MixturePredictor(mixture, LINEAR))
        both = Problems(sampler, x0.repeat(batch, copies), objective, 4, seed=0)
        both.noise = noise.repeat(batch, copies)
        return both.parallel([0, 1, 2], GRID.times[:-1]).losses(0.9 * both.times[:3])

    one = losses(line, 1, 1)
    assert torch.allclose(losses(plane, 2, 1), 2 * one, rtol=1e-9)
    assert torch.allclose(losses(line, 1, 3), one, rtol=1e-9)


def test_a_bad_answer_is_named():
    def breaks(x, t, tau):
        return PREDICTOR(x, t, tau) * (math.nan if bool((tau != t).any()) else 1)

    with pytest.raises(NotFinite, match="t = "):
        run_tune(optimiser="search", predictor=breaks)


# ---- stochastic solvers


def test_common_noise_repeats_itself_and_follows_its_rows():
    common = CommonNoise((4, 2), 7)
    x, rows = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([3, 0])
    first, again, some = common.source(), common.source(), common.source(rows)
    draws = [first(x), first(x)]
    assert not torch.equal(draws[0], draws[1]) and draws[0].dtype == torch.float64
    assert torch.equal(again(x), draws[0]) and torch.equal(again(x), draws[1])
    assert torch.equal(some(x[:2]), draws[0][rows]) and torch.equal(some(x[:2]), draws[1][rows])
    assert not torch.equal(CommonNoise((4, 2), 8).source()(x), draws[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stochastic_solver_does_not_draw_the_noise_that_is_on_the_images(strategy):
    """It did: the first state was x_1 of a noise that grows, and the first tau that of no sampler."""
    common = Problems(a_sampler("ddpm"), images(n=400), "consistency", 4, 3)
    problem = common.sequential(0, []) if strategy == "sequential" else common.parallel([0, 1], GRID.times[:-1])
    problem.losses(problem.t)
    for draw in problem.draws.draws[0].split(400):
        assert abs(float((draw * common.noise).mean())) < 0.15, "1 if it is the same noise"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stochastic_solver_draws_the_same_for_every_tau(strategy):
    solver = make_solver("ddim", eta=1.0)
    both = Problems(a_sampler(solver), images(n=6), "consistency", 4, seed=5)
    x, t = noised(images(n=6), both.noise, GRID.times[0]), both.times[0]
    problem = (
        both.sequential(1, [PREDICTOR(x, t, t)])
        if strategy == "sequential"
        else both.parallel([0, 1, 2], GRID.times[:-1])
    )
    assert torch.equal(problem.losses(problem.t), problem.losses(problem.t))
    # Fresh draws would move the loss far more than this step of tau does.
    near = (problem.losses(problem.t * (1 - 1e-6)) - problem.losses(problem.t)).abs()
    assert (near < 1e-3 * problem.losses(problem.t)).all()
    one, two = (run_tune(solver, strategy=strategy, optimiser="search").timing for _ in range(2))
    assert one.taus == two.taus and one.options == {"eta": 1.0}
    assert sum(one.tuning["loss_tuned"]) < sum(one.tuning["loss_untuned"])
