"""Joint tuning: the search, what it is judged by, going on after an interruption, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_evaluating import data, features, make_sampler, no_git, reference, sampler  # noqa: F401 - fixtures

from tt_lib.bench import GENERATED_FIRST_SEED
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.evaluating import sample_statistics
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.tuning.joint import FIRST_SEED, MOVES, JointConfig, coordinate_search, tune_joint

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = (0.8, 0.4, 0.1)
SMALL = JointConfig(samples=20)


def bowl(*best):
    """A loss with its minimum at these ratios."""
    return lambda taus: sum((tau / t - b) ** 2 for tau, t, b in zip(taus, TIMES, best, strict=True))


def test_search_finds_the_minimum():
    taus, rows = coordinate_search(bowl(0.9, 1.06, 1.3), TIMES, 3, (0.7, 1.3), 0.001)
    ratios = [tau / t for tau, t in zip(taus, TIMES, strict=True)]
    assert ratios[:2] == pytest.approx([0.9, 1.06], abs=0.015)
    assert len(rows) == 1 + 3 * sum(map(len, MOVES)) and rows[0][2] == pytest.approx(0.1036)
    assert bowl(0.9, 1.06, 1.3)(taus) == min(row[2] for row in rows)


def test_search_keeps_frozen_steps_bounds_and_range():
    taus, rows = coordinate_search(bowl(0.5, 0.5, 0.5), TIMES, 2, (0.95, 1.05), 0.39)
    assert taus == pytest.approx((0.95 * 0.8, 0.39, 0.1)) and {row[0] for row in rows} == {0, 1}
    assert coordinate_search(lambda taus: -taus[0], (0.95,), 1, (0.5, 2.0), 0.001)[0] == (1.0,)


def test_search_is_never_worse_than_untuned():
    assert coordinate_search(bowl(1, 1, 1), TIMES, 3, (0.7, 1.3), 0.001)[0] == TIMES


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
    assert not state.exists() and seen[-1][0] == seen[-1][1] == len(whole.history)


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


def test_stochastic_solver(features, reference):  # noqa: F811
    with pytest.raises(BadValue, match=r"cannot tune ddim with eta 0\.5"):
        tune_joint(make_sampler(eta=0.5), features, reference, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"samples": 1}, "at least 2 samples"), ({"bounds": (1.1, 1.2)}, "enclose 1"), ({"freeze_last": -1}, "0 or more")],
)
def test_impossible_choices(changes, message):
    with pytest.raises(BadValue, match=message):
        JointConfig(**changes)
