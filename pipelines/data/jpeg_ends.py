"""Whether a JPEG holds all its pixels, and its bytes with a proper end and nothing after it.

Panoramas and files from broken cards lack the end marker, motion photos carry a film behind it.
Viewers show all of them, and libjpeg warns of the first as it does of a file that was cut. So a
marker is put where the last scan's bytes end: if its decoder then still lacks bits, pixels are
missing; if not, all are there, and the file is kept without a second loss.
"""

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
    """Decode a JPEG strictly and mend its end.

    Args:
        data: the file.
        width: pixels, as its header says.
        height: likewise.
        cmyk: it has four components.
        several: it is known to hold further pictures (MPO): they are left off.

    Raises:
        CutJpegError: pixels are missing.
        turbojpeg.BrokenJpegError: pixels are wrong; the message is libjpeg-turbo's.
    """
    mended, repair, arithmetic = data, "", False
    if several or not data.endswith(_END):
        mended, arithmetic = _up_to_the_end(data)
        repair = TAIL_LEFT_OFF if len(mended) < len(data) else MARKER_ADDED
    try:
        return WholeJpeg(mended, _decode(mended, width, height, cmyk), repair)
    except turbojpeg.BrokenJpegError as error:
        message = str(error)
    if "premature end of data segment" in message or "Premature end of JPEG" in message:
        raise CutJpegError(CUT)
    if (after := _AFTER_LAST.search(message)) is not None and not arithmetic:
        return _without_tail(mended, int(after[1]), width, height, cmyk)
    if _HARMLESS.search(message):
        return WholeJpeg(data, None)
    raise turbojpeg.BrokenJpegError(message)


def _decode(data: bytes, width: int, height: int, cmyk: bool) -> np.ndarray:
    return turbojpeg.decode(data, width, height, cmyk=cmyk)


def _without_tail(data: bytes, extra: int, width: int, height: int, cmyk: bool) -> WholeJpeg:
    """Drop what lies between the last pixel's bytes and the end marker.

    Args:
        data: ends with the marker.
        extra: bytes that libjpeg counted there; it may have read a few more without a word.
    """
    high = len(data) - len(_END) - extra
    low = high - _LOOKAHEAD - 1  # too few bytes, or not tried
    pixels = _decode(data[:high] + _END, width, height, cmyk)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pixels = _decode(data[:middle] + _END, width, height, cmyk)
            high = middle
        except turbojpeg.BrokenJpegError:
            low = middle
    # Encoders fill the last byte with ones. Pixels that end in zeros were read from the padding
    # of a file that was allotted whole and never filled.
    if data[high - 2 : high] == b"\0\0":
        raise CutJpegError(CUT)
    return WholeJpeg(data[:high] + _END, pixels, TAIL_LEFT_OFF)


def _up_to_the_end(data: bytes) -> tuple[bytes, bool]:
    """A JPEG up to its first picture's last scan and an end marker; whether it is arithmetic.

    Raises:
        CutJpegError: there is no end marker and scans are missing, or cannot be known to be whole.
    """
    at, missing, coding = 2, {0: set(range(64))}, 0xC0
    while at + 4 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF:
            at += 1
            continue
        if code == 0xD9:
            return data[: at + 2], coding >= 0xC9
        if code == 0xD8:
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
            whole = not any(missing.values())
            if whole and data[at : at + 2] != _END:
                break
    if data[at : at + 2] == _END:
        return data[: at + 2], coding >= 0xC9
    # An arithmetic decoder never lacks bits, so nothing tells a whole scan from half of one.
    if any(missing.values()) or coding >= 0xC9:
        raise CutJpegError(CUT)
    return data[:at] + _END, False


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
