"""What is a secret, by its name, its shape or its place in an address, and texts without it.

Pure: what a process knows to be secret is given to `Redactor`; `guard` gathers it and stands at the
edges where texts leave a process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
# A token is also what a transformer works on and half of this program's name; a `KeyError` and a
# `keyword` hold no key; a `…_PATH` says where a secret lies and is none.
_HARMLESS = re.compile(
    r"TOKENPOOL|TOKENIZERS?|KEYERROR|KEYWORD|KEYBOARD|.*[_-](?:PATH|FILE|DIR)$"
    r"|^GOOGLE_APPLICATION_CREDENTIALS$",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"SECRET|PASSWORD|PASSWD|PASSPHRASE", re.IGNORECASE)
# Numbers of up to six digits under *KEY* or *TOKEN* are counts: `min_tokens: 16`.
_COUNT = re.compile(r"(?:\d{1,6}(?:\.\d+)?[\s,x×:+-]*)+")
_LARGEST_COUNT = 10**6
_NOT_VALUES = frozenset({"none", "null", "true", "false", "lambda", "str", "int", HIDDEN})
_ORDINARY = frozenset({"key", "keys", "token", "tokens"})
# Shorter ones would blot out ordinary words wherever they stand.
MIN_KNOWN_LENGTH = 8

_QUOTED = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_NAME = (
    r"[A-Za-z0-9_.\-]*(?:key|token|secret|password|passwd|passphrase|credential)[A-Za-z0-9_.\-]*"
)
_ASSIGNMENT = re.compile(
    rf"(?P<name>(?P<quote>\\?[\"']?){_NAME})(?P=quote)"
    rf"(?P<between>\s*(?P<sign>=|:)\s*)"
    rf"(?P<value>{_QUOTED}|[^\s\"',;&)\]}}]+)",
    re.IGNORECASE,
)
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?{_NAME})(?P<between>\s+)(?P<value>{_QUOTED}|[^\s\"'-][^\s\"']*)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"(?P<name>[?&](?:sig|signature|x-amz-signature|x-goog-signature)=)[^&\s\"']+",
    re.IGNORECASE,
)
# Up to the last @ when a password begins before it, so that one with an @ or a / in it goes whole;
# a port is no password.
_WITH_PASSWORD = r"[^\s/\"'<>@:]*:(?!\d{1,5}(?:/|$|[\s\"']))[^\s\"'<>]*@"
_USERINFO = re.compile(
    rf"(?<=://)(?:{_WITH_PASSWORD}|[^\s/\"'<>@]*@)"
    # As `Path` writes an address.
    rf"|(?<=[a-z0-9]:/){_WITH_PASSWORD}",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"(?P<head>\bauthorization[\"']?\s*[:=]\s*[\"']?)(?P<kind>(?:bearer|basic|token)\s+)?[^\s\"',}]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<head>\b(?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{12,}", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL
)
# As issuers document them: AWS, GitHub, GitLab, Hugging Face, OpenAI-like, Slack, Google, JWT.
_SHAPES = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"
)
# In their order: what a text must hold to be looked through, what goes, and what stands for it.
_BY_PLACE: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("private key", _PRIVATE_KEY, HIDDEN),
    ("@", _USERINFO, ""),  # what is left can be opened
    ("authorization", _AUTHORIZATION, rf"\g<head>{HIDDEN}"),
    ("bearer", _BEARER, rf"\g<head>{HIDDEN}"),
    ("basic", _BEARER, rf"\g<head>{HIDDEN}"),
    ("sig", _QUERY, rf"\g<name>{HIDDEN}"),
)


def is_secret_name(name: str) -> bool:
    """Whether a variable, key or option of this name holds a secret.

    `*KEY*`, `*TOKEN*`, `*SECRET*`, `*PASSWORD*` and their kind, in any case, but for what is known
    to be harmless (`TOKENPOOL_RUNS`, `RAY_AUTH_TOKEN_PATH`, `KeyError`).
    """
    return _SECRET.search(_HARMLESS.sub("", name)) is not None


def holds_secret(name: str, value: Any) -> bool:
    """Whether a secret's name is all there is: a count, a flag or nothing is no secret."""
    if not is_secret_name(name) or value is None or isinstance(value, bool):
        return False
    always = _PASSWORD.search(name) is not None
    if isinstance(value, (int, float)):
        return always or abs(value) >= _LARGEST_COUNT
    text = str(value).strip()
    if not text or text.lower() in _NOT_VALUES:
        return False
    return always or _COUNT.fullmatch(text) is None


def spellings(secret: str) -> set[str]:
    """A secret as it may turn up in a text: itself, escaped in an address or a literal."""
    return {secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}


def credentials_in(url: str) -> set[str]:
    """Passwords that stand in the addresses of a text, as written; user names are none."""
    found = set()
    for match in _USERINFO.finditer(url):
        user, colon, password = match.group()[:-1].partition(":")
        found.add(password if colon else user)
    return found - {""}


