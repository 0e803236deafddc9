"""Joint tuning: the search, what it is judged by, going on after an interruption, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from test_evaluate import data, features, make_sampler, no_git, reference, sampler  # noqa: F401 - fixtures

import tt_lib.tuning.joint
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.metrics.evaluate import sample_statistics
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.noise import SampleNoise
from tt_lib.sampling import fine_end
from tt_lib.study.workbench import GENERATED_FIRST_SEED
from tt_lib.tuning.joint import FIRST_SEED, JointConfig, search, tune_joint

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = (0.8, 0.4, 0.1)
SMALL = JointConfig(samples=20, tries=6)


def bowl(*best):
    """A loss with its minimum at these ratios."""
    return lambda taus: sum((tau / t - b) ** 2 for tau, t, b in zip(taus, TIMES, best, strict=True))


def test_search_finds_the_minimum():
    taus, rows = search(bowl(0.9, 1.06, 1.3), TIMES, 3, (0.7, 1.3), 0.001, 60)
    ratios = [tau / t for tau, t in zip(taus, TIMES, strict=True)]
    assert ratios == pytest.approx([0.9, 1.06, 1.3], abs=0.002)
    assert rows[0] == (0, 0, pytest.approx(0.1036), 0.8, 0.8) and {row[0] for row in rows} == {0, 1, 2}
    assert bowl(0.9, 1.06, 1.3)(taus) == min(row[2] for row in rows)


def test_search_follows_a_valley_along_no_axis():
    """Ratios that only pay together: one step after another cannot follow the valley r0 + r1 = 2."""

    def valley(taus):
        first, second = (tau / t for tau, t in zip(taus, TIMES[:2], strict=True))
        return 100 * (first + second - 2) ** 2 + (first - 0.85) ** 2

    taus, _ = search(valley, TIMES[:2], 2, (0.7, 1.3), 0.001, 80)
    assert valley(taus) < 1e-4 and taus[0] / TIMES[0] == pytest.approx(0.85, abs=0.01)


def ripples(taus):
    """Many minima, the lowest of them near the ratio 1.2."""
    ratios = [tau / t for tau, t in zip(taus, TIMES, strict=True)]
    return sum((r - 1.2) ** 2 + 0.004 * math.cos(2 * math.pi * r / 0.05) for r in ratios)


def test_search_goes_on_from_where_a_round_ended(monkeypatch):
    """Rounds are what leaves a poor minimum: with one round, or as many tries in one, more ripples hold the search."""
    tries = JointConfig.tries
    monkeypatch.setattr(tt_lib.tuning.joint, "LINE_TRIES", tries)  # too many for a line: only rounds
    found, rows = search(ripples, TIMES, 3, (0.7, 1.3), 0.001, tries)
    assert rows[-1][1] > 0.9 * tries - 7, "it spends what it may"
    monkeypatch.setattr(tt_lib.tuning.joint, "SMALLEST", 1.0)
    once, rows = search(ripples, TIMES, 3, (0.7, 1.3), 0.001, tries)
    assert rows[-1][1] < 0.6 * tries and ripples(found) < 1.5 * ripples(once) < 0


def test_search_from_a_line_leaves_poor_minima_sooner(monkeypatch):
    monkeypatch.setattr(tt_lib.tuning.joint, "SMALLEST", 1.0)  # one round behind the line
    tries = 3 * JointConfig.tries
    found, _ = search(ripples, TIMES, 3, (0.7, 1.3), 0.001, tries)
    monkeypatch.setattr(tt_lib.tuning.joint, "LINE_TRIES", tries)
    without, _ = search(ripples, TIMES, 3, (0.7, 1.3), 0.001, tries)
    assert ripples(found) < 1.5 * ripples(without) < 0


def test_cma_es_leaves_the_minima_that_hold_cobyqa():
    times = tuple(0.9 - 0.1 * step for step in range(8))

    def many_minima(taus):
        ratios = [tau / t for tau, t in zip(taus, times, strict=True)]
        return sum((r - 0.7) ** 2 + 0.02 * (1 - math.cos(2 * math.pi * (r - 0.7) / 0.15)) for r in ratios)

    tries = 8 * 2 * JointConfig.tries
    found, rows = search(many_minima, times, 8, (0.5, 1.5), 0.001, tries, "cma-es")
    held, _ = search(many_minima, times, 8, (0.5, 1.5), 0.001, tries)
    assert many_minima(found) < 1e-3 < 0.05 < many_minima(held) < many_minima(times)
    assert 0.9 * tries < rows[-1][1] <= tries, (
        "it begins again when a run has come to its end, and asks no more than it may"
    )
    assert search(many_minima, times, 8, (0.5, 1.5), 0.001, tries, "cma-es")[0] == found
    assert search(many_minima, times, 8, (0.5, 1.5), 0.001, tries, "cma-es", seed=1)[0] != found


@pytest.mark.parametrize("optimiser", ["cobyqa", "cma-es"])
def test_search_keeps_frozen_steps_bounds_and_range(optimiser):
    taus, rows = search(bowl(0.5, 0.5, 0.5), TIMES, 2, (0.95, 1.05), 0.39, 80, optimiser)
    assert taus == pytest.approx((0.95 * 0.8, 0.39, 0.1), rel=1e-4) and {row[0] for row in rows} == {0, 1}
    assert search(lambda taus: -taus[0], (0.95,), 1, (0.5, 2.0), 0.001, 20, optimiser)[0] == (1.0,)
    assert search(bowl(0.5, 0.5, 0.5), TIMES, 0, (0.7, 1.3), 0.001, 0, optimiser)[0] == TIMES


def test_search_is_never_worse_than_untuned_and_asks_no_more_than_it_may():
    asked = []
    taus, rows = search(lambda taus: asked.append(taus) or bowl(1, 1, 1)(taus), TIMES, 3, (0.7, 1.3), 0.001, 12)
    assert taus == TIMES and len(asked) <= 1 + 12 and len(rows) == 3 * len(asked)


def test_tuned_by_the_distance_of_samples_that_are_never_measured(sampler, features, reference):  # noqa: F811
    result = tune_joint(sampler, features, reference, SMALL)
    timing = result.timing
    assert timing.name == "frechet-joint" and timing.taus != timing.times and timing.ratios[-1] == 1
    seeds = range(FIRST_SEED, FIRST_SEED + 20)
    assert seeds.start > GENERATED_FIRST_SEED + 100_000_000
    found, _ = sample_statistics(replace(sampler, timing=timing), features, seeds)
    assert timing.tuning["loss_tuned"] == [pytest.approx(frechet_distance(found, reference), rel=1e-9)]
    untuned, _ = sample_statistics(sampler, features, seeds)
    assert timing.tuning["loss_untuned"] == [pytest.approx(frechet_distance(untuned, reference), rel=1e-9)]
    assert timing.tuning["loss_tuned"][0] < timing.tuning["loss_untuned"][0]
    assert (timing.tuning["features"], timing.tuning["first_seed"]) == (features.name, FIRST_SEED)


class Stop(Exception):
    """In place of Ctrl-C."""


@pytest.mark.parametrize("after", [1, 7])
def test_interrupted_and_resumed_is_uninterrupted(sampler, features, reference, tmp_path, after):  # noqa: F811
    state, seen = tmp_path / "state", []

    def stop(done, total, message):
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        tune_joint(sampler, features, reference, SMALL, state=state, progress=stop)
    assert state.exists()
    resumed = tune_joint(sampler, features, reference, SMALL, state=state, progress=lambda *report: seen.append(report))
    whole = tune_joint(sampler, features, reference, SMALL)
    assert resumed.timing.taus == whole.timing.taus and resumed.history.equals(whole.history)
    assert not state.exists() and seen[-1][0] == whole.history.iteration.nunique() <= seen[-1][1]


def test_state_of_another_tuning_and_damaged_state(sampler, features, reference, tmp_path):  # noqa: F811
    state = tmp_path / "state"

    def stop(*report):
        raise Stop

    with pytest.raises(Stop):
        tune_joint(sampler, features, reference, SMALL, state=state, progress=stop)
    with pytest.raises(BadValue, match="state of another tuning"):
        tune_joint(sampler, features, reference, JointConfig(samples=30), state=state)
    state.write_bytes(b"{")
    with pytest.raises(CorruptFile, match="state"):
        tune_joint(sampler, features, reference, SMALL, state=state)


def test_a_stochastic_solver_draws_the_same_for_every_timing(features, reference):  # noqa: F811
    one, two = (tune_joint(make_sampler(eta=0.5), features, reference, SMALL) for _ in range(2))
    assert one.timing.taus == two.timing.taus and one.history.equals(two.history)
    assert one.timing.tuning["loss_tuned"][0] < one.timing.tuning["loss_untuned"][0]


def test_tuned_by_the_end_of_a_fine_run(sampler):  # noqa: F811
    config = JointConfig("end", samples=6, tries=8)
    timing = tune_joint(sampler, None, None, config, batch=4).timing
    assert timing.name == "end-joint" == config.name and timing.tuning["objective"] == "end"
    seeds = range(FIRST_SEED, FIRST_SEED + 6)
    exact = fine_end(sampler, SampleNoise(seeds).start(sampler.shape))
    for losses, taus in (("loss_tuned", timing), ("loss_untuned", None)):
        error = (replace(sampler, timing=taus)(seeds).x - exact).square().mean().item()
        assert timing.tuning[losses] == [pytest.approx(error, rel=1e-4)]
    assert timing.tuning["loss_tuned"][0] < 0.9 * timing.tuning["loss_untuned"][0]
    with pytest.raises(BadValue, match="draws noise and follows no trajectory"):
        tune_joint(make_sampler(eta=0.5), None, None, config)
    with pytest.raises(BadValue, match="give the features"):
        tune_joint(sampler, None, None, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "beauty"}, "beauty.*end, frechet"),
        ({"samples": 1}, "at least 2 samples"),
        ({"bounds": (1.1, 1.2)}, "enclose 1"),
        ({"freeze_last": -1}, "0 or more"),
        ({"tries": 2}, "at least 3 tries"),
        ({"optimiser": "adam"}, "adam.*cma-es, cobyqa"),
    ],
)
def test_impossible_choices(changes, message):
    with pytest.raises(BadValue, match=message):
        JointConfig(**changes)
