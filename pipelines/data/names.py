"""Names as people have them: bytes that are no text, control characters, other alphabets."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
    r"""A name on one line, that does nothing to a terminal: control characters become `\x0a`."""
    text = storable(str(name))
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
