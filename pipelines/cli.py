"""The command line: `tokenpool …`."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig

import typer

from pipelines.commands.doctor import doctor
from pipelines.commands.front import front
from pipelines.commands.pick import pick
from pipelines.commands.prepare import prepare
from pipelines.commands.search import search
from pipelines.commands.train import train
from pipelines.commands.ui import ui
from pipelines.errors import UserError

app = typer.Typer(
    name="tokenpool",
    help="Finds the best cheap vision transformer for your data: token pooling schedules and "
    "widths, searched on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (prepare, search, train, front, pick, ui, doctor):
    app.command()(command)


def main() -> None:
    """Runs a command; a `UserError` ends in one line and its exit code, without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # DeepSpeed builds an op with ninja, which lies beside this interpreter and not on the PATH
    # when `.venv/bin/tokenpool` is called without activating the environment.
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"tokenpool: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
