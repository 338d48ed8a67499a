"""The one exception that reaches a user as a single line."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message names the thing and the remedy.

    The command line prints it as one line, without a traceback, and exits with `exit_code`:
    2 for bad usage (a wrong config, an unknown name, an impossible value), 1 for work that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
