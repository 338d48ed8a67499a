"""Commands of `tokenpool` called in this process, through typer."""

import typer
from typer.testing import CliRunner


def invoke(command, *words):
    """The result of a command, or of a group of them; what it raises but for its end is raised."""
    app = command
    if not isinstance(command, typer.Typer):
        app = typer.Typer()
        app.command()(command)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(command, *words):
    """`invoke` of what ends well."""
    result = invoke(command, *words)
    assert result.exit_code == 0, result.output
    return result
