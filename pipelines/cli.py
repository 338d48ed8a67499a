"""The command line: `tokenpool …`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from cluster.proxies import go_direct
from pipelines.commands import report_command as reports
from pipelines.commands import schedule_command
from pipelines.commands.analyze_command import analyze
from pipelines.commands.bench_loader_command import bench_loader
from pipelines.commands.bench_pooling_command import pooling
from pipelines.commands.bench_quality_command import bench_quality
from pipelines.commands.bench_search_command import bench_search
from pipelines.commands.bench_train_command import bench_train
from pipelines.commands.doctor_command import doctor
from pipelines.commands.export_command import export
from pipelines.commands.front_command import front
from pipelines.commands.logs_command import logs
from pipelines.commands.pick_command import pick
from pipelines.commands.plan_command import plan
from pipelines.commands.prepare_command import prepare
from pipelines.commands.search_command import search
from pipelines.commands.squeeze_command import squeeze
from pipelines.commands.status_command import status
from pipelines.commands.stop_command import stop
from pipelines.commands.submit_command import submit
from pipelines.commands.train_command import train
from pipelines.commands.ui_command import ui
from pipelines.console import use_own_scripts
from pipelines.data.names import printable
from pipelines.errors import UserError
from pipelines.secrecy.guard import guard_process, redactor, show_traceback
from pipelines.storage.room import cannot_be_written, in_words, lacks_room
from pipelines.streams import drop_output, is_closed_pipe, take_any_text

app = typer.Typer(
    name="tokenpool",
    help="Finds the best cheap vision transformer for your data: token pooling schedules and "
    "widths, searched on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"tokenpool {version('tokenpool')}\n")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version it is."
        ),
    ] = False,
) -> None: ...


bench = typer.Typer(help="Measure against peers, in one run.", no_args_is_help=True)
bench.command("loader")(bench_loader)
bench.command("pooling")(pooling)
bench.command("quality")(bench_quality)
bench.command("search")(bench_search)
bench.command("train")(bench_train)

_SEARCH, _RESULT, _MODEL, _MACHINE = "Search", "Look and choose", "Models", "Machine"
_PANELS: dict[str, list[Callable[..., None]]] = {
    _SEARCH: [prepare, plan, search, submit, logs, stop, train],
    _RESULT: [status, front, pick, ui, reports.report, reports.explain, export, reports.register],
}
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command("import", rich_help_panel=_RESULT)(reports.import_results)
app.add_typer(reports.track, name="track", rich_help_panel=_RESULT)
app.command(rich_help_panel=_MODEL)(squeeze)
app.command(rich_help_panel=_MODEL)(analyze)
app.add_typer(schedule_command.app, name="schedule", rich_help_panel=_MODEL)
app.command(rich_help_panel=_MACHINE)(doctor)
app.add_typer(bench, name="bench", rich_help_panel=_MACHINE)


def main() -> None:
    """Runs a command; a `UserError` ends in one line and its exit code, without a traceback.

    Neither that line, nor a log, nor the traceback of a bug shows a secret. Whatever the encoding
    of the terminal, it is written; where nobody reads it any more, the command ends without a word.
    """
    take_any_text()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    guard_process()
    use_own_scripts()
    go_direct()
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"tokenpool: {printable(redactor().text(str(error)))}\n")
        sys.exit(error.exit_code)
    except Exception as error:  # typer would print it as it is
        if lacks_room(error):
            where = getattr(error, "filename", None) or "what the output is written to"
            sys.stderr.write(f"tokenpool: the disk of {printable(str(where))} is full\n")
        elif cannot_be_written(error):
            said = f"{in_words(error)}: let it be written, or name another place"
            sys.stderr.write(f"tokenpool: {printable(said)}\n")
        elif not is_closed_pipe(error):
            show_traceback(error)
        sys.exit(1)
    finally:
        drop_output()


if __name__ == "__main__":
    main()
