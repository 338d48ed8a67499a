"""Whether a JPEG holds all its pixels, and its bytes with a proper end and nothing after it.

Panoramas and files from broken cards lack the end marker, motion photos carry a film behind it.
Viewers show all of them, and libjpeg warns of the first as it does of a file that was cut. So a
marker is put where the last scan's bytes end: if its decoder then still lacks bits, pixels are
missing; if not, all are there, and the file is kept without a second loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pipelines.data import turbojpeg

_END = b"\xff\xd9"
# Between scans' bytes: neither stuffing (FF 00), fill (FF FF) nor restart markers.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_AFTER_LAST = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# What is said of whole pictures' headers, and of kinds that this decoder does not know.
_HARMLESS = re.compile(
    r"extraneous bytes before marker 0x(e[0-9a-f]|db|fe|dd|c0|c1|c2)|Unsupported|Sorry"
    r"|Warning: unknown|Unknown Adobe|Invalid SOS parameters"
)
_LOOKAHEAD = 8  # bytes that the decoder may have read beyond the last pixel's

CUT = "pixels are missing: the file is cut short (encoding it anew does not bring them back)"
MARKER_ADDED = "end marker added"
TAIL_LEFT_OFF = "bytes after the end left off"


class CutJpegError(ValueError):
    """Pixels are missing; the message is the reason in words."""


@dataclass(frozen=True)
class WholeJpeg:
    """A JPEG of which all pixels are there.

    `pixels` [H, W, 3] (of CMYK 4) is None where only Pillow's more patient decoder will do;
    `data` is then the source's. `repair` says what was done to the bytes, "" for nothing.
    """

    data: bytes
    pixels: np.ndarray | None
    repair: str = ""


def check_whole(data: bytes, width: int, height: int, *, cmyk: bool, several: bool) -> WholeJpeg:
    """Decode a JPEG of a size strictly and mend its end; of `several` pictures (MPO) one is kept.

    Raises:
        CutJpegError: pixels are missing.
        turbojpeg.BrokenJpegError: pixels are wrong; the message is libjpeg-turbo's.
    """
    if data.endswith(_END) and not several:
        try:
            return WholeJpeg(data, turbojpeg.decode(data, width, height, cmyk=cmyk))
        except turbojpeg.BrokenJpegError:
            pass  # its end is looked at below
    scans = _find_scans(data)
    kept, extra = data[: scans.end], 0
    try:
        pixels = turbojpeg.decode(kept + _END, width, height, cmyk=cmyk)
    except turbojpeg.BrokenJpegError as error:
        message = str(error)
        if "premature end of data segment" in message:
            raise CutJpegError(CUT) from None
        after = _AFTER_LAST.search(message)
        if after is None and _HARMLESS.search(message):
            return WholeJpeg(data, None)
        if after is None or scans.arithmetic:
            raise
        extra = int(after[1])
    else:
        if scans.marked:
            left_off = TAIL_LEFT_OFF if scans.end + len(_END) < len(data) else ""
            return WholeJpeg(kept + _END, pixels, left_off)
    end, pixels = _cut_tail(kept, extra, width, height, cmyk)
    # Encoders fill the last byte with ones. Pixels that end in zeros, with zeros after them, were
    # read from the block of a file that was allotted whole and never filled.
    if data[end - 1 : end + 1] == b"\0\0":
        raise CutJpegError(CUT)
    repair = MARKER_ADDED if end == len(data) else TAIL_LEFT_OFF
    return WholeJpeg(data[:end] + _END, pixels, repair)


def _cut_tail(
    kept: bytes, extra: int, width: int, height: int, cmyk: bool
) -> tuple[int, np.ndarray]:
    """How many bytes the last pixel's scan takes, and all pixels.

    `kept` is a file without its end marker; libjpeg passed over `extra` bytes at its end, and may
    have read a few more ahead.
    """
    enough = len(kept) - extra
    too_few = enough - _LOOKAHEAD - 1
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        try:
            turbojpeg.decode(kept[:middle] + _END, width, height, cmyk=cmyk)
            enough = middle
        except turbojpeg.BrokenJpegError as error:
            if _AFTER_LAST.search(str(error)):
                enough = middle
            else:
                too_few = middle
    return enough, turbojpeg.decode(kept[:enough] + _END, width, height, cmyk=cmyk)


@dataclass(frozen=True)
class _Scans:
    """Where a JPEG's scans end, whether an end marker is there, and how they are coded."""

    end: int
    marked: bool
    arithmetic: bool


def _find_scans(data: bytes) -> _Scans:
    """Read the first picture's segments.

    Raises:
        CutJpegError: there is no end marker and scans are missing, or cannot be known to be whole.
    """
    at, missing, coding = 2, {0: set(range(64))}, 0xC0
    while at + 4 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF:
            at += 1
            continue
        if code in (0xD8, 0xD9):
            break
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4])]
        at += 4 + len(body)
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            coding = code
            missing = {component: set(range(64)) for component in body[6::3]}
        elif code == 0xDA:
            _strike_out(missing, body, progressive=coding in (0xC2, 0xCA))
            found = _MARKER.search(data, at)
            at = found.start() if found else len(data)
            if not any(missing.values()):
                break
    marked = data[at : at + 2] == _END
    if not marked and any(missing.values()) and data.endswith(_END):
        at, marked = len(data) - len(_END), True  # lost in odd headers: the decoder will judge
    # An arithmetic decoder never lacks bits, so nothing tells a whole scan from half of one.
    if not marked and (any(missing.values()) or coding >= 0xC9):
        raise CutJpegError(CUT)
    return _Scans(at, marked, coding >= 0xC9)


def _strike_out(missing: dict[int, set[int]], scan: bytes, *, progressive: bool) -> None:
    """Take what a scan's header (components, band, bits) announces from what is missing."""
    if len(scan) < 4 or len(scan) < 4 + 2 * scan[0]:
        return
    first, last, bits = scan[-3:]
    band = range(first, last + 1) if progressive else range(64)
    if progressive and bits & 15:  # finer bits of these follow in another scan
        return
    for component in scan[1 : 1 + 2 * scan[0] : 2]:
        missing.get(component, set()).difference_update(band)
