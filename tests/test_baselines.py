"""Baselines: what epsilon scaling and the time-shift sampler do to a step, their names, and as cells of a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from solver_helpers import LINEAR, float64, points
from test_evaluate import a_timing, data, make_sampler, no_git, sampler  # noqa: F401 - fixtures
from test_tables import TABLE, parts, project  # noqa: F401 - fixtures

from tt_lib.baselines import EpsilonScaling, TimeShift, read_constant, read_correction
from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.metrics.evaluate import fingerprint
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell, timing_path
from tt_lib.toy import MixturePredictor, ring_2d

pytestmark = pytest.mark.usefixtures("one_thread")


def test_scaled_ddim_step_by_hand():
    ring, x, t, s = ring_2d(5, scale=0.2), points(6, 2), 0.8, 0.5
    scaled = EpsilonScaling(1.02).wrap(MixturePredictor(ring, LINEAR), LINEAR, t)
    run = drive(make_solver("ddim")(x, Grid("two", (t, s)), LINEAR), scaled)
    eps = ring.eps(x, t, LINEAR) / 1.02
    x0 = (x - LINEAR.sigma(t) * eps) / LINEAR.alpha(t)
    torch.testing.assert_close(run.x, LINEAR.alpha(s) * x0 + LINEAR.sigma(s) * eps)
    assert run.nfe == 1


# ---- time shift


def with_variance(values: list[float]) -> torch.Tensor:
    """Samples [B, 3, 8, 8] whose unbiased variance over all pixels is as given."""
    x = points(len(values), 192, seed=1)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return (x * float64(values)[:, None].sqrt()).reshape(-1, 3, 8, 8)


def test_the_time_whose_variance_fits():
    times = float64([0.5, 0.507, 0.493, 0.52, 0.48])
    variances = LINEAR.sigma(times).square()
    shifted = TimeShift().shifted(with_variance(variances.tolist()), float64(0.5), LINEAR)
    assert shifted.tolist() == pytest.approx(times.tolist())


def test_bounds_of_the_window():
    x = with_variance([1e-6, 5.0])

    def shifted(t) -> list[float]:
        return TimeShift().shifted(x, float64(t), LINEAR).tolist()

    assert shifted(0.5) == pytest.approx([0.48, 0.52]) and shifted(0.995) == pytest.approx([0.975, 1.0])
    assert [shifted(t) == [t, t] for t in (0.299, 0.3, 0.301)] == [True, True, False], "none at the cutoff"
    assert shifted([0.5, 0.2]) == pytest.approx([0.48, 0.2])


def test_a_run_that_shifts():
    asked = []

    def predictor(x, t, tau):
        asked.append((t, tau))
        return 0.3 * x

    grid, x = make_grid("uniform", 5, LINEAR), with_variance([1.0, 0.5])
    run = drive(make_solver("ddim")(x, grid, LINEAR), TimeShift().wrap(predictor, LINEAR, grid.times[0]), keep=True)
    assert [float(t) for t, _ in asked] == pytest.approx(grid.times[:-1]), "the solver's own times stay"
    assert asked[0][1].tolist() == [grid.times[0]] * 2, "true noise is not shifted"
    for request, (t, tau) in list(zip(run.trajectory, asked, strict=True))[1:]:
        assert tau.tolist() == TimeShift().shifted(request.x, t, LINEAR).tolist()
    assert any(bool((tau != t).any()) for t, tau in asked)


# ---- in samplers, by name


@pytest.mark.parametrize("name", ["epsilon-1.02", "time-shift"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ddpm"])
def test_batch_and_cost(name, solver):
    plain = make_sampler(solver, steps=4)
    corrected = replace(plain, correction=read_correction(name))
    whole = corrected(range(5))
    assert whole.nfe == plain(range(5)).nfe
    torch.testing.assert_close(whole.x, torch.cat([corrected([seed]).x for seed in range(5)]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole.x, plain(range(5)).x, atol=1e-4)
    assert torch.equal(replace(plain, correction=EpsilonScaling(1.0))([3]).x, plain([3]).x)


def test_samples_are_told_apart(sampler):  # noqa: F811
    features = type("Features", (), {"sha256": "ab"})()
    names = [None, "epsilon-1.005", "epsilon-1.01", "time-shift"]
    corrected = [replace(sampler, correction=read_correction(name) if name else None) for name in names]
    assert len({fingerprint(each, features, range(4)) for each in corrected}) == len(names)
    with pytest.raises(BadValue, match="not both: got truncation-parallel and time-shift"):
        replace(sampler, timing=a_timing(sampler), correction=TimeShift())


def test_names():
    assert read_constant("constant-0.95") == 0.95 and read_constant("truncation-parallel") is None
    for wrong in ("constant", "constant-x", "constant-0", "constant--1", "constant-0.9-freeze2"):
        with pytest.raises(BadValue, match=f"unknown timing '{wrong}'.*constant-0.95"):
            read_constant(wrong)
    for name in ("epsilon-1.005", "time-shift"):
        assert read_correction(name).name == name
    assert read_correction("untuned") is None


def test_as_cells(project):  # noqa: F811
    names = ("untuned", "epsilon-1", "epsilon-1.1", "time-shift")
    cells = tuple(Cell("ddim", "uniform", 4, timing) for timing in names)
    values = {row["timing"]: row["value"] for row in project.run(replace(TABLE, cells=cells))}
    assert values["epsilon-1"] == values["untuned"] and len(set(values.values())) == 3
    assert not any(timing_path("tiny", cell).exists() for cell in cells)
    assert project.run(replace(TABLE, cells=cells)) == []
