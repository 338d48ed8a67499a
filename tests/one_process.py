"""Several commands of `tokenpool` in one process, as each start of Python takes a second."""

import os
import subprocess
import sys

END = "=== exit "


def run_commands(commands, setup="", **options):
    """Runs them one after the other; behind what each prints stands a line `=== exit CODE`.

    Args:
        commands: the words of each.
        setup: Python that runs before the command line is imported.
        options: for `subprocess.run`; `env` adds to the environment.
    """
    code = (
        f"import sys; {setup}\nfrom pipelines import cli\n"
        f"for words in {[tuple(words) for words in commands]!r}:\n"
        "    sys.argv = ['tokenpool', *words]\n"
        "    try: cli.main()\n"
        f"    except SystemExit as end: print('{END}' + str(end.code), flush=True)\n"
    )
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment, **options
    )


def assert_refused(commands, *said, **options):
    """All of them end with code 2 and one line each, which has these words.

    Args:
        commands: the words of each.
        said: what every line has, or where there are as many as commands, each its own.
        options: for `run_commands`.
    """
    ran = run_commands(commands, text=True, **options)
    lines = ran.stderr.splitlines()
    assert ran.stdout.count(f"{END}2\n") == len(lines) == len(commands), ran.stderr + ran.stdout
    for number, line in enumerate(lines):
        wanted = [said[number]] if len(said) == len(commands) else said
        assert all(words in line for words in wanted), line
