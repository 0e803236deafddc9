"""What holds for every solver of the registry, measured orders of convergence, and how solvers are made by name."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import pytest
import torch
from solver_helpers import (
    CONTINUOUS,
    DETERMINISTIC,
    EXACT,
    LINEAR,
    LOWERED,
    MEAN,
    PATHS,
    SCALE,
    SCHEDULES,
    STOCHASTIC,
    UNEVEN,
    coefficient_table,
    draw,
    even_in_lambda,
    float64,
    law_of,
    points,
    start_law,
    with_gamma,
)
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.lessons.solvers import with_run_up
from tt_lib.schedules import Schedule, make_schedule
from tt_lib.solvers.orders import orders_of_steps
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.toy import MixturePredictor, exact_flow, single_gaussian, two_modes_1d

WITH_OPTIONS = [
    *LOWERED,
    "deis-tab,order=4",
    "ipndm-v,order=2",
    "plms,order=3",
    "dpmpp-3m,variant=exact",
    *(f"unipc,order={order},variant={variant}" for order in (1, 2, 3) for variant in ("bh1", "bh2")),
]
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- orders of convergence


MODES = two_modes_1d(scale=0.4)


@functools.cache
def exact_end(schedule: Schedule = CONTINUOUS, first: float = 0.9, last: float = 0.1) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None] * schedule.scale(first)
    return x, exact_flow(MODES, x, first, last, schedule, rtol=1e-12)


def errors_of(name: str, schedule: Schedule, grids: list[Tensor]) -> list[float]:
    """The largest error of the end on each grid; all have the same ends."""
    x, expected = exact_end(schedule, *grids[0][[0, -1]].tolist())
    solver, predictor = make_solver(name), MixturePredictor(MODES, schedule)
    return [(drive(solver(x, times, schedule), predictor).x - expected).abs().max().item() for times in grids]


def measured_orders(errors: list[float]) -> list[float]:
    """From one grid to the next with twice as many steps."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def takes_run_up(name: str) -> bool:
    """A run-up, so that the first steps, which are of lower order, add nothing; fixed weights would not see it."""
    return bool(SOLVERS[name.partition(",")[0]].history) and not name.startswith(("plms", "pndm", "ipndm,"))


ORDERS = {
    1: ["ddim", "dpm-solver-1", "euler", "ipndm-v,order=1", "deis-tab,order=1", "plms,order=1"],
    2: ["dpmpp-2m", "dpm-solver-2", "dpmpp-2s", "heun", "ipndm-v,order=2", "deis-tab,order=2"],
    3: ["dpm-solver-3", "dpm-solver-fast", "ipndm-v,order=3", "deis-tab", "dpmpp-3m,variant=exact"],
    4: ["ipndm-v", "deis-tab,order=4"],
}
# A corrector is worth one order.
ORDERS[2] += ["unipc,order=1", "unipc,order=1,variant=bh1"]
ORDERS[3] += ["unipc,order=2", "unipc,order=2,variant=bh1"]
ORDERS[4] += ["unipc"]
# Half the curvature costs the third order. Weights of even steps on steps uneven in rho never have more than 2.
ORDERS[2] += ["dpmpp-3m", "plms,order=2", "plms,order=3", "plms", "ipndm", "pndm"]
# A last step of order 1 errs by h^2, and that is the whole's error. UniPC does not correct it either.
ORDERS[1] += ["deis-tab,order=1,final=lower"]
ORDERS[2] += [
    *LOWERED,
    "dpmpp-3m,variant=exact,final=lower",
    "deis-tab,order=4,final=lower",
    "unipc,order=1,final=lower",
]


def test_every_deterministic_solver_has_an_order():
    assert {name.partition(",")[0] for names in ORDERS.values() for name in names} == set(DETERMINISTIC)


@pytest.mark.parametrize("name, order", [(name, order) for order, names in ORDERS.items() for name in names])
def test_measured_order_of_convergence(name, order):
    grids = [even_in_lambda(steps, CONTINUOUS) for steps in (80, 160, 320)]
    errors = errors_of(
        name, CONTINUOUS, [with_run_up(times, CONTINUOUS) if takes_run_up(name) else times for times in grids]
    )
    assert measured_orders(errors) == pytest.approx([order, order], abs=0.45), f"errors {errors}"


METHODS = sorted({(SOLVERS[name].function, SOLVERS[name].plan): name for name in reversed(DETERMINISTIC)}.values())
"""One name for each deterministic method: some have several."""


