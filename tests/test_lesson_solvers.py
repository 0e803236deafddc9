"""Solvers laid open, by what is known of them: published weights, closed forms and exact ends."""

import math

import pytest
import torch

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.lessons.solvers import (
    FIXED,
    KINDS,
    LOOKS,
    SPACINGS,
    evaluations,
    family,
    few_steps,
    few_steps_figure,
    gaussian_moments,
    ladder_errors,
    ladder_figure,
    looks_of,
    one_solver_figure,
    orders,
    per_step,
    registry_table,
    smallest_budget,
    spaced,
    spread_figure,
    step_names,
    step_weights,
    weights_explorer,
    weights_figure,
    with_run_up,
)
from tt_lib.schedules import ContinuousLinearVP, linear_betas
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, exact_flow, gaussian_ddim, ring_2d, single_gaussian

SCHEDULE = ContinuousLinearVP()
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
pytestmark = pytest.mark.usefixtures("one_thread")


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


# ---- grids


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_falls_from_end_to_end(spacing, steps):
    times = spaced(spacing, steps, SCHEDULE, 0.8, 0.2)
    assert times[[0, -1]].tolist() == [0.8, 0.2] and len(times) == steps + 1 and (times.diff() < 0).all()


def test_grids_are_even_in_what_they_say():
    of = {"even in lambda": SCHEDULE.lam, "even in rho": SCHEDULE.rho, "even in t": lambda t: t}
    for spacing, variable in of.items():
        steps = variable(spaced(spacing, 6, SCHEDULE)).diff()
        assert torch.allclose(steps, steps[0].expand(6)), spacing
    steps = SCHEDULE.lam(spaced("long and short", 6, SCHEDULE)).diff()
    assert torch.allclose(steps / steps[0], float64([1.0, 3.0] * 3))


@pytest.mark.parametrize("call", [lambda: spaced("even in x", 3, SCHEDULE), lambda: spaced("even in t", 0, SCHEDULE)])
def test_impossible_grids_are_refused(call):
    with pytest.raises(BadValue):
        call()


def test_a_run_up_halves_the_first_step_in_lambda_again_and_again():
    plain = spaced("even in lambda", 8, SCHEDULE)
    cut = with_run_up(plain, SCHEDULE)
    assert len(cut) == len(plain) + 6 and torch.equal(cut[-8:], plain[1:]) and cut[0] == plain[0]
    steps = SCHEDULE.lam(cut).diff()
    assert torch.allclose(steps[1:7] / steps[7], 2.0 ** torch.arange(-6, 0, dtype=torch.float64), rtol=1e-6)


# ---- what solvers are


def test_the_table_holds_every_solver_as_the_engine_counts_it():
    table = registry_table(steps=5).set_index("solver")
    assert list(table.index) == list(SOLVERS)
    assert (
        table.loc["pndm", "each step"] == "4 4 4 1 1"
        and table.loc["pndm", "NFE"] == 14
        and table.loc["pndm", "smallest NFE"] == 13
    )
    assert table.loc["dpm-solver-3", ["NFE", "smallest NFE"]].tolist() == [13, 4]
    assert table.loc["heun", "each step"] == "2 2 2 2 1" and table.loc["heun", "family"] == "several stages"
    assert {name: same for name, same in table["same as"].items() if same} == {
        "ipndm": "plms",
        "dpm-solver-1": "ddim",
        "euler": "ddim",
        "dpm-solver-fast": "dpm-solver-3",
    }
    assert (
        table.loc["sde-dpmpp-2m", "family"] == "multistep, stochastic"
        and table.loc["ddim", "family"] == "one evaluation"
    )


def test_families_of_eta_and_of_pndm():
    assert family(make_solver("ddim", eta=0.5), [1, 1]) == "stochastic"
    assert family(make_solver("pndm"), [4, 1]) == "multistep, several stages"


def test_a_solver_that_spends_no_budget_exactly_is_named():
    def wasteful(nfe):
        return nfe + 1, {}

    with pytest.raises(BadValue, match="mine spends no budget below 5"):
        smallest_budget(Solver("mine", SOLVERS["ddim"].function, plan=wasteful), linear_betas(), most=5)


def test_evaluations_are_counted_and_named_by_their_step():
    times = spaced("even in t", 3, SCHEDULE)
    asked = evaluations(make_solver("heun"), times, SCHEDULE)
    assert per_step(asked) == [2, 2, 2] and step_names(asked) == ["0", "0'", "1", "1'", "2", "2'"]
    assert [request.t.item() for request in asked] == pytest.approx(
        [0.9, *times[1:3].repeat_interleave(2).tolist(), 0.1]
    )
    assert step_names(evaluations(make_solver("pndm"), times, SCHEDULE))[:5] == ["0", "0'", "0''", "0'''", "1"]


