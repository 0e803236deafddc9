"""The gate: which taus it lets through, what it compares, and that it changes nothing else."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import ttest_rel
from test_tuning import GRID, LINEAR, PREDICTOR, RING, images, noised, tuner_noise

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.noise import derive_seed
from tt_lib.sampling import fine_solution
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import GENERATED_FIRST_SEED, HELD_OUT, HELD_OUT_FIRST_SEED
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.objectives import squared_distance
from tt_lib.tuning.tuner import HELD_OUT_NOISE, LEVEL, lower

pytestmark = pytest.mark.usefixtures("one_thread")
HELD = images(n=64, seed=9)


def run(solver: str = "ddim", held=HELD, state=None, progress=None, x0=None, **changes):
    config = TuneConfig(**{"optimiser": "search", "substeps": 4, "gate": True, **changes})
    x0 = images() if x0 is None else x0
    return tune(
        PREDICTOR,
        LINEAR,
        make_solver(solver),
        GRID,
        x0,
        config,
        held_out=held,
        state=state,
        save_seconds=0,
        progress=progress,
    )


def test_paired_test():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(50, generator=generator, dtype=torch.float64)
    assert lower(a - 0.05 + noise, a) < LEVEL < lower(a + 0.05 + noise, a), "paired: far less than the spread of a"
    assert lower(a, a) == 1.0 and lower(a[:2].clone(), a[:2]) == 1.0


@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
@pytest.mark.parametrize("objective", ["truncation", "consistency"])
def test_records_are_of_the_held_out_images(objective, strategy):
    timing = run(objective=objective, strategy=strategy).timing
    plain = run(objective=objective, strategy=strategy, gate=False).timing
    records = timing.tuning["gated"]
    assert [record["evaluation"] for record in records] == [0, 1, 2] and "gated" not in plain.tuning
    noise = tuner_noise(HELD, derive_seed(0, HELD_OUT_NOISE))
    assert not torch.equal(noise, tuner_noise(HELD, 0))
    state = noised(HELD, noise, GRID.times[0])
    for k, record in enumerate(records):
        t, s = (torch.tensor(each, dtype=torch.float64) for each in GRID.times[k : k + 2])
        x = noised(HELD, noise, t) if strategy == "parallel" else state
        target = fine_solution(PREDICTOR, LINEAR, x, t, s, 4)

        def end(tau: float, x=x, k=k):
            pair = torch.tensor(GRID.times[k : k + 2], dtype=torch.float64)
            return drive(make_solver("ddim")(x, pair, LINEAR), PREDICTOR, [tau]).x

        tuned, untuned = (squared_distance(end(tau), target) for tau in (record["tau"], float(t)))
        assert record["loss_tuned"] == pytest.approx(tuned.mean().item(), rel=1e-6)
        assert record["loss_untuned"] == pytest.approx(untuned.mean().item(), rel=1e-6)
        p = 1.0 if record["tau"] == float(t) else ttest_rel(tuned, untuned, alternative="less").pvalue
        assert record["p"] == pytest.approx(p, rel=1e-4, abs=1e-12) and record["kept"] == (p < LEVEL)
        assert timing.taus[k] == (record["tau"] if record["kept"] else GRID.times[k])
        state = end(timing.taus[k])
    if strategy == "parallel":
        assert [record["tau"] for record in records] == list(plain.taus[:-1]), "the gate comes after the tuning"
    assert timing.taus[-1] == plain.taus[-1] == timing.times[-1]


def test_it_lets_through_and_refuses():
    kept = [record["kept"] for record in run(objective="truncation", strategy="parallel").timing.tuning["gated"]]
    assert any(kept)
    # One image says little of the others, and consistency asks for something else: here the gate refuses.
    refused = [
        record["kept"]
        for record in run(objective="consistency", strategy="sequential", x0=RING.sample(1)).timing.tuning["gated"]
    ]
    assert not all(refused)


@pytest.mark.parametrize(("solver", "judged"), [("dpmpp-2m", 3), ("heun", 4)])
@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
def test_other_solvers(solver, judged, strategy):
    if solver == "heun":
        from tt_lib.grids import make_grid

        grid, made = make_grid("uniform", 3, LINEAR), make_solver("heun").for_nfe(5)[0]
    else:
        grid, made = GRID, make_solver(solver)
    config = TuneConfig("consistency", strategy, "search", substeps=4, gate=True)
    timing = tune(PREDICTOR, LINEAR, made, grid, images(), config, held_out=HELD).timing
    for record in timing.tuning["gated"]:
        index = record["evaluation"]
        assert timing.taus[index] == (record["tau"] if record["kept"] else timing.times[index])
    assert len(timing.tuning["gated"]) == judged


@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
def test_interrupted_and_resumed(tmp_path, strategy):
    whole = run(strategy=strategy).timing
    state, count = tmp_path / "state", 0

    def interrupt(done, total, message):
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt

    if strategy == "sequential":
        with pytest.raises(KeyboardInterrupt):
            run(strategy=strategy, state=state, progress=interrupt)
        assert state.exists()
        with pytest.raises(BadValue, match="state of another tuning"):
            run(strategy=strategy, state=state, held=images(n=64, seed=10))
    again = run(strategy=strategy, state=state).timing
    assert again.taus == whole.taus and again.tuning["gated"] == whole.tuning["gated"] and not state.exists()


def test_what_a_gate_needs():
    for held in (None, HELD[:1]):
        with pytest.raises(BadValue, match="images that are held out: give at least 2"):
            run(held=held)
    with pytest.raises(BadValue, match="no gate for ddpm: it draws noise"):
        run("ddpm")


def test_held_out_images_are_others(tmp_path, monkeypatch):
    from test_tables import Bench  # the bench of a network that costs nothing

    from tt_lib.datasets import load_dataset

    bench = object.__new__(Bench)
    bench.device, bench.images = torch.device("cpu"), {}
    tuned_on, held = bench._real(range(100), "digits", None), bench.held_out_images("real", 100, "digits", None)
    assert len(held) == HELD_OUT
    rows = torch.cat([tuned_on, held]).flatten(1)
    everything = len(load_dataset("digits", "train"))
    assert len(rows.unique(dim=0)) == 100 + HELD_OUT
    with pytest.raises(BadValue, match=f"{everything + HELD_OUT} images were asked for"):
        bench.held_out_images("real", everything, "digits", None)
    assert HELD_OUT_FIRST_SEED > GENERATED_FIRST_SEED + 50_000
    assert Cell("ddim", "uniform", 5, TuneConfig(gate=True).name).timing == "consistency-sequential,gate=true"
