"""Output that any terminal can take: no text ends a command because of its encoding.

A terminal or a log may be Latin-1, code page 437 or plain ASCII, and a file name may hold bytes
that are no UTF-8. What such a stream cannot hold is written in other characters.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata

_READABLE = "tokenpool.readable"
_ASCII = "tokenpool_ascii"
_IN_ASCII = str.maketrans({
    "…": "...", "·": "-", "→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "±": "+/-",
    "≥": ">=", "≤": "<=", "≈": "~", "÷": "/", "★": "*", "✓": "v", "✗": "x", "τ": "tau", "ρ": "rho",
    "Σ": "sum", "σ": "sigma", "λ": "lambda", "μ": "u", "µ": "u",
    "‖": "||", "°": " deg", "ß": "ss",
    "²": "^2", "³": "^3", "½": "1/2", "\u00a0": " ", "\u202f": " ",
    "‘": "'", "’": "'", "“": "'", "”": "'", "•": "*", "€": "EUR", "§": "section ",
    "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#", "█": "#",
})  # fmt: skip


def readable(text: str) -> str:
    """A text in ASCII: arrows and Greek letters spelled, accents left out, the rest as `\\uXXXX`.

    Nothing in it ends or breaks a JSON string that the text stands in.
    """
    return "".join(map(_in_ascii, text))


def _in_ascii(char: str) -> str:
    if unicodedata.combining(char):
        return ""
    found = char.translate(_IN_ASCII)
    if not found.isascii():  # a letter without its accents, if that is all it is
        found = "".join(
            c for c in unicodedata.normalize("NFD", char) if not unicodedata.combining(c)
        )
    if found.isascii():
        return found
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def as_utf8(text: str) -> str:
    """A text that can be written as UTF-8, for files and databases.

    What Python has read in another locale, or of a file name in another encoding, holds halves of
    characters. Where the bytes behind them are UTF-8 they are read as it, else they are spelled.
    """
    if text.isascii():
        return text
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        content = text.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def take_any_text() -> None:
    """Makes standard output and standard error take every text, whatever their encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # a test's or a notebook's, which takes them
        # Typer writes UTF-8 to whatever says that it is ASCII.
        ascii_only = codecs.lookup(stream.encoding).name == "ascii"
        stream.reconfigure(encoding=_ASCII if ascii_only else stream.encoding, errors=_READABLE)


def is_closed_pipe(error: BaseException) -> bool:
    """Whether somebody who read what is written has gone, as `| head` does."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def drop_output() -> None:
    """Writes what is left to nowhere: Python would complain of it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # there may be none: `>&-`
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return readable(error.object[error.start : error.end]), error.end


def _find(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        plain.encode,
        plain.decode,
        plain.streamreader,
        plain.streamwriter,
        plain.incrementalencoder,
        plain.incrementaldecoder,
        _ASCII,
    )


codecs.register_error(_READABLE, _replace)
codecs.register(_find)