# ---- coefficients


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_rows_sum_to_1_and_hold_nothing_of_the_start(name, of, spacing):
    found = step_weights(make_solver(name), spaced(spacing, 5, SCHEDULE), SCHEDULE, of)
    assert found.table.shape == (5, len(found.asked))
    assert (
        torch.allclose(found.table.sum(1), torch.ones(5, dtype=torch.float64), rtol=1e-9)
        and found.rest.abs().max() < 1e-9
    )


@pytest.mark.parametrize("name", ["plms", "ipndm-v"])
def test_even_steps_in_rho_have_adams_and_bashforths_weights(name):
    table = step_weights(make_solver(name), spaced("even in rho", 4, SCHEDULE), SCHEDULE).table
    assert torch.allclose(table[3], float64([-9, 37, -59, 55]) / 24, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "dpm-solver-2", "heun"])
@pytest.mark.parametrize("of", KINDS)
def test_the_weights_make_the_run_again(name, of):
    """Answers, weighted and summed from step to step, are what the solver returns: nothing of it is left out."""
    times, mixture = spaced("even in t", 4, SCHEDULE), ring_2d()
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = drive(make_solver(name)(x, times, SCHEDULE), MixturePredictor(mixture, SCHEDULE), keep=True)
    answers = torch.stack(
        run.answers if of == "eps" else [mixture.x0(request.x, request.t, SCHEDULE) for request in run.trajectory]
    )
    rows = step_weights(make_solver(name), times, SCHEDULE, of).table
    y, rho = x / SCHEDULE.alpha(times[0]), SCHEDULE.rho(times)
    for k, mixed in enumerate(torch.einsum("kn,nbd->kbd", rows, answers)):
        y = (
            y + (rho[k + 1] - rho[k]) * mixed
            if of == "eps"
            else rho[k + 1] / rho[k] * y + (1 - rho[k + 1] / rho[k]) * mixed
        )
    assert torch.allclose(SCHEDULE.alpha(times[-1]) * y, run.x, rtol=1e-8)


def test_into_clean_data_the_newest_prediction_alone_counts():
    schedule = linear_betas()
    times = float64(make_grid("uniform", 4, schedule).times)
    for name in ("dpmpp-2m", "unipc", "plms"):
        assert torch.allclose(step_weights(make_solver(name), times, schedule, "x0").table[-1], float64([0.0, 0, 0, 1]))


def test_other_answers_are_refused():
    with pytest.raises(BadValue, match="answers"):
        step_weights(make_solver("ddim"), spaced("even in t", 2, SCHEDULE), SCHEDULE, "v")


def test_the_figure_shows_the_weights():
    figure = weights_figure(["ddim", "dpmpp-2m"], "even in lambda", 3, "x0")
    ddim, second = figure.axes[:2]
    assert [text.get_text() for text in ddim.texts] == ["1.00"] * 3
    assert sorted(text.get_text() for text in second.texts) == ["1.00", "1.50", "1.50", "−0.50", "−0.50"]
    assert torch.allclose(
        torch.as_tensor(second.images[0].get_array()), float64([[1, 0, 0], [-0.5, 1.5, 0], [0, -0.5, 1.5]]), atol=1e-9
    )
    assert len(weights_figure(["ddim"] * 1 + ["heun", "plms"], "even in t", 2, columns=2).axes) == 5


def test_every_control_redraws_and_takes_its_extremes():
    solver, spacing, steps, of, picture = weights_explorer().children
    seen = {bytes(picture.value)}
    for control, values in (
        (steps, [steps.min, steps.max]),
        (of, ["x0"]),
        (spacing, ["long and short"]),
        (solver, ["pndm", "ddim"]),
    ):
        for value in values:
            control.value = value
            seen.add(bytes(picture.value))
    assert len(seen) == 7
    assert set(solver.options) == set(DETERMINISTIC)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_explorer_draws_every_solver(name):
    one_solver_figure(name, "even in rho", 2, "eps")


# ---- errors


def test_orders_are_powers_of_the_errors():
    assert orders([8.0, 4.0, 0.5]) == pytest.approx([1, 3])


def test_the_ladder_measures_the_largest_error_and_the_order():
    ladder = (40, 80, 160)
    found = ladder_errors(["ddim", "dpmpp-3m,variant=exact", Solver("mine", SOLVERS["heun"].function)], ladder=ladder)
    assert list(found) == ["ddim", "dpmpp-3m,variant=exact", "mine"]
    assert orders(found["ddim"])[-1] == pytest.approx(1, abs=0.1) and orders(found["mine"])[-1] == pytest.approx(
        2, abs=0.1
    )
    axes = ladder_figure({"a": found}, ladder).axes[0]
    assert axes.lines[0].get_ydata().tolist() == found["ddim"]
    assert axes.get_legend().get_texts()[0].get_text() == f"ddim: {orders(found['ddim'])[-1]:.1f}"