class Redactor:
    """Takes secrets out of texts, values and exceptions.

    Args:
        known: Values that are secret wherever they stand; those under 8 characters are left out,
            as they would blot out ordinary words.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        long = {secret for secret in known if len(secret) >= MIN_KNOWN_LENGTH}
        written = {text for secret in long for text in spellings(secret)}
        # The longest first, so that no secret's beginning is replaced and its end left.
        ordered = sorted(written, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """The text with `***` in place of each secret; without any it is returned unchanged."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        lowered = text.lower()
        for mark, pattern, shown in _BY_PLACE:
            if mark in lowered:
                text = pattern.sub(shown, text)
        if _SECRET.search(text):
            text = _ASSIGNMENT.sub(_hide_assigned, text)
            text = _OPTION.sub(_hide_option, text)
        return _SHAPES.sub(HIDDEN, text)

    def value(self, value: Any, name: str = "") -> Any:
        """A value of plain types (or paths) with the secrets in it hidden, by name and by text."""
        if not name and isinstance(value, (int, float)):
            return value  # first, as most of a ledger is numbers
        if isinstance(value, Mapping):
            return {
                self.value(key): self.value(inner, str(key) if is_secret_name(str(key)) else name)
                for key, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            inside = [self.value(inner, name) for inner in value]
            return inside if isinstance(value, list) else tuple(inside)
        if name and holds_secret(name, value):
            return HIDDEN
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, PurePath):
            shown = self.text(str(value))
            return value if shown == str(value) else type(value)(shown)
        return value

    def error(self, error: BaseException) -> None:
        """Takes secrets out of an exception and all that led to it, in place.

        Its type, frames and attributes stay, so that whoever catches it finds what is expected.
        The message of an exception group cannot be changed; those of its members are.
        """
        seen: set[int] = set()
        waiting: list[BaseException | None] = [error]
        while waiting:
            one = waiting.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            waiting += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                waiting += one.exceptions
            self._clean(one)

    def _clean(self, error: BaseException) -> None:
        args = tuple(self.value(arg) if _is_plain(arg) else arg for arg in error.args)
        if args != error.args:
            error.args = args
        # What `str(error)` of an OSError and of many libraries' own errors is made of.
        for name, value in list(vars(error).items()):
            if _is_plain(value) and not name.startswith("__"):
                shown = self.value(value, name)
                if shown != value:
                    vars(error)[name] = shown
        if isinstance(error, OSError):
            for name in ("errno", "strerror", "filename", "filename2"):
                value = getattr(error, name)
                if _is_plain(value):
                    setattr(error, name, self.value(value))
        notes = getattr(error, "__notes__", None)
        if notes:
            error.__notes__ = [self.text(str(note)) for note in notes]


def secret_places(value: Any, redactor: Redactor, place: str = "", name: str = "") -> list[str]:
    """Where in a value of plain types secrets stand, as dotted keys.

    Args:
        value: What is looked through.
        redactor: What knows a secret.
        place: The key of the value itself.
        name: The name it is judged by; that of the nearest key that is a secret's.
    """
    if isinstance(value, Mapping):
        inside = [
            (f"{place}.{key}".lstrip("."), str(key) if is_secret_name(str(key)) else name, inner)
            for key, inner in value.items()
        ]
    elif isinstance(value, (list, tuple)):
        inside = [(f"{place}[{i}]", name, inner) for i, inner in enumerate(value)]
    else:
        return [place] if redactor.value(value, name) != value else []
    return [
        found
        for where, called, inner in inside
        for found in secret_places(inner, redactor, where, called)
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, dict, list, tuple, PurePath))


def _hide_assigned(match: re.Match[str]) -> str:
    name, value = match["name"].strip("\\\"'"), match["value"]
    whole = match.group()
    if not holds_secret(name, value.strip("\"'")):
        return whole
    quoted = value[0] in "\"'"
    # In prose a colon follows ordinary words, and code has `key=…` for much else; there, what
    # follows must look like a secret.
    prose = match["sign"] == ":" and not quoted and not match["quote"]
    if (
        (prose or _is_ordinary(name, quoted=bool(match["quote"])))
        and not _PASSWORD.search(name)
        and not _looks_random(value.strip("\"'"))
    ):
        return whole
    shown = f"{value[0]}{HIDDEN}{value[0]}" if quoted else HIDDEN
    return whole[: -len(value)] + shown


def _is_ordinary(name: str, *, quoted: bool) -> bool:
    name = name.lower()
    return name in _ORDINARY and not (quoted and name.startswith("token"))


def _hide_option(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    bare = value.strip("\"'")
    if not holds_secret(name, bare) or not (_PASSWORD.search(name) or _looks_random(bare)):
        return match.group()
    return match["name"] + match["between"] + HIDDEN


def _looks_random(value: str) -> bool:
    if len(value) < MIN_KNOWN_LENGTH or value.startswith(("/", "./", "~")):
        return False
    return len(value) >= 24 or (any(c.isdigit() for c in value) and any(c.isalpha() for c in value))
