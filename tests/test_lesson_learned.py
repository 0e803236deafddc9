"""Notebook 05: what its figures claim of samplers that were learned on the spiral."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.figures.frames import picture
from tt_lib.lessons import learned
from tt_lib.lessons.tables import SHORT, knob_rows, study
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
from tt_lib.tuning.learn import KNOBS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def few_iterations():
    """Half of the lesson's iterations, which is enough for what is claimed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "ITERATIONS", 30)
        learned.toy_learn.cache_clear()
        yield
    learned.toy_learn.cache_clear()
    learned.combinations_table.cache_clear()


def ends(sampler):
    return sampler(range(learned.SAMPLES), start=learned._start()[0]).x


def loss_of(sampler):
    return learned.loss(ends(sampler))


def test_the_spiral_is_the_end_of_its_exact_flow():
    exact = learned._start()[1]
    spots = torch.cdist(exact, learned.spiral().means).min(1)
    # A standard deviation of 0.06 in two dimensions: the mean distance is 0.06 sqrt(pi / 2).
    assert spots.values.mean().item() == pytest.approx(0.075, rel=0.15)
    assert len(set(spots.indices.tolist())) == 12


def test_a_factor_of_1_is_the_untuned_sampler_whatever_the_knob():
    untuned = loss_of(learned.toy_sampler())
    for what in learned.MOVES:
        assert learned.loss(learned.moved_ends(1.0, what, 2)) == pytest.approx(untuned, rel=1e-6)


def test_in_the_noise_conditioning_moves_little_and_a_gain_much():
    untuned = ends(learned.toy_sampler())
    moved = {what: (learned.moved_ends(0.9, what, 1) - untuned).abs().max() for what in learned.MOVES}
    assert moved["conditioning time"] < 0.05 * moved["gain"]


def test_one_gain_reaches_a_lower_loss_than_one_conditioning_time():
    lowest = {what: learned.lowest_loss(what) for what in ("conditioning time", "gain")}
    assert lowest["gain"] < 0.5 * lowest["conditioning time"] < 0.5 * loss_of(learned.toy_sampler())


@pytest.mark.parametrize("what", learned.MOVES)
@pytest.mark.parametrize("evaluation", [1, 4])
@pytest.mark.parametrize("factor", [0.2, 1.6])
def test_every_place_of_the_sliders_is_drawn(what, evaluation, factor):
    lines = picture(learned.draw_move, factor, what, evaluation).axes[0].lines
    assert any(torch.as_tensor(line.get_xdata()).isfinite().sum() == learned.SAMPLES for line in lines)


@pytest.mark.parametrize("factor, what, evaluation", [(0, "gain", 1), (1, "gain", 5), (1, "gain", 0), (1, "tau", 1)])
def test_moves_that_there_are_not_are_refused(factor, what, evaluation):
    with pytest.raises(BadValue, match=r"got 0|and 5|and 0|unknown knob"):
        learned.moved_ends(factor, what, evaluation)


def test_knobs_together_leave_less_than_each_alone():
    table = learned.combinations_table()
    left = dict(zip(table["knobs"], table["left"], strict=True))
    assert len(left) == 8 and left["none"] == 1
    alone = [left[knob] for knob in KNOBS]
    assert max(alone) < 0.7
    assert max(left["grid, timing"], left["grid, gain"]) < 0.6 * min(alone)
    assert left["timing, gain"] > 0.75 * min(alone)
    assert left["grid, timing, gain"] < min(value for name, value in left.items() if name.count(",") < 2)
    # The longest line belongs to all three.
    lines = [line for line in learned.combinations_figure().axes[0].lines if len(line.get_xdata()) == 2]
    assert [min(line.get_xdata()) for line in lines] == list(left.values())


def test_conditioning_turns_answers_near_the_data_and_next_to_nothing_in_the_noise():
    angle, stretch = learned.acting()
    assert angle[:2].quantile(0.95) < 1 and (stretch[:2] - 1).abs().quantile(0.95) < 0.02
    assert angle[3].quantile(0.9) > 10 and stretch[3].std() > 0.1


def test_a_learned_timing_is_used_on_its_grid_and_helps_on_new_noises():
    timing = learned.toy_learn().timing
    assert learned.with_timing(learned.toy_sampler(), timing).grid.times == timing.grid_times
    assert loss_of(learned.with_timing(learned.toy_sampler(), timing)) < 0.25 * loss_of(learned.toy_sampler())
    panels = learned.hook_figure().axes
    assert [axes.get_title() for axes in panels] == [
        "untuned",
        "timing learned",
        "grid and timing learned",
        "converged",
    ]


