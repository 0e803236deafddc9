"""The command line ``tt``: one module a group of commands, nothing here but the list of them.

Commands print what they do with a progress bar and an estimate, resume when they are started again,
and never overwrite a finished result without ``--force``. An error that the user can mend is one line.
"""

from __future__ import annotations

from tt_lib.cli.app import make_app
from tt_lib.cli.networks import features, info, stats, train
from tt_lib.cli.sampler import direction, evaluate, learn, sample, tune
from tt_lib.cli.speed import speed
from tt_lib.cli.study import card, demo, floor, table

app = make_app()
COMMANDS = (demo, tune, learn, sample, evaluate, table, floor, direction, speed, train, features, stats, card, info)
for command in COMMANDS:
    app.command()(command)
