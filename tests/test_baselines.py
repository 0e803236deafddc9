"""Epsilon scaling and the time-shift sampler: what they do to a step, which times are picked, and as cells of a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_evaluate import a_timing, data, make_sampler, no_git, sampler, tiny_project  # noqa: F401 - fixtures
from test_tables import TABLE, parts, project  # noqa: F401 - fixtures
from typer.testing import CliRunner

from tt_lib.baselines import EpsilonScaling, TimeShift, read_correction
from tt_lib.cli import app
from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.metrics.evaluate import fingerprint
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell, find_timing, timing_path
from tt_lib.study.directions import Protocol, run_directions
from tt_lib.toy import MixturePredictor, ring_2d

pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = make_schedule("linear")


def test_scaled_ddim_step_by_hand():
    predictor = MixturePredictor(ring_2d(5, scale=0.2), LINEAR)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s = 0.8, 0.5
    run = drive(make_solver("ddim")(x, Grid("two", (t, s)), LINEAR), EpsilonScaling(1.02).wrap(predictor, LINEAR, t))
    eps = ring_2d(5, scale=0.2).eps(x, t, LINEAR) / 1.02
    x0 = (x - LINEAR.sigma(t) * eps) / LINEAR.alpha(t)
    torch.testing.assert_close(run.x, LINEAR.alpha(s) * x0 + LINEAR.sigma(s) * eps)
    assert run.nfe == 1


def with_variance(values: list[float], pixels: int = 192) -> torch.Tensor:
    """Samples [B, 3, 8, 8] whose unbiased variance over all pixels is as given."""
    x = torch.randn(len(values), pixels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return (x * torch.tensor(values, dtype=torch.float64)[:, None].sqrt()).reshape(-1, 3, 8, 8)


def expected(level: int, share: float = 0.0) -> float:
    """The variance at a level of 1000."""
    return float(LINEAR.sigma(level / 1000) ** 2 + share * LINEAR.alpha(level / 1000) ** 2)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_time_whose_variance_fits(share):
    levels = [500, 507, 493, 520, 480]
    x = with_variance([expected(level, share) for level in levels])
    times = TimeShift(window=40, data=share).shifted(x, torch.tensor(0.5, dtype=torch.float64), LINEAR)
    assert times.tolist() == pytest.approx([level / 1000 for level in levels])


def test_bounds_of_the_window():
    shift, t = TimeShift(window=40), torch.tensor(0.5, dtype=torch.float64)
    x = with_variance([1e-6, 5.0])
    assert shift.shifted(x, t, LINEAR).tolist() == pytest.approx([0.48, 0.52])
    assert TimeShift(window=80).shifted(x, t, LINEAR).tolist() == pytest.approx([0.46, 0.54])
    near_noise = shift.shifted(x, torch.tensor(0.995, dtype=torch.float64), LINEAR)
    assert near_noise.tolist() == pytest.approx([0.975, 1.0])
    assert TimeShift(cutoff=0).shifted(x, torch.tensor(0.005, dtype=torch.float64), LINEAR).min() == LINEAR.t_min
    for level, moves in ((299, False), (300, False), (301, True)):
        t = torch.tensor(level / 1000, dtype=torch.float64)
        assert bool((shift.shifted(x, t, LINEAR) != t).all()) == moves
    each = torch.tensor([0.5, 0.2], dtype=torch.float64)
    assert shift.shifted(x, each, LINEAR).tolist() == pytest.approx([0.48, 0.2])


def test_a_run_that_shifts():
    asked = []

    def predictor(x, t, tau):
        asked.append((t, tau))
        return 0.3 * x

    grid = make_grid("uniform", 5, LINEAR)
    x = with_variance([1.0, 0.5])
    run = drive(make_solver("ddim")(x, grid, LINEAR), TimeShift().wrap(predictor, LINEAR, grid.times[0]), keep=True)
    assert run.nfe == 5 == len(asked)
    assert [float(t) for t, _ in asked] == pytest.approx(grid.times[:-1]), "the solver's own times stay"
    assert asked[0][1].tolist() == [grid.times[0]] * 2, "true noise is not shifted"
    for request, (t, tau) in list(zip(run.trajectory, asked, strict=True))[1:]:
        assert tau.tolist() == TimeShift().shifted(request.x, t, LINEAR).tolist()
    assert any(bool((tau != t).any()) for t, tau in asked)
    assert all(tau.tolist() == [float(t)] * 2 for t, tau in asked if t <= 0.3)


@pytest.mark.parametrize("name", ["epsilon-1.02", "time-shift"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ddpm"])
def test_batch_and_cost(name, solver):
    plain = make_sampler(solver, steps=4)
    corrected = replace(plain, correction=read_correction(name))
    whole = corrected(range(5))
    assert whole.nfe == plain(range(5)).nfe
    torch.testing.assert_close(whole.x, torch.cat([corrected([seed]).x for seed in range(5)]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole.x, plain(range(5)).x, atol=1e-4)


def test_scale_1_changes_nothing(sampler):  # noqa: F811
    assert torch.equal(replace(sampler, correction=EpsilonScaling(1.0))([3]).x, sampler([3]).x)


def test_samples_are_told_apart(sampler):  # noqa: F811
    features = type("Features", (), {"sha256": "ab"})()
    names = [None, "epsilon-1.005", "epsilon-1.01", "time-shift", "time-shift,window=80"]
    prints = {
        fingerprint(replace(sampler, correction=read_correction(n) if n else None), features, range(4)) for n in names
    }
    assert len(prints) == len(names)
    with pytest.raises(BadValue, match="not both: got truncation-parallel and time-shift"):
        replace(sampler, timing=a_timing(sampler), correction=TimeShift())


def test_as_cells(project):  # noqa: F811
    cells = tuple(
        Cell("ddim", "uniform", 4, timing) for timing in ("untuned", "epsilon-1", "epsilon-1.1", "time-shift")
    )
    table = replace(TABLE, cells=cells)
    rows = {row["timing"]: row for row in project.run(table)}
    values = {name: row["value"] for name, row in rows.items()}
    assert values["epsilon-1"] == values["untuned"] and len(set(values.values())) == 3
    assert {row["nfe"] for row in rows.values()} == {4}
    assert not any(timing_path("tiny", cell).exists() for cell in cells)
    assert project.run(table) == []
    with pytest.raises(BadValue, match=r"time-shift corrects the network.*leave it out"):
        run_directions(project.bench, [cells[3]], Protocol(2), project.work / "direction.csv", project.work)


def test_on_the_command_line(tmp_path_factory):
    def tt(*words: str):
        return CliRunner().invoke(app, [*words, "--model", "tiny", "--nfe", "3", "--device", "cpu"])

    with tiny_project(tmp_path_factory) as folder:
        answer = tt("sample", "--n", "2", "--timing", "time-shift,window=80", "--out", "shifted.png")
        assert answer.exit_code == 0 and "time-shift,window=80" in " ".join(answer.output.split()), answer.output
        measure = ("evaluate", "--dataset", "digits", "--features", "digits-resnet", "--n", "20", "--results", "fd.csv")
        reference = ("stats", "--dataset", "digits", "--features", "digits-resnet", "--split", "train")
        assert CliRunner().invoke(app, reference).exit_code == 0
        for timing in ("epsilon-1.1", "epsilon-1.2"):
            answer = tt(*measure, "--timing", timing)
            assert answer.exit_code == 0, answer.output
        rows = read_rows(folder / "fd.csv", FD_COLUMNS)
        assert list(rows["timing"]) == ["epsilon-1.1", "epsilon-1.2"] and rows["value"].nunique() == 2
        answer = tt("tune", "--timing", "end-joint,gate=true")
        assert answer.exit_code == 2 and "'gate=true' is no option" in " ".join(answer.output.split())
        gated = "consistency-sequential,gate=true,images=2,source=generated"
        answer = tt("tune", "--timing", gated)
        assert answer.exit_code == 0, answer.output
        timing = find_timing("tiny", Cell("ddim", "uniform", 3, gated))
        assert [record["evaluation"] for record in timing.tuning["gated"]] == [0, 1]