def test_below_the_grey_border_a_fifth_of_tau_changes_an_answer_by_less_than_3_percent():
    sampler = learned.toy_sampler()
    changes = {}
    for lam in (-5.0, -3.0, -1.5, 0.5):
        t = learned.SCHEDULE.time_of_lam(lam)
        x = learned.SCHEDULE.alpha(t) * learned._start()[1] + learned.SCHEDULE.sigma(t) * learned._start()[0]
        at_t, at_tau = (sampler.predictor(x, t, tau) for tau in (t, 0.8 * t))
        changes[lam] = ((at_tau - at_t).norm(dim=1) / at_t.norm(dim=1)).median()
    assert changes[-5] < changes[-3] < changes[-1.5] < 0.03 < changes[0.5]


def test_panels_of_few_noises_join_ends_with_their_right_ends():
    own, right = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    (axes,) = learned.few_figure({1: (learned._start()[1], own, right)}).axes
    assert axes.get_title() == "1 noise"
    assert any(line.get_xydata().tolist() == [[0, 0], [1, 0.5]] for line in axes.lines)


def test_what_the_text_says_of_shipped_ratios_holds():
    timings = learned.shipped()
    assert {name for name, _ in timings} == {"DDIM", "2M", "UniPC"} and len(timings) == 9
    assert all(0.85 < timing.ratios[0] < 0.96 for timing in timings.values())
    inner = {name: [] for name in learned.COLOURS}
    for (name, _), timing in timings.items():
        inner[name] += timing.ratios[1:-1]
    assert max(inner["DDIM"]) < 1
    assert all(sum(ratio > 1 for ratio in inner[name]) > 0.7 * len(inner[name]) for name in ("2M", "UniPC"))
    assert len(learned.shared_figure().axes) == 2


def test_what_the_text_says_of_knobs_and_of_what_carries_over_holds():
    table, rows = study(), read_rows(results_folder() / "fd.csv", FD_COLUMNS)
    for nfe in (5, 10):
        own = {name: row.iloc[0] for name, row in knob_rows(table, "DDIM", nfe).items()}
        for short in SHORT:
            for pair in ("grid and gain", "grid and timing"):
                assert own["grid"][f"{short}_low"] > own[pair][f"{short}_high"]
                assert own[pair][f"{short}_low"] > own["grid, timing and gain"][f"{short}_high"]
            assert own["gain"][f"{short}_high"] < own["timing"][f"{short}_low"]
        assert own["grid"]["imagenet_low"] > own["nothing, on the straight path's nodes"]["imagenet_high"]
    for name in ("2M", "UniPC"):
        five, ten = knob_rows(table, name, 5), knob_rows(table, name, 10)
        values = {knobs: own.iloc[0] for knobs, own in ten.items() if "nothing" not in knobs}
        liked = [min(values, key=lambda knobs, short=short: values[knobs][short]) for short in SHORT]
        assert ["grid" in knobs for knobs in liked] == [True, False]
        for short in SHORT:
            assert ten["timing"].iloc[0][f"{short}_high"] < ten["gain"].iloc[0][f"{short}_low"]
            assert five["grid and timing"].iloc[0][f"{short}_high"] < five["grid and gain"].iloc[0][f"{short}_low"]
            both = (ten[knobs].iloc[0] for knobs in ("grid and timing", "grid, timing and gain"))
            pair, three = both
            assert three[f"{short}_low"] < pair[short] < three[f"{short}_high"]
    assert len(learned.knobs_figure(table).axes) == 4
    lines = [line.strip("| ").split(" | ") for line in learned.carry_table(rows).splitlines()[2:]]
    values = {name: [tuple(map(float, cell.split(" ± "))) for cell in cells] for name, *cells in lines}
    full = values["UniPC, NFE 6: 4,096 noises"]
    for name in ("16 noises", "100 iterations"):
        assert all(a[0] - a[1] < b[0] + b[1] for a, b in zip(values[name], full, strict=True))
    lent, gains = values["learned for UniPC"], values["learned for UniPC, with gain"]
    untuned = knob_rows(table, "DDIM", 5)["nothing, on the best of the diffusion's grids"].iloc[0]
    assert lent[0][0] > untuned["imagenet"] and lent[1][0] < untuned["classifier"]
    own, of_unipc, of_ddim = (values[name] for name in ("2M, NFE 5, grid and timing: its own", "UniPC's", "DDIM's"))
    eight, best = values["UniPC, NFE 6: what was learned for NFE 8"], values["UniPC, NFE 6: 4,096 noises"]
    for k in (0, 1):
        assert of_unipc[k][0] < 1.1 * own[k][0] and of_ddim[k][0] > 1.5 * own[k][0]
        assert best[k][0] + best[k][1] < eight[k][0] - eight[k][1]
    assert gains[0][0] > 2 * untuned["imagenet"] and gains[1][0] > untuned["classifier"]