@pytest.mark.parametrize(
    "name, order", [(name, order) for order in ORDERS for name in METHODS if name in ORDERS[order]]
)
@pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
def test_measured_order_on_every_path(name, order, schedule):
    ends = schedule.time_of_lam(float64([-2.2, 2.2])).tolist()
    grids = [even_in_lambda(steps, schedule, *ends) for steps in (40, 80)]
    errors = errors_of(
        name, schedule, [with_run_up(times, schedule) if takes_run_up(name) else times for times in grids]
    )
    assert measured_orders(errors) == pytest.approx([order], abs=0.5), f"errors {errors}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("path", ["flow", "zero-snr"])
def test_a_run_may_begin_where_alpha_is_0_or_says_why_not(name, path):
    """The first step is of first order, which leaves a solver of order 2 or more with order 2."""
    schedule = PATHS[path]
    grids = [torch.linspace(1, 0.1, steps + 1, dtype=torch.float64) for steps in (30, 60)]
    if SOLVERS[name].midpoint:
        with pytest.raises(BadValue, match=f"{name} evaluates in the middle .* {path!r} has lambda = -inf at t = 1"):
            errors_of(name, schedule, grids)
        return
    order = 1 if name in ORDERS[1] else 2
    errors = errors_of(name, schedule, grids)
    assert measured_orders(errors)[0] > order - 0.3, f"errors {errors}"


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not SOLVERS[name].midpoint])
def test_samples_that_begin_where_alpha_is_0_and_others_make_one_batch(name):
    """Parallel tuning runs steps of one grid as one batch: some begin at t = 1, some below."""
    flow, solver, x = PATHS["flow"], make_solver(name), points(2)
    times = torch.linspace(1, 0, 6, dtype=torch.float64)[:, None] * float64([1.0, 0.7])
    predictor = MixturePredictor(MODES, flow)
    together = drive(solver(x, times, flow), predictor).x
    for i in range(2):
        alone = drive(solver(x[i : i + 1], times[:, i], flow), predictor).x
        assert torch.allclose(together[i : i + 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ddim,eta", *STOCHASTIC])
@pytest.mark.parametrize("path", PATHS)
def test_what_draws_noise_is_refused_off_variance_preserving_paths(name, path):
    solver = make_solver("ddim", eta=1.0) if name == "ddim,eta" else make_solver(name)
    with pytest.raises(BadValue, match=f"{name.partition(',')[0]} cannot draw noise on the schedule {path!r}"):
        solver(points(2), float64([0.9, 0.5]), PATHS[path], draw(0))


def test_one_ode_on_every_path():
    """What integrates eps or x0 over lambda takes the same steps on every path with the same signal-to-noise ratios:
    DDIM on a VP diffusion is Euler's method on the straight path. Heun's method integrates another variable there."""
    lam, noise = LINEAR.lam(make_grid("logsnr", 7, LINEAR).tensor()[:-1]), points(5)
    ve = make_schedule("ve,sigma_max=200")  # as noisy as the diffusion at t = 1

    def end(name: str, schedule: Schedule) -> Tensor:
        times = torch.cat([schedule.time_of_lam(lam), float64([0.0])])
        start = noise * schedule.scale(times[0])
        return drive(make_solver(name)(start, times, schedule), MixturePredictor(MODES, schedule)).x

    for name in ("ddim", "dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "dpm-solver-2", "dpm-solver-3", "unipc"):
        for schedule in (PATHS["flow"], PATHS["zero-snr"], ve):
            assert torch.allclose(end(name, schedule), end(name, LINEAR), rtol=1e-9, atol=1e-9), (name, schedule)
    for name in ("heun", "ipndm-v"):
        assert torch.allclose(end(name, ve), end(name, LINEAR), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(end(name, PATHS["flow"]), end(name, LINEAR), rtol=1e-3)
    flow, times = PATHS["flow"], torch.cat([PATHS["flow"].time_of_lam(lam), float64([0.0])])
    x = noise * flow.scale(times[0])
    for t, s in pairwise(times):  # Euler's method, as every flow model is sampled
        eps, x0 = MODES.eps_x0(x, t, flow)
        x = x + (s - t) * (eps - x0)
    assert torch.allclose(end("euler", flow), x, rtol=1e-9, atol=1e-12)


# ---- what holds for all


@pytest.mark.parametrize("name", [*DETERMINISTIC, *LOWERED])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_a_solver_makes_exactly_the_evaluations_asked_for_none_of_them_at_clean_data(name, end):
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    possible = {"pndm": range(13, 17), "dpm-solver-3": range(4, 17, 3)}.get(name, range(1, 17))
    for nfe in range(17):
        if nfe in possible:
            solver, steps = make_solver(name).for_nfe(nfe)
            times = make_grid("logsnr", steps, LINEAR) if end == 0 else even_in_lambda(steps, LINEAR, 1.0, end)
            run = drive(solver(points(2), times, LINEAR), predictor, keep=True)
            assert run.nfe == nfe and run.x.isfinite().all() and all(request.t > 0 for request in run.trajectory)
        else:
            with pytest.raises(BadValue, match=rf"got {nfe}; ask|4, 7, 10, \.\.\., not {nfe}; .*dpm-solver-fast"):
                make_solver(name).for_nfe(nfe)


@pytest.mark.parametrize("name", [*SOLVERS, *LOWERED])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_step_to_clean_data_is_finite_and_right(name, schedule, steps):
    grid = make_grid("logsnr", steps, schedule)
    mixture = single_gaussian(MEAN, SCALE)
    solver = with_gamma(name, grid.times)
    run = drive(solver(points(5), grid, schedule, draw(1)), MixturePredictor(mixture, schedule), keep=True)
    state, t, _ = run.trajectory[-1]
    # From any state the last step's result is the posterior mean of x_0, with no noise.
    assert run.x.isfinite().all()
    assert torch.allclose(run.x, mixture.x0(state, t, schedule), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_is_linear_in_its_start_and_its_answers(name):
    table = coefficient_table(name, UNEVEN, LINEAR)
    x, answers = points(3, 5), [points(3, 5, seed=k + 1) for k in range(len(table) - 1)]
    sent = iter(answers)
    run = drive(make_solver(name)(x, UNEVEN, LINEAR), lambda x, t, tau: next(sent))
    expected = sum(c * part for c, part in zip(table, [x, *answers], strict=True))
    assert torch.allclose(run.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*DETERMINISTIC, *LOWERED, "ddim-eta"])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_vector_of_times_is_each_sample_alone(name, steps):
    solver = make_solver("ddim", eta=1.0) if name == "ddim-eta" else make_solver(name)
    predictor, z = MixturePredictor(two_modes_1d(), LINEAR), points(4, seed=5)
    # Three grids, one twice; one of them down to clean data, but where orders would have to differ.
    starts, ends = (
        float64([1.0, 0.9, 0.5, 0.9]),
        float64([0.3, 0.05, 0.1 if "orders" in solver.defaults else 0.0, 0.05]),
    )
    times = starts + torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None] ** 1.3 * (ends - starts)
    x = points(4)
    together = drive(solver(x, times, LINEAR, lambda x: z), predictor, keep=True)
    assert all(request.t.shape == (4,) and (request.t > 0).all() for request in together.trajectory)
    for i in range(4):
        one, noise = slice(i, i + 1), z[i : i + 1]
        alone = drive(solver(x[one], times[:, i], LINEAR, lambda x, noise=noise: noise), predictor)
        assert torch.allclose(together.x[one], alone.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_float32_state_stays_float32_with_float64_coefficients(name):
    grid, x, z = make_grid("logsnr", 6, LINEAR), points(5), points(5, seed=1)
    single, double = (
        drive(with_gamma(name, grid.times)(start, grid, LINEAR, lambda x: z.to(x.dtype)), EXACT).x
        for start in (x.float(), x)
    )
    assert single.dtype == torch.float32 and (single - double).abs().max() < 1e-4


# ---- noise


def test_only_stochastic_solvers_draw_noise():
    def refuse(x):
        raise AssertionError("a deterministic solver drew noise")

    for name in DETERMINISTIC:
        drive(make_solver(name)(points(2), UNEVEN, LINEAR, refuse), EXACT)
    for solver in (make_solver("ddim", eta=0.3), *(with_gamma(name, UNEVEN) for name in STOCHASTIC)):
        assert solver.stochastic
        with pytest.raises(BadValue, match="draws noise"):
            drive(solver(points(2), UNEVEN, LINEAR), EXACT)


@pytest.mark.parametrize("name", ["ddpm", "ddpm,variance=large", "sde-dpmpp-2m"])
def test_many_steps_sample_the_data(name):
    """Mean and variance of the data, the closer the more steps. (The analytic solvers: test_gamma.)"""
    errors = []
    for steps in (100, 400):
        times = float64(make_grid("logsnr", steps, LINEAR).times)
        mean, variance = law_of(name, times, *start_law(times[0]))
        errors.append(max(abs(mean - MEAN), abs(variance / SCALE**2 - 1)))
    assert errors[1] < 0.03 and errors[1] < max(0.7 * errors[0], 0.002), errors


# ---- orders of steps


@pytest.mark.parametrize(
    "name, nfe, orders",
    [
        ("dpm-solver-fast", 6, "321"),
        ("dpm-solver-fast", 10, "3331"),
        ("dpmpp-2s", 5, "221"),
        ("heun", 6, "2211"),
        ("dpm-solver-2", 10, "222211"),
    ],
)
def test_how_evaluations_become_steps(name, nfe, orders):
    solver, steps = make_solver(name).for_nfe(nfe)
    assert solver.options == {"orders": orders} and steps == len(orders)


@pytest.mark.parametrize(
    "steps, order, final, orders",
    [
        (7, 3, "lower", "1233321"),
        (4, 3, "lower", "1221"),
        (1, 3, "lower", "1"),
        (8, 4, "lower", "12344321"),
        (4, 3, 0, "1221"),
        (4, 3, 2, "1233"),
        (4, 3, 9, "1233"),
        (4, 3, "full", "1233"),
    ],
)
def test_orders_rise_at_the_start_and_fall_at_the_end_where_that_is_asked_for(steps, order, final, orders):
    assert "".join(map(str, orders_of_steps(steps, order, final))) == orders


def test_a_stretch_of_a_grid_lowers_no_order_before_the_grids_end():
    solver = make_solver("unipc,final=lower")
    assert [solver.part(0, 4, after).options["final"] for after in (0, 2, 3, 9)] == [0, 2, 3, 3]
    assert make_solver("unipc").part(0, 4, 0).options == {}, "else it makes no difference"
    assert make_solver("heun", orders="2211").part(1, 2, 1).options == {"orders": "21"}


# ---- by name


@pytest.mark.parametrize("name", ["plms", "ipndm", "ipndm-v", "deis-tab", "unipc"])
def test_order_is_an_option_and_sets_the_history(name):
    extra = name == "unipc"  # its corrector reaches back further by one
    for order in SOLVERS[name].choices["order"]:
        assert make_solver(name, order=order).history == order - 1 + extra
    assert make_solver(name).history == SOLVERS[name].history


def test_a_solver_is_spelled_with_its_options():
    solver = make_solver("unipc,variant=bh1,order=2")
    assert solver.options == {"order": 2, "variant": "bh1"} == make_solver("unipc", order=2, variant="bh1").options
    assert solver.spelling == "unipc,order=2,variant=bh1"
    assert make_solver("unipc,order=3,final=full").spelling == "unipc", "a default says nothing"
    assert make_solver("ddim", eta=0.5).spelling == "ddim" and make_solver("ddim", eta=0.5).eta == 0.5
    assert make_solver("dpm-solver-fast").for_nfe(7)[0].spelling == "dpm-solver-fast", (
        "what follows from NFE is no choice"
    )
    assert make_solver("analytic-ddim,pixels=1.5").options == {"pixels": 1.5}
    assert [make_solver(name).spelling for name in LOWERED] == LOWERED


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eular", {}, "unknown solver 'eular'.*ddim, .*dpmpp-2m"),
        ("ddim", {"order": 2}, "'ddim' takes no option 'order'.*eta"),
        ("ddim", {"eta": 1.5}, "eta must lie between 0.*got 1.5"),
        ("sde-dpmpp-2m", {"order": 1}, "takes no option 'order'; it takes none"),
        ("plms", {"order": 5}, "order of solver 'plms' must be one of 1, 2, 3, 4; got 5"),
        ("dpmpp-3m", {"final": "lowest"}, "final of solver 'dpmpp-3m' must be one of full, lower; got 'lowest'"),
        ("unipc,order", {}, "spelled name=value.*got 'order'"),
        ("unipc,order=two", {}, "got 'two'"),
        ("unipc,order=2,order=2", {}, "order cannot be given twice"),
        ("ddim,eta=1", {}, "--eta is an option"),
        ("heun,orders=2", {}, "follow from NFE"),
    ],
)
def test_a_wrong_name_or_option_is_named(name, options, message):
    with pytest.raises(BadValue, match=message):
        make_solver(name, **options)
