"""Tuning of every solver: several evaluations a step, history, noise. The losses are computed again by plain runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tt_lib.engine import Request, Run, drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.sampling import fine_solution
from tt_lib.schedules import make_schedule
from tt_lib.solvers.layout import Evaluation, layout
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, ring_2d
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig, tune
from tt_lib.tuning.problems import CommonNoise, Setting, parallel_problem, sequential_problem

LINEAR = make_schedule("linear")
RING = ring_2d(5, scale=0.2)
PREDICTOR = MixturePredictor(RING, LINEAR)
pytestmark = pytest.mark.usefixtures("one_thread")


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
LOWERED = ["dpmpp-2m", "dpmpp-3m", "deis-tab", "deis-tab,order=4", "unipc", "unipc,order=2"]
DETERMINISTIC["unipc,final=lower"] = make_solver("unipc,final=lower")


def sampler(name: str, nfe: int = 4) -> tuple[Solver, Grid]:
    """A solver and a grid that suit each other, for this many evaluations or the nearest more that it can make."""
    if name == "midpoint":
        return DETERMINISTIC[name], make_grid("uniform", 4, LINEAR)
    for budget in range(nfe, 20):
        try:
            solver, steps = make_solver(name).for_nfe(budget)
        except BadValue:
            continue
        return solver, make_grid("uniform", steps, LINEAR)
    raise AssertionError(name)


def start(x0: Tensor, t: float, seed: int) -> Tensor:
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0.dtype)
    return LINEAR.alpha(t) * x0 + LINEAR.sigma(t) * noise


def images(n: int = 6) -> Tensor:
    return RING.sample(n, torch.Generator().manual_seed(1))


def judge(run: Run, evaluations, index: int, end: float, objective: str, substeps: int) -> float:
    """The loss of one evaluation of a finished run: its next state against what its step began with."""
    begin = index - evaluations[index].stage
    after = index + 1
    x = run.trajectory[after].x if after < len(evaluations) else run.x
    s = torch.tensor(evaluations[after].t if after < len(evaluations) else end, dtype=torch.float64)
    state, t = run.trajectory[begin].x, torch.tensor(evaluations[begin].t, dtype=torch.float64)
    if objective == "consistency":
        s = s.clamp(min=LINEAR.t_min)
        gap = PREDICTOR(x, s, s) - PREDICTOR(state, t, t)
    else:
        gap = x - fine_solution(PREDICTOR, LINEAR, state, t, s, substeps)
    return (gap**2).sum(1).mean().item()


def test_layout_numbers_steps_and_stages():
    solver, grid = sampler("midpoint")
    found = layout(solver, torch.tensor(grid.times, dtype=torch.float64), LINEAR)
    t = grid.times
    between = [(a + b) / 2 for a, b in pairwise(t)]
    assert found == (
        Evaluation(0, 0, t[0]),
        Evaluation(0, 1, between[0]),
        Evaluation(1, 0, t[1]),
        Evaluation(1, 1, between[1]),
        Evaluation(2, 0, t[2]),
        Evaluation(2, 1, between[2]),
        Evaluation(3, 0, t[3]),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_loss_of_a_sequential_tuning_is_a_runs(name, objective):
    solver, grid = sampler(name)
    config = TuneConfig(objective=objective, optimiser="search", substeps=3, seed=3)
    result = tune(PREDICTOR, LINEAR, solver, grid, images(), config)
    evaluations = layout(solver, torch.tensor(grid.times, dtype=torch.float64), LINEAR)
    assert result.timing.times == tuple(each.t for each in evaluations)
    tuned = [i for i, e in enumerate(evaluations) if e.step < grid.steps - 1]
    assert sorted(set(result.history.step)) == tuned
    for row in result.history.iloc[:: max(1, len(result.history) // 25)].itertuples():
        taus = [*result.timing.taus[: row.step], row.tau, *(e.t for e in evaluations[row.step + 1 :])]
        run = drive(solver(start(images(), grid.times[0], 3), grid, LINEAR), PREDICTOR, taus, keep=True)
        expected = judge(run, evaluations, row.step, grid.times[-1], objective, 3)
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


SINGLE = [name for name, solver in DETERMINISTIC.items() if not solver.history]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SINGLE)
def test_every_loss_of_a_parallel_tuning_is_a_one_step_runs(name, objective):
    solver, grid = sampler(name)
    config = TuneConfig(objective=objective, strategy="parallel", optimiser="search", substeps=3, seed=3)
    result = tune(PREDICTOR, LINEAR, solver, grid, images(), config)
    evaluations = layout(solver, torch.tensor(grid.times, dtype=torch.float64), LINEAR)
    for row in result.history.iloc[:: max(1, len(result.history) // 25)].itertuples():
        step, stage = evaluations[row.step].step, evaluations[row.step].stage
        mine = [i for i, e in enumerate(evaluations) if e.step == step]
        taus = [result.timing.taus[i] if i < row.step else evaluations[i].t for i in mine]
        taus[stage] = row.tau
        times = torch.tensor(grid.times[step : step + 2], dtype=torch.float64)
        part = solver.part(step, 1, grid.steps - step - 1)
        run = drive(part(start(images(), grid.times[step], 3), times, LINEAR), PREDICTOR, taus, keep=True)
        window = [Evaluation(0, evaluations[i].stage, evaluations[i].t) for i in mine]
        expected = judge(run, window, stage, float(times[-1]), objective, 3)
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_tuning_lowers_what_it_is_judged_by(name, strategy):
    solver, grid = sampler(name)
    config = TuneConfig(objective="truncation", strategy=strategy, optimiser="search", substeps=6)
    timing = tune(PREDICTOR, LINEAR, solver, grid, images(), config).timing
    before, after = timing.tuning["loss_untuned"], timing.tuning["loss_tuned"]
    assert all(b <= a for a, b in zip(before, after, strict=True)) and sum(after) < 0.999 * sum(before)
    assert timing.ratios[-1] == 1 and drive(solver(images(), grid, LINEAR), PREDICTOR, timing.taus).nfe == timing.nfe


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("name", [f"{name},final=lower" for name in LOWERED])
def test_a_step_of_a_parallel_tuning_has_the_order_that_it_has_in_the_run(name, end):
    """Each loss is that of a run from the beginning of the step's history to the grid's end, where the orders fall."""
    solver, grid = make_solver(name), make_grid("logsnr", 7, LINEAR, end=end)
    config = TuneConfig(
        objective="truncation", strategy="parallel", optimiser="search", freeze_last=0, sweeps=1, substeps=3, seed=3
    )
    result = tune(PREDICTOR, LINEAR, solver, grid, images(), config)
    history, times = solver.history, torch.tensor(grid.times, dtype=torch.float64)

    def alike(k: int) -> tuple[int, int]:
        return min(k, history), min(6 - k, history)

    rows = result.history
    assert set(rows.step) == set(range(7))
    for row in rows[rows.iteration % 5 == 0].itertuples():
        k, first = row.step, row.step - min(row.step, history)
        # Steps that run alike are tuned together, each with the others untuned, after those before them.
        before = [grid.times[j] if alike(j) == alike(k) else result.timing.taus[j] for j in range(first, k)]
        taus = [*before, row.tau, *grid.times[k + 1 : -1]]
        run = drive(solver(start(images(), grid.times[first], 3), times[first:], LINEAR), PREDICTOR, taus, keep=True)
        rest = [Evaluation(j, 0, t) for j, t in enumerate(grid.times[first:-1])]
        expected = judge(run, rest, k - first, end, "truncation", 3)
        assert row.loss == pytest.approx(expected, rel=1e-7, abs=1e-12), row


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
def test_a_stochastic_solver_draws_the_same_for_every_tau(strategy):
    solver, grid = make_solver("ddim", eta=1.0), make_grid("uniform", 4, LINEAR)
    times = torch.tensor(grid.times, dtype=torch.float64)
    setting = Setting(solver, LINEAR, PREDICTOR, "consistency", 4, times, layout(solver, times, LINEAR), 5)
    x = start(images(), grid.times[0], 0)
    if strategy == "sequential":
        problem = sequential_problem(setting, 1, x, [PREDICTOR(x, times[0], times[0])])
    else:
        problem = parallel_problem(setting, [0, 1, 2], 0, images(), torch.randn(6, 2).double(), grid.times[:-1])
    assert torch.equal(problem.losses(problem.t), problem.losses(problem.t))
    # Fresh draws would move the loss far more than this step of tau does.
    near = (problem.losses(problem.t * (1 - 1e-6)) - problem.losses(problem.t)).abs()
    assert (near < 1e-3 * problem.losses(problem.t)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tuning_a_stochastic_solver(strategy):
    solver, grid = make_solver("ddim", eta=0.5), make_grid("uniform", 4, LINEAR)
    config = TuneConfig(strategy=strategy, optimiser="search")
    one, two = (tune(PREDICTOR, LINEAR, solver, grid, images(), config).timing for _ in range(2))
    assert one.taus == two.taus and one.options == {"eta": 0.5}
    assert sum(one.tuning["loss_tuned"]) < sum(one.tuning["loss_untuned"])