def test_fixed_weights_lose_their_order_by_the_grid_and_variable_ones_keep_it():
    names = ["plms", "ipndm-v"]
    smooth, rough = (ladder_errors(names, spacing, (80, 160)) for spacing in ("even in lambda", "long and short"))
    assert [round(orders(found["plms"])[0]) for found in (smooth, rough)] == [2, 1]
    assert min(orders(found["ipndm-v"])[0] for found in (smooth, rough)) > 3.5


def test_a_first_step_of_low_order_costs_two_orders_where_trajectories_bend():
    plain, cut = (
        ladder_errors(["ipndm-v"], ladder=(80, 160), start=0.5, run_up=run_up)["ipndm-v"] for run_up in (False, True)
    )
    assert orders(plain)[0] == pytest.approx(2, abs=0.2) and orders(cut)[0] == pytest.approx(4, abs=0.2)


def test_few_steps_are_distances_from_the_exact_end():
    found = few_steps(["ddim", "heun"], "quadratic", (5, 9), samples=16)
    assert found.nfes == (5, 9)
    schedule, mixture = linear_betas(), ring_2d()
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = make_grid("quadratic", 9, schedule)
    end = drive(make_solver("ddim")(noise, grid, schedule), MixturePredictor(mixture, schedule)).x
    exact = exact_flow(mixture, noise, grid.times[0], 0.0, schedule)
    assert found.errors["ddim"][1] == pytest.approx((end - exact).square().sum(1).mean().sqrt().item(), rel=1e-6)
    lines = few_steps_figure({"quadratic": found}).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == list(found.errors.values())


def test_looks_are_fixed_all_different_and_end():
    assert looks_of(["mine", "plms"])["plms"] == looks_of(["plms"])["plms"] == LOOKS[FIXED["plms"]]._asdict()
    names = [*FIXED, "mine"]
    assert len({str(look) for look in looks_of(names).values()}) == len(names) == len(LOOKS)
    assert len({(look.color, look.linestyle) for look in LOOKS}) == len({look.marker for look in LOOKS}) == len(LOOKS)
    with pytest.raises(BadValue, match="too many"):
        looks_of([*names, "one more"])


# ---- noise


def test_moments_of_ddim_are_its_closed_form():
    schedule, times = linear_betas(), [0.9, 0.5, 0.2]
    found = gaussian_moments(make_solver("ddim"), float64(times), schedule, 0.3, 0.4)
    t, s = float64(0.9), float64(0.2)
    spread = torch.hypot(0.4 * schedule.alpha(t), schedule.sigma(t))
    ends = gaussian_ddim(
        torch.stack([0.3 * schedule.alpha(t), 0.3 * schedule.alpha(t) + spread])[:, None], times, 0.3, 0.4, schedule
    )
    assert found.mean == pytest.approx(ends[0].item()) and found.spread == pytest.approx((ends[1] - ends[0]).item())
    assert found.right_mean == pytest.approx(0.3 * schedule.alpha(s).item())
    assert found.right_spread == pytest.approx(torch.hypot(0.4 * schedule.alpha(s), schedule.sigma(s)).item())


@pytest.mark.parametrize(
    "name, options", [("ddim", {"eta": 0.7}), ("ddpm", {"variance": "large"}), ("sde-dpmpp-2m", {})]
)
def test_moments_are_those_of_many_draws(name, options):
    schedule, times, n = linear_betas(), float64([0.9, 0.5, 0.2]), 40_000
    draw = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=draw)

    found = gaussian_moments(make_solver(name, **options), times, schedule)
    start = schedule.alpha(times[0]) * (0.5 + 0.25 * noise(torch.empty(n, 1).double())) + schedule.sigma(
        times[0]
    ) * noise(torch.empty(n, 1).double())
    run = drive(
        make_solver(name, **options)(start, times, schedule, noise), MixturePredictor(single_gaussian(), schedule)
    )
    assert run.x.mean().item() == pytest.approx(found.mean, abs=5 * found.spread / math.sqrt(n))
    assert run.x.std().item() == pytest.approx(found.spread, rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("name", ["analytic-ddim", "analytic-ddpm"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_best_variance_is_exact_on_a_gaussian(name, steps):
    found = gaussian_moments(make_solver(name), spaced("even in t", steps, linear_betas(), 0.999, 0.02), linear_betas())
    assert found.spread == pytest.approx(found.right_spread, rel=1e-9) and found.mean == pytest.approx(found.right_mean)


def test_the_figure_of_spreads_shows_shares_of_the_right_one():
    schedule, steps = linear_betas(), (2, 10)
    figure = spread_figure({"ddim": make_solver("ddim"), "ddpm": make_solver("ddpm")}, steps)
    found = [
        gaussian_moments(make_solver("ddpm"), spaced("even in t", count, schedule, 0.999, 0.02), schedule)
        for count in steps
    ]
    assert figure.axes[0].lines[2].get_ydata().tolist() == pytest.approx(
        [each.spread / each.right_spread for each in found]
    )
