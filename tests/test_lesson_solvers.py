"""Notebook 08: solvers laid open, by what is known of them: published weights, closed forms and exact ends."""

import pytest
import torch

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.figures.frames import picture
from tt_lib.grids import make_grid
from tt_lib.lessons import fact
from tt_lib.lessons.solvers import (
    ANSWERS,
    ENDINGS,
    SPACINGS,
    draw_weights,
    end_images,
    errors_figure,
    evaluations,
    family,
    few_steps,
    ladder_errors,
    orders,
    registry_table,
    smallest_nfe,
    spaced,
    step_names,
    step_weights,
    weights_figure,
    with_run_up,
)
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d

SCHEDULE = linear_betas()
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
pytestmark = pytest.mark.usefixtures("one_thread")


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(axes):
    """The values of each line with any."""
    return [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata())]


# ---- grids


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_falls_from_end_to_end(spacing, steps):
    times = spaced(spacing, steps, SCHEDULE, 0.8, 0.2)
    assert times[[0, -1]].tolist() == [0.8, 0.2] and len(times) == steps + 1 and (times.diff() < 0).all()


def test_grids_are_even_in_what_they_say():
    for spacing, of in {"even in lambda": SCHEDULE.lam, "even in rho": SCHEDULE.rho, "even in t": lambda t: t}.items():
        steps = of(spaced(spacing, 6, SCHEDULE)).diff()
        assert torch.allclose(steps, steps[0].expand(6)), spacing
    steps = SCHEDULE.lam(spaced("long and short", 6, SCHEDULE)).diff()
    assert torch.allclose(steps / steps[0], float64([1.0, 3.0] * 3))


@pytest.mark.parametrize("spacing, steps", [("even in x", 3), ("even in t", 0)])
def test_impossible_grids_are_refused(spacing, steps):
    with pytest.raises(BadValue):
        spaced(spacing, steps, SCHEDULE)


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
    counts = table[["each step", "NFE", "smallest NFE"]]
    assert counts.loc["pndm"].tolist() == ["4 4 4 1 1", 14, 13]
    assert counts.loc["heun"].tolist() == ["2 2 2 2 1", 9, 1]
    assert counts.loc["dpm-solver-3", ["NFE", "smallest NFE"]].tolist() == [13, 4]
    twins = {"ipndm": "plms", "dpm-solver-1": "ddim", "euler": "ddim", "dpm-solver-fast": "dpm-solver-3"}
    assert {name: same for name, same in table["same as"].items() if same} == twins


@pytest.mark.parametrize(
    "name, options, counts, words",
    [
        ("ddim", {}, [1, 1], "one evaluation"),
        ("ddim", {"eta": 0.5}, [1, 1], "stochastic"),
        ("heun", {}, [2, 1], "several stages"),
        ("pndm", {}, [4, 1], "multistep, several stages"),
        ("sde-dpmpp-2m", {}, [1, 1], "multistep, stochastic"),
    ],
)
def test_families(name, options, counts, words):
    assert family(make_solver(name, **options), counts) == words


def test_a_solver_that_never_makes_the_evaluations_it_is_asked_for_is_named():
    wasteful = Solver("own", SOLVERS["ddim"].function, plan=lambda nfe: (nfe + 1, {}))
    with pytest.raises(BadValue, match="own spends no number of evaluations below 5"):
        smallest_nfe(wasteful, linear_betas(), most=5)


def test_evaluations_are_counted_and_named_by_their_step():
    times = spaced("even in t", 3, SCHEDULE)
    made = evaluations(make_solver("heun"), times, SCHEDULE)
    assert step_names(made) == ["0", "0'", "1", "1'", "2", "2'"]
    middle = times[1:3].repeat_interleave(2).tolist()
    assert [each.t for each in made] == pytest.approx([0.9, *middle, 0.1])
    assert step_names(evaluations(make_solver("pndm"), times, SCHEDULE))[:5] == ["0", "0'", "0''", "0'''", "1"]


