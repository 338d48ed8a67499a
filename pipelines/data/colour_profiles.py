"""Embedded colour profiles (ICC): what they mean, as sRGB, which is what models are trained on.

Display P3 from telephones, Adobe RGB from cameras, inks from print shops: the same numbers are
other colours there. Little CMS converts them, as it does for Pillow's and libvips's users.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

NEGLIGIBLE = 3
"""Profiles that move no colour by more levels than this are taken for sRGB: JPEG moves more."""

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SHOWN = 40  # characters of a profile's name


@dataclass(frozen=True)
class Conversion:
    """From one profile and mode to sRGB: `transform` is None where nothing has to be done.

    `mode` is what the transform takes. One of `name` and `warning` may be empty.
    """

    transform: Any
    mode: str
    name: str
    warning: str


@lru_cache(maxsize=64)
def conversion_for(profile: bytes, mode: str) -> Conversion:
    """What to do with pixels of `mode` (L, RGB or CMYK) that have this profile."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        made_for = _SPACES.get(opened.profile.xcolor_space, "")
        # Grey pixels are equal parts of red, green and blue in a colour profile.
        if not (made_for == mode or (made_for, mode) == ("RGB", "L")):
            return Conversion(None, mode, "", "colour profile passed over: made for other colours")
        to_srgb = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), made_for, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        if made_for != "CMYK" and _is_negligible(to_srgb, made_for):
            return Conversion(None, mode, "", "")
        return Conversion(to_srgb, made_for, _name(opened), "")
    except Exception:  # whatever Little CMS and Pillow make of hostile bytes: pixels are still good
        return Conversion(None, mode, "", "colour profile passed over: broken")


def _is_negligible(transform: Any, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        before = np.arange(256, dtype=np.uint8)[None]
        expected = before[..., None].repeat(3, -1)
    else:
        before = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        expected = before
    after = ImageCms.applyTransform(Image.fromarray(before), transform)
    assert after is not None  # only with inPlace
    return int(np.abs(np.asarray(after).astype(int) - expected).max()) <= NEGLIGIBLE


def _name(opened: Any) -> str:
    name = (opened.profile.profile_description or "without a name").strip()
    return "".join(c for c in name if c.isprintable() and c not in ",;")[:_SHOWN]


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str, str]:
    """Convert an image's colours from its embedded profile: L, RGB or CMYK, with alpha LA or RGBA.

    Gives (the image, "profile NAME to sRGB" or "", a warning or "").
    """
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    found = conversion_for(profile, mode)
    if found.transform is None:
        return image, "", found.warning
    converted = ImageCms.applyTransform(image.convert(found.mode), found.transform)
    if converted is None:
        raise RuntimeError("Little CMS gave no image")
    if alpha is not None:
        converted = Image.merge("RGBA", (*converted.split(), alpha))
    return converted, f"profile {found.name} to sRGB", ""
