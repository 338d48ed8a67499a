"""Names as people have them: bytes that are no text, control characters, other alphabets."""

from __future__ import annotations


def storable(name: str) -> str:
    r"""A name that every file format takes: bytes that are not UTF-8 become `\xe9`."""
    if name.isascii():
        return name
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, out of a JSON file
        data = name.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def printable(name: object) -> str:
    r"""A name on one line, that does nothing to a terminal: control characters become `\n`."""
    text = storable(str(name))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
