"""Characters on clutter, drawn from a seed: any size and number, most of each image redundant.

Fonts are the ones Matplotlib brings along. Image i depends on (seed, i) and the parameters alone,
so the same bytes come out whatever the number of workers; other versions of Pillow or FreeType may
draw an edge pixel differently.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.data.options import PrepareOptions
from pipelines.data.sources.source import Sample, Source

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "cmb10.ttf",
)
_UNIT = 500
_OVERSAMPLE = 2
_SCALE = 0.62


@dataclass(frozen=True)
class GlyphParameters:
    """How glyphs are drawn.

    `clutter` 0..1 scales the background's texture and the number of stray strokes and small
    characters; `variation` 0..1 scales the spread of place, size, angle and contrast. `scale` is
    the em height of the middle-sized character as a share of the image's side: the smaller, the
    more of an image is redundant.
    """

    size: int = 64
    num_classes: int = 36
    clutter: float = 0.5
    variation: float = 0.5
    scale: float = _SCALE


@dataclass(frozen=True)
class GlyphUnit:
    """Images `start` to `stop`."""

    seed: int
    start: int
    stop: int
    parameters: GlyphParameters

    @property
    def num_samples(self) -> int:
        return self.stop - self.start

    def read(self) -> Iterator[Sample]:
        """See `Unit`; classes take turns, so all are equally frequent."""
        for index in range(self.start, self.stop):
            label = index % self.parameters.num_classes
            yield Sample(
                f"glyphs/{self.seed}/{index}",
                "",
                label,
                draw(label, self.parameters, np.random.default_rng([self.seed, index])),
            )


def glyph_source(options: PrepareOptions) -> Source:
    """The built-in source `glyphs`."""
    parameters = GlyphParameters(
        options.size, options.num_glyphs, options.clutter, options.variation, options.glyph_scale
    )
    units = [
        GlyphUnit(options.seed, start, min(start + _UNIT, options.count), parameters)
        for start in range(0, options.count, _UNIT)
    ]
    return Source(
        "glyphs",
        list(CHARACTERS[: options.num_glyphs]),
        units,
        default_mode="raw" if options.size <= 64 else "jpg",
        default_minival=0.1,
        default_val=0.1,
    )


def draw(label: int, parameters: GlyphParameters, rng: np.random.Generator) -> np.ndarray:
    """One image of the character `CHARACTERS[label]`, [size, size, 3] uint8."""
    size, clutter, variation = parameters.size, parameters.clutter, parameters.variation
    background, level = _background(size, clutter, rng)
    image = Image.fromarray(background)
    _scatter(image, label, parameters, rng)

    # The glyph differs in lightness from the background it stands on, least where variation is 1.
    contrast = 0.75 - 0.4 * variation * rng.random()
    lighter = level < 0.5
    target = np.clip(level + contrast if lighter else level - contrast, 0, 1)
    tint = 0.2 * rng.uniform(-1, 1, 3)
    colour = np.clip(255 * (target + tint - tint.mean()), 0, 255).astype(np.uint8)

    spread = variation * rng.uniform(-0.24, 0.2)
    # At the usual scale exactly as it always was: the same seed must give the same bytes.
    height = size * (parameters.scale + spread * (parameters.scale / _SCALE))
    angle = variation * rng.uniform(-40, 40)
    font = FONTS[int(rng.integers(len(FONTS)))]
    mask = _glyph_mask(CHARACTERS[label], font, height, angle)
    room_x, room_y = max(size - mask.width, 0), max(size - mask.height, 0)
    shift = 0.5 + variation * rng.uniform(-0.5, 0.5, 2)
    position = (round(room_x * shift[0]), round(room_y * shift[1]))
    image.paste(tuple(int(c) for c in colour), position, mask)
    return np.asarray(image)


def _background(size: int, clutter: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Coloured noise at several scales over a slope; returns pixels and their mean lightness."""
    level = float(rng.uniform(0.05, 0.35) if rng.random() < 0.5 else rng.uniform(0.65, 0.95))
    tint = 0.15 * rng.uniform(-1, 1, 3)
    field = np.broadcast_to(level + tint - tint.mean(), (size, size, 3)).astype(np.float32)
    for cells, strength in ((2, 0.16), (5, 0.2), (size // 6, 0.14)):
        grid = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        # Mostly lightness, some colour.
        grid = 0.7 * grid.mean(axis=2, keepdims=True) * 1.7 + 0.3 * grid
        coarse = np.clip(128 + 127 * grid, 0, 255).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        field = field + clutter * strength * (np.asarray(smooth, np.float32) / 127.5 - 1)
    return (255 * np.clip(field, 0, 1)).astype(np.uint8), level


def _scatter(
    image: Image.Image, label: int, parameters: GlyphParameters, rng: np.random.Generator
) -> None:
    """Stray strokes, and characters too small to be meant, in colours near the background's."""
    size, clutter = parameters.size, parameters.clutter
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 1 + round(10 * clutter)))):
        x0, y0, x1, y1 = (int(v) for v in rng.integers(0, size, 4))
        pen.line((x0, y0, x1, y1), fill=_near(image, x0, y0, rng), width=max(1, size // 48))
    for _ in range(int(rng.integers(0, 1 + round(8 * clutter)))):
        stray = CHARACTERS[int(rng.integers(parameters.num_classes))]
        font = FONTS[int(rng.integers(len(FONTS)))]
        mask = _glyph_mask(stray, font, size * rng.uniform(0.1, 0.18), float(rng.uniform(-90, 90)))
        x, y = (int(v) for v in rng.integers(0, size - 1, 2))
        image.paste(_near(image, x, y, rng), (x - mask.width // 2, y - mask.height // 2), mask)


def _near(image: Image.Image, x: int, y: int, rng: np.random.Generator) -> tuple[int, int, int]:
    pixel = np.asarray(image.getpixel((x, y)), np.float64)
    shifted = np.clip(pixel + rng.uniform(-70, 70) + rng.uniform(-25, 25, 3), 0, 255)
    red, green, blue = (int(value) for value in shifted)
    return red, green, blue


@lru_cache(maxsize=256)
def _font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    # The basic engine: Raqm's presence differs between machines, and so would the bytes.
    return ImageFont.truetype(
        f"{_font_folder()}/{name}", pixels, layout_engine=ImageFont.Layout.BASIC
    )


@cache
def _font_folder() -> str:
    """Matplotlib's fonts, found without importing it: that takes a second."""
    import importlib.util

    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("glyphs are drawn in Matplotlib's fonts: run `make install`")
    return f"{next(iter(spec.submodule_search_locations))}/mpl-data/fonts/ttf"


def _glyph_mask(character: str, font: str, height: float, angle: float) -> Image.Image:
    """A cropped [h, w] coverage mask of one character, its em `height` pixels, rotated."""
    loaded = _font(font, max(4, round(height * _OVERSAMPLE * 1.3)))
    left, top, right, bottom = loaded.getbbox(character)
    margin = 2
    canvas = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), 0)
    ImageDraw.Draw(canvas).text((margin - left, margin - top), character, fill=255, font=loaded)
    rotated = canvas.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    width = max(1, round(rotated.width / _OVERSAMPLE))
    return rotated.resize(
        (width, max(1, round(rotated.height / _OVERSAMPLE))), Image.Resampling.BOX
    )
