"""Notebook 05: what its figures claim of samplers that were learned on the spiral."""

import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.figures.frames import picture
from tt_lib.grids import make_grid
from tt_lib.lessons import learned
from tt_lib.lessons.tables import SHORT, converged, knob_rows, pick, study
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
from tt_lib.study.cells import Cell, find_timing
from tt_lib.tuning.learn import KNOBS, LARGEST_GAIN

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = (("", 0), ("_low", -1), ("_high", 1))


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


def test_from_a_factor_of_06_up_the_first_conditioning_time_moves_hardly_anything():
    untuned = loss_of(learned.toy_sampler())
    lost = {factor: learned.loss(learned.moved_ends(factor, "conditioning time", 1)) for factor in (0.2, 0.6, 0.8, 1.6)}
    assert lost[0.2] > 3 * untuned and all(lost[each] == pytest.approx(untuned, rel=0.03) for each in (0.6, 0.8, 1.6))


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


def test_by_hand_a_gain_of_the_first_three_evaluations_does_most():
    table = learned.lowest_by_hand()
    left, factor = (table.xs(name, level=1) for name in ("loss that is left", "factor"))
    gains = left.loc["gain"].tolist()
    assert max(gains[:3]) < 0.8 * left.drop(index="gain").min().min() and max(gains[:3]) < 0.8 * gains[3]
    assert (left < 1.00001).all().all(), "a factor of 1 is among them"
    assert factor.loc["node", 4] == 0.55
    moved, untuned = learned.moved_ends(0.55, "node", 4), loss_of(learned.toy_sampler())
    assert left.loc["node", 4] == pytest.approx(learned.loss(moved) / untuned)
    # Of the first three gains only the first lies within the bound of a learned one, and four of these remove more.
    within = [abs(factor.loc["gain", k] - 1) < LARGEST_GAIN + 1e-9 for k in (1, 2, 3)]
    assert within == [True, False, False]
    four = learned.with_timing(learned.toy_sampler(), learned.toy_learn(("gain",)).timing)
    assert loss_of(four) < 0.9 * min(gains) * untuned


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


def lams(grid):
    """Lambda of the nodes of a grid or timing, clean data aside."""
    return learned.SCHEDULE.lam(torch.tensor([t for t in grid.times if t > 0], dtype=torch.float64))


def test_what_learning_ends_at_depends_on_the_start():
    """UniPC with falling orders at five, from three grids."""
    table, timings, rows = study(), {}, {}
    for start in ("uniform", "quadratic", "logsnr"):
        name = learned.LEARNED["grid, timing and gain"] + ("" if start == "uniform" else f",start={start}")
        timings[start] = find_timing(learned.MODEL, Cell("unipc,final=lower", "learned", 5, name))
        assert timings[start].tuning["start_grid"] == start and timings[start].tuning["iterations"] == 300
        rows[start] = pick(table, solver="unipc,final=lower", nfe=5, timing=name, path="diffusion")
    apart = {start: (lams(timing) - lams(timings["uniform"])).abs().max() for start, timing in timings.items()}
    assert apart["quadratic"] < 0.15 and apart["logsnr"] > 1
    lost = {start: timing.tuning["validation_learned"] for start, timing in timings.items()}
    assert lost["quadratic"] < 1.1 * lost["uniform"] and lost["logsnr"] > 1.5 * lost["uniform"]
    for short in SHORT:
        assert level(rows["quadratic"], rows["uniform"], short) and below(rows["uniform"], rows["logsnr"], short)
    assert make_grid("logsnr", 5, learned.SCHEDULE).times[0] == 1


def test_what_the_text_says_of_shipped_ratios_holds():
    timings = learned.shipped()
    assert {name for name, _ in timings} == {"DDIM", "2M", "UniPC"} and {nfe for _, nfe in timings} == {5, 10}
    assert all(
        timing.tuning["iterations"] == (1000 if name == "UniPC" else 300) for (name, _), timing in timings.items()
    )
    assert all(0.85 < timing.ratios[0] < 0.96 for timing in timings.values())
    inner = {name: [] for name in learned.COLOURS}
    for (name, _), timing in timings.items():
        inner[name] += timing.ratios[1:-1]
    assert max(inner["DDIM"]) < 1
    assert all(sum(ratio > 1 for ratio in inner[name]) > 0.7 * len(inner[name]) for name in ("2M", "UniPC"))
    for (name, _), timing in timings.items():
        assert timing.ratios[-1] < 1 if name != "UniPC" else 1.1 < timing.ratios[-1] < 1.25
    # Nodes: where they began, and what learning moved.
    cleanest = learned.SCHEDULE.lam(learned.SCHEDULE.t_min)
    for (name, nfe), timing in timings.items():
        moved = lams(timing) - lams(make_grid("uniform", nfe, learned.SCHEDULE))
        assert timing.tuning["start_grid"] == "uniform" and (moved[:-1] > 0).all()
        assert moved[0] < 0.16 < moved[1:-1].min() if nfe == 5 else moved[0] > 0.2
        rest = cleanest - lams(timing)[-1]
        assert rest > 1 if name == "UniPC" else rest < 0.05
    # The last gain is the largest; the others are near 1.
    assert all(1.13 < max(timing.gains) == timing.gains[-1] < 1.2 for timing in timings.values())
    assert all(0.95 < gain < 1.05 for timing in timings.values() for gain in timing.gains[:-1])
    nodes, ratios, gains = learned.shared_figure().axes
    assert len(nodes.get_yticklabels()) == len(timings)
    grey = [line.get_xdata() for line in nodes.lines if line.get_marker() == "|"]
    for line, (_, nfe) in zip(grey, timings, strict=True):
        assert list(line) == pytest.approx(lams(make_grid("uniform", nfe, learned.SCHEDULE)).tolist())
    for panel, values in ((ratios, "ratios"), (gains, "gains")):
        drawn = [list(line.get_ydata()) for line in panel.lines if line.get_marker() != "None"]
        assert drawn == [pytest.approx(list(getattr(timing, values))) for timing in timings.values()]


