"""The command line ``tt``: one module a command, nothing here but the list of them.

Commands print what they do with a progress bar and an estimate, resume when they are started again,
and never overwrite a finished result without ``--force``. An error that the user can mend is one line.
"""

from __future__ import annotations

from tt_lib.cli.shared import make_app
from tt_lib.cli.train import features, train

app = make_app()
app.command()(train)
app.command()(features)
