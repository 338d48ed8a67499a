"""A pooling method with its options as one line of text: `wkmedoids(start=matching)`.

So a config, a ledger or a table names everything that decides how tokens are pooled in one string,
and whatever passes a method on passes its options on too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenpool.methods import method
from tokenpool.options import PoolOptions

__all__ = ["format_method", "parse_method", "with_options"]

_WORDS = {"true": True, "false": False, "none": None}


def parse_method(text: str) -> tuple[str, PoolOptions]:
    """The method's name and its options.

    Args:
        text: `NAME` or `NAME(option=value, …)`; options are fields of `PoolOptions`.

    Raises:
        ValueError: for an unknown method, option or value, by name.
    """
    return _parse(text)


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[str, PoolOptions]:
    name, opened, rest = text.strip().partition("(")
    name = name.strip()
    method(name)
    if not opened:
        return name, PoolOptions()
    inner, closed, after = rest.partition(")")
    if not closed or after.strip():
        raise ValueError(f"method {text!r} should read {name}(option=value, …)")
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in inner.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"method {text!r}: {part!r} should read option=value")
        if key in values:
            raise ValueError(f"method {text!r} names {key} twice")
        if key == "generator":
            raise ValueError(f"method {text!r}: a generator cannot be given as text")
        values[key] = _value(value)
    try:
        return name, PoolOptions.of(**values)
    except ValueError as error:
        raise ValueError(f"method {text!r}: {error}") from None


def format_method(name: str, options: PoolOptions | None = None) -> str:
    """The one text of a method with its options: those that differ from the defaults, sorted."""
    changed = {} if options is None else options.as_dict()
    inner = ", ".join(f"{key}={_word(value)}" for key, value in sorted(changed.items()))
    return f"{name}({inner})" if inner else name


def with_options(text: str, **options: Any) -> tuple[str, PoolOptions]:
    """`parse_method` with further options beside those of the text.

    Raises:
        ValueError: as `parse_method`, or for an option that the text gives another value.
    """
    name, own = parse_method(text)
    given = PoolOptions.of(**options)
    if own == PoolOptions():
        return name, given
    for key in options:
        if key in own.as_dict() and getattr(own, key) != getattr(given, key):
            raise ValueError(
                f"method {text!r} gives {key} another value than {options[key]!r}: give it once"
            )
    return name, own.with_(**options)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    return int(text) if text.isdigit() else text


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
