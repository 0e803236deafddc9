"""Numbers that must not move, from commit 67dd835 (those of the shipped network: 72f9272). Nothing here is trained."""

from __future__ import annotations

import pytest
import torch

from tt_lib.engine import drive
from tt_lib.grids import make_grid
from tt_lib.metrics.direction import measure_directions
from tt_lib.metrics.evaluate import measure
from tt_lib.metrics.reference import load_metric
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell, require_timing
from tt_lib.study.workbench import make_bench
from tt_lib.toy import MixturePredictor, ring_2d
from tt_lib.tuning import TuneConfig, tune

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULE = make_schedule("linear")
MIXTURE = ring_2d(5, scale=0.15)
PREDICTOR = MixturePredictor(MIXTURE, SCHEDULE)
START = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).reshape(4, 2)
NETWORK = "cifar10-ddpm-w96"


def close(found, recorded):
    assert torch.as_tensor(found).flatten().tolist() == pytest.approx(recorded, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def bench():
    return make_bench(NETWORK, batch=20)


@pytest.mark.parametrize(
    "solver",
    TOY := {
        "ddim": [
            -0.788438818,
            -0.568187096,
            -0.578051267,
            -0.204174466,
            0.195973137,
            0.58917068,
            0.444493967,
            0.813219618,
        ],
        "dpmpp-2m": [
            -1.49771465,
            -1.0870909,
            -1.41854094,
            -0.517962838,
            0.486195483,
            1.46364806,
            0.662103804,
            1.59975908,
        ],
        "unipc,final=lower": [
            -1.5263888,
            -1.10907475,
            -1.49897186,
            -0.557738558,
            0.516526563,
            1.55609863,
            0.645777548,
            1.64915815,
        ],
        "heun": [
            -0.738086943,
            -0.530403729,
            -0.512535188,
            -0.177339864,
            0.172631915,
            0.51858058,
            0.451216048,
            0.749651358,
        ],
    },
)
def test_samples_of_the_toy(solver):
    made, steps = make_solver(solver).for_nfe(6)
    run = drive(made(START, make_grid("uniform", steps, SCHEDULE), SCHEDULE), PREDICTOR)
    close(run.x, TOY[solver])


@pytest.mark.parametrize(
    "solver",
    SHIPPED := {
        "ddim": [-0.126666233, 0.176381424, 0.102846801, -0.385692209],
        "dpmpp-2m": [-0.133786753, 0.220283598, 0.119421676, -0.41756317],
        "unipc,final=lower": [-0.136220679, 0.231429517, 0.124979787, -0.418599129],
        "dpm-solver-2": [-0.36518541, 0.621794045, 0.269886613, -1.00967288],
    },
)
def test_samples_of_the_shipped_network(bench, solver):
    x = bench.sampler(Cell(solver, "quadratic", 4))([0, 3]).x
    close([x.mean(), x.std(), x[0, 0, 5, 7], x[1, 2, 20, 9]], SHIPPED[solver])


def test_the_distance_of_20_samples(bench):
    timing = "truncation-parallel"
    cell = Cell("ddim", "quadratic", 5, timing)
    metric = load_metric("cifar10-resnet", "cifar10")
    value = measure(bench.sampler(cell, require_timing(NETWORK, cell)), metric, 20, batch=20).value
    close(value, [21.5363736])


TUNED = {
    "consistency": [0.509583116, 0.38760677, 0.254832387, 0.154513031, 0.001],
    "truncation": [0.566400409, 0.442746103, 0.303012431, 0.154250354, 0.001],
}


@pytest.mark.parametrize(
    "config",
    [
        TuneConfig("consistency", "sequential", "adam", iterations=60, lr=1e-2),
        TuneConfig("truncation", "parallel", "search"),
    ],
    ids=list(TUNED),
)
def test_tuned_timings_of_the_toy(config):
    images = MIXTURE.sample(32, torch.Generator().manual_seed(1))
    sampler = Sampler(PREDICTOR, SCHEDULE, make_solver("ddim"), make_grid("uniform", 5, SCHEDULE), (2,))
    timing = tune(sampler, images, config).timing
    close(timing.taus, TUNED[config.objective])


def test_direction_error_of_the_toy():
    directions = measure_directions(PREDICTOR, SCHEDULE, make_solver("ddim"), make_grid("uniform", 5, SCHEDULE), START)
    close(directions.relative.mean(1), [0.00113399456, 0.0125565378, 0.0985601143, 0.705310633, 0.888159791])
