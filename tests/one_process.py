"""Several commands of `tokenpool` in one process, as each start of Python takes a second."""

import os
import subprocess
import sys


def run_commands(commands, **options):
    """Runs them one after the other; behind the output of each stands `=== exit CODE`."""
    code = (
        "import sys\nfrom pipelines import cli\n"
        f"for words in {[tuple(words) for words in commands]!r}:\n"
        "    sys.argv = ['tokenpool', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: print('=== exit', end.code, flush=True)\n"
    )
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment, **options
    )
