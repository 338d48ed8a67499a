"""Image files and colour profiles written byte by byte, as no encoder at hand writes them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(values: list[int], bits: int) -> bytes:
    """Samples of 1 to 16 bits one after the other, filled up to a byte."""
    text = "".join(format(value, f"0{bits}b") for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG's."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, bits: int, kind: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of equal rows; `kind` 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * height)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *chunks,
            chunk(b"IDAT", rows),
            chunk(b"IEND", b""),
        )
    )


def tiff(width: int, height: int, tags: dict[int, list[int]], data: bytes, end: str = "<") -> bytes:
    """A TIFF of one strip; `tags` beside the sizes are of 16 bits, or 32 where they need it."""
    tags = {256: [width], 257: [height], 259: [1], 278: [height], 279: [len(data)]} | tags
    tags[273] = [1 << 16]  # set below; this keeps it 32 bits wide
    kinds = {tag: "I" if max(values) > 65_535 else "H" for tag, values in tags.items()}
    sizes = {tag: len(values) * struct.calcsize(kinds[tag]) for tag, values in tags.items()}
    table = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [table + sum(size + size % 2 for size in sizes.values() if size > 4)]
    entries, beside = b"", b""
    for tag in sorted(tags):
        values, kind = tags[tag], kinds[tag]
        content = struct.pack(f"{end}{len(values)}{kind}", *values)
        where = content.ljust(4, b"\0")
        if len(content) > 4:
            where = struct.pack(f"{end}I", table + len(beside))
            beside += content + bytes(len(content) % 2)
        entries += struct.pack(f"{end}HHI", tag, 4 if kind == "I" else 3, len(values)) + where
    magic = (b"II" if end == "<" else b"MM") + struct.pack(f"{end}HI", 42, 8)
    return magic + struct.pack(f"{end}H", len(tags)) + entries + bytes(4) + beside + data


def bmp(width: int, height: int, bits: int, data: bytes, *, coding: int = 0,
        palette: bytes = b"", masks: bytes = b"") -> bytes:  # fmt: skip
    """A BMP of any depth, bottom row first unless `height` is negative."""
    header_size = 108 if masks else 40
    start = 14 + header_size + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", header_size, width, height, 1, bits, coding, len(data), 0, 0,
        len(palette) // 4, 0,
    )  # fmt: skip
    header += masks.ljust(header_size - 40, b"\0")
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


# Profiles -------------------------------------------------------------------------------------

D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def to_d50(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """[3, 3]: linear light of these primaries under D65 to XYZ under D50."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    d65 = np.array([0.95047, 1.0, 1.08883])
    matrix = xyz * np.linalg.solve(xyz, d65)
    scale = (_BRADFORD @ D50) / (_BRADFORD @ d65)
    return np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ matrix


def srgb_levels(xyz: np.ndarray) -> np.ndarray:
    """XYZ under D50 [..., 3] to sRGB in 0..255, by the standard's formula."""
    light = np.clip(xyz @ np.linalg.inv(to_d50(SRGB)).T, 0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return 255 * coded


def lab_to_xyz(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* [..., 3] to XYZ under D50."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    return D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"Made for tests\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)} | tags
    table, content = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4s", start + len(content), b"", 0x02400000, kind, space, connection,
        bytes(12), b"acsp", b"",
    ).ljust(68, b"\0")  # fmt: skip
    header += np.round(D50 * 65_536).astype(">i4").tobytes()
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + np.round(values * 65_536).astype(">i4").tobytes()


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """An ICC profile of a display with these primaries and one gamma."""
    matrix = to_d50(primaries)
    tags = {b"wtpt": _xyz(D50)}
    for i, channel in enumerate(b"rgb"):
        tags[bytes([channel]) + b"XYZ"] = _xyz(matrix[:, i])
        tags[bytes([channel]) + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of a grey display."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)})


def ink_profile(corners: np.ndarray) -> bytes:
    """An ICC profile of four inks.

    Args:
        corners: [2, 2, 2, 2, 3] L*a*b* of no and full cyan, magenta, yellow, black.
    """
    codes = np.round(corners * [2.55, 1, 1] + [0, 128, 128]).astype(np.uint8)
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += (65_536 * np.eye(3)).astype(">i4").tobytes()
    lut += identity * 4 + codes.tobytes() + identity * 3
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"wtpt": _xyz(D50), b"A2B0": lut})
