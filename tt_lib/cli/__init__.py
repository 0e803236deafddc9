"""The command line ``tt``: one module a group of commands, nothing here but the list of them.

Commands print what they do with a progress bar and an estimate, resume when they are started again,
and never overwrite a finished result without ``--force``. An error that the user can mend is one line.
"""

from __future__ import annotations

from tt_lib.cli.analytic import analytic
from tt_lib.cli.bench import bench
from tt_lib.cli.correlate import correlate
from tt_lib.cli.demo import demo
from tt_lib.cli.direction import direction
from tt_lib.cli.sampler import evaluate, info, sample, tune
from tt_lib.cli.shared import make_app
from tt_lib.cli.speed import speed
from tt_lib.cli.stats import card, stats
from tt_lib.cli.table import floor, table
from tt_lib.cli.train import features, train

app = make_app()
for command in (demo, tune, analytic, sample, evaluate, table, floor, direction, correlate, speed, bench, train, features, stats, card, info):
    app.command()(command)