# ---- coefficients


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("of", ANSWERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_rows_sum_to_1_and_hold_nothing_of_the_start(name, of, spacing):
    weights = step_weights(make_solver(name), spaced(spacing, 5, SCHEDULE), SCHEDULE, of)
    assert weights.table.shape == (5, len(weights.evaluations)) and weights.rest.abs().max() < 1e-9
    assert torch.allclose(weights.table.sum(1), torch.ones(5, dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize("name", ["plms", "ipndm-v"])
def test_even_steps_in_rho_have_adams_and_bashforths_weights(name):
    table = step_weights(make_solver(name), spaced("even in rho", 4, SCHEDULE), SCHEDULE).table
    assert torch.allclose(table[3], float64([-9, 37, -59, 55]) / 24, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "dpm-solver-2", "heun"])
@pytest.mark.parametrize("of", ANSWERS)
def test_the_weights_make_the_run_again(name, of):
    """Answers, weighted and summed from step to step, are what the solver returns: nothing of it is left out."""
    times, mixture = spaced("even in t", 4, SCHEDULE), ring_2d()
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = drive(make_solver(name)(x, times, SCHEDULE), MixturePredictor(mixture, SCHEDULE), keep=True)
    clean = [mixture.x0(request.x, request.t, SCHEDULE) for request in run.trajectory]
    answers = torch.stack(run.answers if of == "eps" else clean)
    rows = step_weights(make_solver(name), times, SCHEDULE, of).table
    y, rho = x / SCHEDULE.alpha(times[0]), SCHEDULE.rho(times)
    for k, mixed in enumerate(torch.einsum("kn,nbd->kbd", rows, answers)):
        kept = rho[k + 1] / rho[k]
        y = y + (rho[k + 1] - rho[k]) * mixed if of == "eps" else kept * y + (1 - kept) * mixed
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
    second = picture(draw_weights, "dpmpp-2m", "even in lambda", 3, "x0").axes[0]
    words = [text.get_text() for text in second.texts if text.get_text()]
    assert sorted(words) == ["1.00", "1.50", "1.50", "−0.50", "−0.50"]
    values = torch.as_tensor(second.collections[0].get_array().data).reshape(3, 3)
    assert torch.allclose(values, float64([[1, 0, 0], [-0.5, 1.5, 0], [0, -0.5, 1.5]]), atol=1e-9)
    ddim, own = weights_figure(["ddim", Solver("own", SOLVERS["heun"].function)], 3).axes
    assert [text.get_text() for text in ddim.texts if text.get_text()] == ["1.00"] * 3
    assert [text.get_text() for text in own.texts if text.get_text()] == ["0.50"] * 6 and own.get_title() == "own"


def test_the_first_figure_is_three_samplers_of_the_shipped_network_from_one_noise():
    ends = end_images(1)
    assert list(ends) == list(ENDINGS) and {each.shape for each in ends.values()} == {(1, 3, 32, 32)}
    contrast = {name: each.float().std().item() for name, each in ends.items()}
    assert contrast["unipc"] > contrast["unipc,final=lower"] > 1.2 * contrast["ddim"], "glaring, right, grey"


# ---- errors


def test_orders_are_powers_of_the_errors():
    assert orders([8.0, 4.0, 0.5]) == pytest.approx([1, 3])


def test_the_ladder_measures_the_largest_error_and_the_order():
    ladder = (40, 80, 160)
    errors = ladder_errors(["ddim", "dpmpp-3m,variant=exact", Solver("own", SOLVERS["heun"].function)], ladder=ladder)
    assert list(errors) == ["ddim", "dpmpp-3m,variant=exact", "own"]
    assert orders(errors["ddim"])[-1] == pytest.approx(1, abs=0.1)
    assert orders(errors["own"])[-1] == pytest.approx(2, abs=0.1)
    first, second = errors_figure({"a": errors, "b": {"own": errors["own"]}}, ladder, "steps", "error").axes
    assert drawn(first) == list(errors.values()) and drawn(second) == [errors["own"]]
    assert first.get_ylabel() == "error" and [axes.get_title() for axes in (first, second)] == ["a", "b"]


def test_fixed_weights_lose_their_order_by_the_grid_and_variable_ones_keep_it():
    smooth, rough = (
        ladder_errors(["plms", "ipndm-v"], each, (80, 160)) for each in ("even in lambda", "long and short")
    )
    assert [round(orders(errors["plms"])[0]) for errors in (smooth, rough)] == [2, 1]
    assert min(orders(errors["ipndm-v"])[0] for errors in (smooth, rough)) > 3.5


def test_a_first_step_of_low_order_costs_two_orders_where_trajectories_bend():
    plain, cut = (ladder_errors(["ipndm-v"], ladder=(80, 160), start=0.5, run_up=run_up) for run_up in (False, True))
    assert orders(plain["ipndm-v"])[0] == pytest.approx(2, abs=0.2)
    assert orders(cut["ipndm-v"])[0] == pytest.approx(4, abs=0.2)


def test_few_steps_are_distances_from_the_exact_end():
    errors = few_steps(["ddim", "heun"], "quadratic", (5, 9), samples=16)
    schedule, mixture = linear_betas(), ring_2d()
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = make_grid("quadratic", 9, schedule)
    end = drive(make_solver("ddim")(noise, grid, schedule), MixturePredictor(mixture, schedule)).x
    exact = exact_flow(mixture, noise, grid.times[0], 0.0, schedule)
    assert errors["ddim"][1] == pytest.approx((end - exact).square().sum(1).mean().sqrt().item(), rel=1e-6)
    assert len(errors["heun"]) == 2


def test_what_the_lesson_says_of_five_evaluations_holds():
    """Claims of notebook 08 about its three panels, and about its table beside them."""
    names = ["ddim", "heun", "deis-tab", "dpmpp-2m", "unipc", "unipc,final=lower"]
    five = {}
    for grid in ("uniform", "quadratic", "logsnr"):
        errors = {name: values[0] for name, values in few_steps(names, grid, (5,), 64).items()}
        five[grid] = sorted(errors, key=errors.__getitem__)
    assert [order[0] for order in five.values()] == ["deis-tab", "deis-tab", "dpmpp-2m"]
    assert [order[-1] for order in five.values()] == ["unipc", "heun", "heun"]
    assert five["uniform"][:2] == ["deis-tab", "ddim"] and make_solver("deis-tab").defaults["order"] == 3
    for features in ("imagenet-efficientnet-lite0", "cifar10-resnet"):
        where = {"model": "cifar10-ddpm-w96", "grid": "uniform", "nfe": 5, "timing": "untuned", "n": 10_000}
        ddim, unipc = (float(fact("fd", solver=name, features=features, **where)) for name in ("ddim", "unipc"))
        assert ddim > unipc, "grey images are no better than glaring ones"


def test_in_the_limit_of_short_steps_solvers_have_the_orders_of_the_lesson():
    errors = ladder_errors(["dpmpp-3m", "dpmpp-3m,variant=exact", "unipc"], ladder=(320, 640), run_up=True)
    assert [orders(values)[0] for values in errors.values()] == pytest.approx([2, 3, 4], abs=0.15)
