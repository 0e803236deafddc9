"""Joint tuning: the search, what the loss is, going on after an interruption, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from test_evaluate import data, features, make_sampler, metric, no_git, reference, sampler  # noqa: F401 - fixtures

import tt_lib.tuning.joint
from tt_lib.errors import BadValue, CorruptFile, NotFinite
from tt_lib.files import read_json, write_json
from tt_lib.metrics.evaluate import sample_statistics
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.noise import GENERATED_FIRST_SEED, JOINT_FIRST_SEED
from tt_lib.sampling import fine_sampler
from tt_lib.tuning.joint import JointConfig, Search, tune_joint

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = (0.8, 0.4, 0.1)
SMALL = JointConfig(samples=20, tries=6)


def searched(loss, tries, *, times=TIMES, tuned=3, bounds=(0.7, 1.3), t_min=0.001, **options) -> Search:
    search = Search(loss, times, tuned, bounds, t_min)
    search.run(tries, **options)
    assert search.lowest == loss(search.best) <= loss(times)
    return search


def bowl(*best):
    """A loss with its minimum at these ratios."""
    return lambda taus: sum((tau / t - b) ** 2 for tau, t, b in zip(taus, TIMES, best, strict=True))


def test_search_finds_the_minimum():
    search = searched(bowl(0.9, 1.06, 1.3), 60)
    assert [tau / t for tau, t in zip(search.best, TIMES, strict=True)] == pytest.approx([0.9, 1.06, 1.3], abs=0.002)
    assert search.rows[0] == (0, 0, pytest.approx(0.1036), 0.8, 0.8), "the first try is untuned"
    assert [row[:2] for row in search.rows] == [(k, i) for i in range(len(search.rows) // 3) for k in range(3)]


def test_search_follows_a_valley_along_no_axis():
    """Ratios that only pay together: one step after another cannot follow the valley r0 + r1 = 2."""

    def valley(taus):
        first, second = (tau / t for tau, t in zip(taus, TIMES[:2], strict=True))
        return 100 * (first + second - 2) ** 2 + (first - 0.85) ** 2

    search = searched(valley, 80, times=TIMES[:2], tuned=2)
    assert search.lowest < 1e-4 and search.best[0] / TIMES[0] == pytest.approx(0.85, abs=0.01)


def ripples(taus):
    """Many minima, the lowest of them near the ratio 1.2."""
    ratios = [tau / t for tau, t in zip(taus, TIMES, strict=True)]
    return sum((r - 1.2) ** 2 + 0.004 * math.cos(2 * math.pi * r / 0.05) for r in ratios)


def test_rounds_and_a_line_leave_poor_minima(monkeypatch):
    tries = JointConfig.tries
    monkeypatch.setattr(tt_lib.tuning.joint, "LINE_TRIES", tries)  # too many for a line: only rounds
    rounds = searched(ripples, tries)
    assert rounds.count > 0.9 * tries - 7, "it spends what it may"
    monkeypatch.setattr(tt_lib.tuning.joint, "SMALLEST", 1.0)  # one round
    once = searched(ripples, tries)
    assert once.count < 0.6 * tries and rounds.lowest < 1.5 * once.lowest < 0
    monkeypatch.setattr(tt_lib.tuning.joint, "LINE_TRIES", 20)
    assert searched(ripples, 3 * tries).lowest < 1.5 * once.lowest, "from a line"


def test_cma_es_leaves_the_minima_that_hold_cobyqa():
    times = tuple(0.9 - 0.1 * step for step in range(8))

    def many_minima(taus):
        ratios = [tau / t for tau, t in zip(taus, times, strict=True)]
        return sum((r - 0.7) ** 2 + 0.02 * (1 - math.cos(2 * math.pi * (r - 0.7) / 0.15)) for r in ratios)

    tries, options = 8 * 2 * JointConfig.tries, {"times": times, "tuned": 8, "bounds": (0.5, 1.5)}
    found = searched(many_minima, tries, **options, optimiser="cma-es")
    held = searched(many_minima, tries, **options)
    assert found.lowest < 1e-3 < 0.05 < held.lowest < many_minima(times)
    assert 0.9 * tries < found.count <= tries + 1, "it begins again when a run has come to its end, within its tries"
    assert searched(many_minima, tries, **options, optimiser="cma-es").best == found.best
    assert searched(many_minima, tries, **options, optimiser="cma-es", seed=1).best != found.best


@pytest.mark.parametrize("optimiser", ["cobyqa", "cma-es"])
def test_search_keeps_frozen_steps_bounds_and_range(optimiser):
    search = searched(bowl(0.5, 0.5, 0.5), 80, tuned=2, bounds=(0.95, 1.05), t_min=0.39, optimiser=optimiser)
    assert search.best == pytest.approx((0.95 * 0.8, 0.39, 0.1), rel=1e-4) and {row[0] for row in search.rows} == {0, 1}
    one = searched(lambda taus: -taus[0], 20, times=(0.95,), tuned=1, bounds=(0.5, 2.0), optimiser=optimiser)
    assert one.best == (1.0,)


def test_search_is_never_worse_than_untuned_and_tries_no_more_than_it_may():
    search = searched(bowl(1, 1, 1), 12)
    assert search.best == TIMES and search.count <= 1 + 12 and len(search.rows) == 3 * search.count


def test_the_loss_is_the_distance_of_samples_that_are_never_measured(sampler, metric):  # noqa: F811
    timing = tune_joint(sampler, metric, SMALL).timing
    assert timing.name == "frechet-joint" and timing.taus != timing.times and timing.ratios[-1] == 1
    seeds = range(JOINT_FIRST_SEED, JOINT_FIRST_SEED + 20)
    assert seeds.start > GENERATED_FIRST_SEED + 100_000_000
    losses = [
        frechet_distance(sample_statistics(each, metric.features, seeds), metric.reference)
        for each in (replace(sampler, timing=timing), sampler)
    ]
    tuning = timing.tuning
    assert tuning["loss_tuned"] + tuning["loss_untuned"] == pytest.approx(losses, rel=1e-9) and losses[0] < losses[1]
    assert (tuning["features"], tuning["first_seed"]) == (metric.features.name, JOINT_FIRST_SEED)
    assert tuning["dataset"] == metric.dataset


def test_the_loss_is_the_distance_of_the_ends(sampler):  # noqa: F811
    config = JointConfig("end", samples=6, tries=8)
    timing = tune_joint(sampler, None, config, batch=4).timing
    assert timing.name == "end-joint" and timing.tuning["objective"] == "end"
    seeds = range(JOINT_FIRST_SEED, JOINT_FIRST_SEED + 6)
    exact = fine_sampler(sampler)(seeds).x
    for losses, each in (("loss_tuned", timing), ("loss_untuned", None)):
        error = (replace(sampler, timing=each)(seeds).x - exact).square().mean().item()
        assert timing.tuning[losses] == [pytest.approx(error, rel=1e-4)]
    assert timing.tuning["loss_tuned"][0] < 0.9 * timing.tuning["loss_untuned"][0]


def test_a_stochastic_solver_draws_the_same_for_every_timing(metric):  # noqa: F811
    one, two = (tune_joint(make_sampler(eta=0.5), metric, SMALL) for _ in range(2))
    assert one.timing.taus == two.timing.taus and one.history.equals(two.history)
    assert one.timing.tuning["loss_tuned"][0] < one.timing.tuning["loss_untuned"][0]


class Stop(Exception):
    """In place of Ctrl-C."""


def stop_after(count: int):
    def stop(done, total, message):
        if done == count:
            raise Stop

    return stop


@pytest.mark.parametrize("after", [1, 7])
def test_interrupted_and_resumed_is_uninterrupted(sampler, metric, tmp_path, after):  # noqa: F811
    state, seen = tmp_path / "state", []
    with pytest.raises(Stop):
        tune_joint(sampler, metric, SMALL, state=state, progress=stop_after(after))
    assert state.exists()
    resumed = tune_joint(sampler, metric, SMALL, state=state, progress=lambda *report: seen.append(report))
    whole = tune_joint(sampler, metric, SMALL)
    assert resumed.timing.taus == whole.timing.taus and resumed.history.equals(whole.history)
    assert state.exists(), "until its timing is written, it is all that there is of it"
    assert seen[-1][0] == whole.history.iteration.nunique() <= seen[-1][1]


def test_state_of_another_tuning_and_damaged_state(sampler, metric, tmp_path):  # noqa: F811
    state = tmp_path / "state"
    with pytest.raises(Stop):
        tune_joint(sampler, metric, SMALL, state=state, progress=stop_after(1))
    with pytest.raises(BadValue, match="state of another tuning"):
        tune_joint(sampler, metric, JointConfig(samples=30), state=state)
    content = read_json(state)
    for damage in ({"losses": None}, {"losses": [[0.5]]}, {"losses": [[["a"], 1.0]]}, {"elapsed": []}):
        write_json(state, content | damage)
        with pytest.raises(CorruptFile, match=r"state of a joint tuning \(.*\); delete it"):
            tune_joint(sampler, metric, SMALL, state=state)
    state.write_text(json.dumps(content).replace("[[", "[[NaN, ", 1))
    with pytest.raises(CorruptFile, match="NaN is no finite number"):
        tune_joint(sampler, metric, SMALL, state=state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "beauty"}, "beauty.*end, frechet"),
        ({"samples": 1}, "samples of a joint tuning must be at least 2, got 1"),
        ({"freeze_last": -1}, "freeze_last .* at least 0"),
        ({"tries": 2}, "tries .* at least 3"),
        ({"optimiser": "adam"}, "adam.*cma-es, cobyqa"),
        ({"tries": 5.0}, "tries must be a whole number, got 5.0"),
        ({"seed": -1}, "seeds lie from 0 to 999,999,999"),
        ({"seed": 10**9 - 999}, "the seeds 999999001 to 1000000000 of 1000 samples"),
    ],
)
def test_impossible_choices(changes, message):
    with pytest.raises(BadValue, match=message):
        JointConfig(**changes)


def test_impossible_tunings(sampler):  # noqa: F811
    with pytest.raises(BadValue, match=r"cannot tune ddim .*draws noise and follows no trajectory"):
        tune_joint(make_sampler(eta=0.5), None, JointConfig("end"))
    with pytest.raises(BadValue, match="frechet-joint is tuned by a Fréchet distance: give the metric"):
        tune_joint(sampler, None, SMALL)
    steps = sampler.grid.steps
    with pytest.raises(BadValue, match=f"{steps} steps and freeze_last = {steps} "):
        tune_joint(sampler, None, JointConfig("end", freeze_last=steps))
    # One generation for the times that may move, or nothing would be tried.
    few = JointConfig("end", samples=2, freeze_last=steps - 1, tries=7, optimiser="cma-es")
    with pytest.raises(
        BadValue, match="tries = 7 for each of 1 times are fewer than one generation of cma-es, 8; give t"
    ):
        tune_joint(sampler, None, few)
    assert tune_joint(sampler, None, replace(few, tries=8)).history.iteration.nunique() == 9


def test_a_loss_that_is_no_number(sampler, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tt_lib.tuning.joint, "_end_loss", lambda *a: (lambda *b: math.inf, [], {}))
    with pytest.raises(NotFinite, match=r"the loss of the taus .* is inf"):
        tune_joint(sampler, None, JointConfig("end"))