def below(a, b, short):
    """Whether one interval lies below another."""
    return a[f"{short}_high"] < b[f"{short}_low"]


def level(a, b, short):
    return not below(a, b, short) and not below(b, a, short)


def test_what_the_text_says_of_knobs_holds():
    """Of the shipped rows, with intervals apart."""
    table = study()
    rows = {
        (name, nfe): {knobs: own.iloc[0] for knobs, own in knob_rows(table, name, nfe).items()}
        for name in learned.TUNED
        for nfe in (5, 10)
    }
    best, straight, uniform = list(rows["DDIM", 5])[:3]
    three = "grid, timing and gain"
    for (name, nfe), own in rows.items():
        ahead = {knobs for knobs in own if knobs != three and below(own[three], own[knobs], "imagenet")}
        if nfe == 5 or name == "DDIM":
            assert own[three]["imagenet"] == min(each["imagenet"] for each in own.values())
            assert set(own) - ahead == ({three, "grid and timing"} if name == "UniPC" else {three})
        else:
            levels = {knobs for knobs in learned.LEARNED if level(own[knobs], own[three], "imagenet")}
            pairs = {"grid and gain", "grid and timing", three}
            assert levels == pairs | ({"grid"} if name == "UniPC" else set())
            assert below(own["grid"], own[straight], "imagenet")
        others = {row["solver"] for knobs, row in own.items() if knobs != straight}
        assert others == {learned.TUNED[name]} and own[straight]["solver"] == learned.ON_STRAIGHT[name]
    for knobs in learned.LEARNED.values():
        cells = [Cell("unipc,final=lower", "learned" if "grid" in knobs else "uniform", nfe, knobs) for nfe in (5, 10)]
        assert all(find_timing(learned.MODEL, cell).tuning["iterations"] == 300 for cell in cells)
    for nfe in (5, 10):
        own = rows["DDIM", nfe]
        for short in SHORT:
            for pair in ("grid and gain", "grid and timing"):
                assert below(own[pair], own["grid"], short) and below(own[three], own[pair], short)
        ahead = {knobs for knobs in learned.LEARNED if below(own[knobs], own[straight], "imagenet")}
        assert ahead == {three}
        fewer = ("grid", "grid and gain", "grid and timing")
        assert all(below(own[straight], own[knobs], "imagenet") for knobs in fewer)
        # On the same held-out noises the learned grids have the lower loss.
        there = Cell("euler", "learned", nfe, f"{learned.LEARNED['grid and timing']},start=uniform-trailing")
        plain = find_timing(learned.STRAIGHT, there).tuning
        for knobs in fewer:
            tuning = find_timing(learned.MODEL, Cell("ddim", "learned", nfe, learned.LEARNED[knobs])).tuning
            assert all(tuning[key] == plain[key] for key in ("objective", "distance", "validation", "seed"))
            assert tuning["validation_learned"] < 0.95 * plain["validation_start"]
    for name in ("2M", "UniPC"):
        five, ten = rows[name, 5], rows[name, 10]
        assert all(below(five["grid and timing"], five["grid and gain"], short) for short in SHORT)
        values = {knobs: own for knobs, own in ten.items() if not knobs.startswith("untuned")}
        liked = [min(values, key=lambda knobs, short=short: values[knobs][short]) for short in SHORT]
        assert ["grid" in knobs for knobs in liked] == [True, False]
        for knobs in ("timing", "timing and gain"):
            assert ten[knobs]["classifier"] < converged(table)["classifier"]
            assert ten[knobs]["imagenet_low"] > 1.1 * converged(table)["imagenet_high"]
        # Between the dotted lines: what timing does is seen beside the uniform grid.
        assert all(below(ten["timing"], ten[uniform], short) for short in SHORT)
    assert all(below(rows["UniPC", 10]["grid"], rows["UniPC", 10][best], short) for short in SHORT)
    panels = learned.knobs_figure(table).axes
    assert len(panels) == 4
    assert all([each.get_text() for each in panel.get_xticklabels()] == list(rows["DDIM", 5]) for panel in panels[2:])
    # Between the dotted lines are the names without a grid that was chosen or learned.
    for panel, short, lower in zip(panels, (SHORT[0], SHORT[0], SHORT[1], SHORT[1]), (0, 0, 0, 4), strict=True):
        left, right = (line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":")
        names = [each for place, each in enumerate(rows["DDIM", 5]) if left < place < right]
        assert names == [uniform, "timing", "gain", "timing and gain"]
        (dashed,) = (line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--")
        points = [line.get_ydata()[0] for line in panel.lines if len(line.get_ydata()) == 1]
        assert dashed == converged(table)[short] and sum(each < dashed for each in points) == lower


def test_what_the_text_says_of_what_carries_over_holds():
    """Of the shipped rows, with intervals apart: each line of the table beside untuned and its own."""
    text = learned.carry_table(read_rows(results_folder() / "fd.csv", FD_COLUMNS))
    rows = {}
    for line in text.splitlines()[2:]:
        name, *cells = line.strip("| ").split(" | ")
        values = [tuple(map(float, cell.split(" ± "))) for cell in cells]
        ends = {f"{s}{end}": v + sign * h for s, (v, h) in zip(SHORT, values, strict=True) for end, sign in SIDES}
        rows[name] = ends
    own = {"UniPC, NFE 6": "its own, 4,096 noises"}

    def compared(used, learned_for, short="imagenet"):
        row = rows[f"{used}: {learned_for}"]
        plain = rows[
            f"{used}: untuned, {'best diffusion grid by ImageNet features' if 'small' in used else 'straight path'}"
        ]
        best = rows[f"{used}: {own.get(used, 'its own')}"]
        assert not below(row, best, short)
        helps = below(row, plain, short) - below(plain, row, short)
        return helps, below(best, row, short)

    for name in ("another 4,096 noises", "128 noises", "16 noises", "100 iterations"):
        assert [compared("UniPC, NFE 6", name, short) for short in SHORT] == [(1, False)] * 2
    assert compared("UniPC, NFE 6", "learned for NFE 8") == (1, True)
    assert compared("UniPC, NFE 5", "learned for NFE 6") == (-1, True)
    assert compared("small network, UniPC, NFE 5", "learned for the shipped network") == (1, True)
    assert compared("2M, NFE 5", "learned for UniPC") == (1, False) and compared("2M, NFE 5", "learned for DDIM") == (
        -1,
        True,
    )
    assert compared("2M, NFE 5", "learned for DDIM, with gain")[0] == 1
    assert compared("DDIM, NFE 5", "its own") == (-1, False), "its own harm, too"
    for options in ("", ",noises=16", ",iterations=100"):
        cell = Cell("unipc,final=lower", "learned", 6, learned.LEARNED["grid and timing"] + options)
        assert find_timing(learned.MODEL, cell).tuning["validation"] == 512
    for used, other in (("DDIM, NFE 5", "learned for UniPC"), ("UniPC, NFE 5", "learned for DDIM")):
        assert compared(used, other) == compared(used, f"{other}, with gain") == (-1, True)
        assert all(below(rows[f"{used}: {other}"], rows[f"{used}: {other}, with gain"], short) for short in SHORT)


def test_what_the_text_says_of_few_noises_holds_for_other_draws():
    """By the lesson's own loop: what was drawn there, and as many other draws."""
    path = Path(__file__).parents[1] / "notebooks" / "05_learn_the_whole_sampler.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (shown,) = ("".join(output["text"]) for output in cells[35]["outputs"] if "text" in output)
    lesson = dict(torch=torch, schedule=learned.SCHEDULE)
    lesson |= {name: getattr(learned.SCHEDULE, name) for name in ("alpha", "sigma", "rho", "lam")}
    for i in (8, 10, 12, 14):
        exec("".join(cells[i]["source"]).partition("\nbest, history")[0], lesson)
    other, found = lesson["LEARN_FIRST_SEED"] + 1000, {}
    new, start = lesson["pairs"](0, 400), (lesson["logits"], lesson["offsets"])
    untuned = lesson["loss"](start, *new).item()
    for count in (1, 16, 128):
        found[count] = []
        for draw in range(3):
            few = [knob.clone().requires_grad_() for knob in start]
            own = lesson["pairs"](other + 128 * draw, count)
            lesson["train"](few, *own)
            found[count].append([lesson["loss"](few, *each).item() for each in (own, new)])
    numbers = [list(map(float, re.findall(r"\d\.\d+", line))) for line in shown.splitlines()]
    assert numbers[0] == [round(untuned, 3)] and max(numbers[1][3:]) > 2 * untuned
    drawn = [list(zip(row[:3], row[3:], strict=True)) for row in numbers[1:]]
    for one, sixteen, many in (drawn, list(found.values())):
        assert all(own < 0.06 * untuned for own, _ in one) and all(each > 0.25 * untuned for _, each in one)
        assert all(each < 0.6 * untuned for _, each in sixteen) and all(each < 0.3 * untuned for _, each in many)
        middle = [statistics.median(each for _, each in draws) for draws in (sixteen, one)]
        assert middle[0] < 0.6 * middle[1]
