"""Which image formats are read, and what other files are called.

`docs/data.md` says what is made of each; a file is told by its first bytes, never by its name.
"""

from __future__ import annotations

READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow's names of the formats that are read, in the order they are tried."""

_PNG = "convert it to JPEG or PNG"
_RAW = "develop it to JPEG or PNG"

# Offset, bytes there, what the file is, what to do with it.
_OTHER_IMAGES = (
    (0, b"\xff\x0a", "JPEG XL", _PNG), (4, b"JXL \r\n\x87\n", "JPEG XL", _PNG),
    (0, b"II\xbc", "JPEG XR", _PNG), (0, b"8BPS", "Photoshop PSD", _PNG),
    (0, b"gimp xcf", "GIMP XCF", _PNG), (0, b"\0\0\1\0", "ICO", _PNG),
    (0, b"\0\0\2\0", "CUR or TGA", _PNG), (0, b"\0\0\n\0", "TGA", _PNG),
    (0, b"\n\5\1\x08", "PCX", _PNG), (0, b"\1\xda", "SGI", _PNG),
    (0, b"Y\xa6j\x95", "Sun raster", _PNG), (0, b"/* XPM", "XPM", _PNG),
    (0, b"icns", "ICNS", _PNG), (0, b"qoif", "QOI", _PNG), (0, b"DDS ", "DDS", _PNG),
    (0, b"P7\n", "PAM", _PNG), (0, b"v/1\1", "OpenEXR", "map its range to 8 bits"),
    (0, b"#?RADIANCE", "Radiance HDR", "map its range to 8 bits"),
    (0, b"SIMPLE  =", "FITS", "map its range to 8 bits"),
    (128, b"DICM", "DICOM", "apply its window and save 8-bit PNG"),
    (0, b"FUJIFILMCCD-RAW", "camera RAW (RAF)", _RAW), (0, b"IIRO", "camera RAW (ORF)", _RAW),
    (0, b"IIRS", "camera RAW (ORF)", _RAW), (0, b"IIU\0", "camera RAW (RW2)", _RAW),
    (0, b"FOVb", "camera RAW (X3F)", _RAW), (0, b"\x93NUMPY", "NumPy array", "save it as PNG"),
    (0, b"%PDF", "PDF", _PNG), (0, b"%!PS", "PostScript", _PNG),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", _PNG), (0, b"AT&TFORM", "DjVu", _PNG),
    (0, b"\xd7\xcd\xc6\x9a", "WMF", _PNG), (0, b"\x89HDF\r\n", "HDF5", "save its pictures as PNG"),
)  # fmt: skip
_NO_IMAGES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, `git lfs pull` fetches the picture"),
    (0, b"\0\5\x16\7", "macOS metadata (AppleDouble)"), (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip file"), (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"), (0, b"\x1aE\xdf\xa3", "a video (Matroska)"),
    (8, b"AVI ", "a video (AVI)"), (0, b"ID3", "sound"),
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BROKEN = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"RIFF", "WebP"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)  # fmt: skip


def why_not_read(data: bytes) -> str:
    """Why Pillow cannot open a file, which is not empty, as a reason for refusing it."""
    for offset, magic, name, remedy in _OTHER_IMAGES:
        if data.startswith(magic, offset):
            return f"{name} is not read: {remedy}"
    if data.startswith(b"ftyp", 4):
        if data[8:12] in _HEIF_BRANDS:
            return f"HEIC is not read: {_PNG}"
        if data.startswith(b"crx ", 8):
            return f"camera RAW (CR3) is not read: {_RAW}"
        if data[8:12] not in (b"avif", b"avis"):
            return "not an image: a video (MP4)"
        return f"AVIF of a broken or rare kind: its header cannot be read ({_PNG})"
    for offset, magic, name in _NO_IMAGES:
        if data.startswith(magic, offset):
            return f"not an image: {name}"
    if frame := jpeg_frame(data):
        bits, components = frame[0], frame[5]
        if bits != 8:
            return f"JPEG of more than 8 bits is not read: convert it to 8 bits (it has {bits})"
        if components not in (1, 3, 4):
            return f"JPEG of unknown colours is not read: {_PNG} (components: {components})"
    for magic, name in _BROKEN:
        if data.startswith(magic):
            return f"{name} of a broken or rare kind: its header cannot be read ({_PNG})"
    if not data.strip(b"\0"):
        return "not an image: nothing but zero bytes"
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return f"SVG is not read: {_PNG}"
    if text.startswith((b"<!doctype", b"<html")):
        return "not an image: a web page (a download that failed?)"
    if text and all(byte >= 32 or byte in b"\t\r\n\f" for byte in text):
        return "not an image: text"
    return "not an image: no known format"


def jpeg_frame(data: bytes) -> bytes:
    """A JPEG's frame header: bits, height (2 bytes), width (2), components; b"" without one."""
    at = 2
    while data.startswith(b"\xff\xd8") and at + 10 <= len(data) and data[at] == 0xFF:
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            return data[at + 4 : at + 10]
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return b""
