"""Made characters: repeatable, balanced, varied, and with a knob for how hard they are."""

import numpy as np
import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.data.sources.glyphs import (
    CHARACTERS,
    GlyphParameters,
    GlyphUnit,
    _glyph_mask,
    draw,
    glyph_source,
)


def image(label=0, seed=0, **parameters):
    return draw(label, GlyphParameters(**parameters), np.random.default_rng(seed))


@pytest.mark.parametrize("size", [16, 64, 224])
def test_any_size(size):
    pixels = image(size=size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8


def test_the_same_seed_draws_the_same_bytes_however_work_is_cut():
    parameters = GlyphParameters(size=32)
    whole = list(GlyphUnit(3, 0, 20, parameters).read())
    parts = [*GlyphUnit(3, 0, 7, parameters).read(), *GlyphUnit(3, 7, 20, parameters).read()]
    for a, b in zip(whole, parts, strict=True):
        assert a.name == b.name and a.label == b.label
        np.testing.assert_array_equal(a.data, b.data)
    other = next(GlyphUnit(4, 0, 1, parameters).read())
    assert (other.data != whole[0].data).any()


def test_classes_are_equally_frequent():
    labels = [s.label for s in GlyphUnit(0, 0, 108, GlyphParameters(size=16)).read()]
    assert (np.bincount(labels) == 3).all()


def test_two_of_a_class_differ_much_and_variation_sets_how_much():
    def spread(variation):
        grey = [image(label=10, seed=s, clutter=0, variation=variation).mean(2) for s in range(40)]
        # Which side is lighter is drawn too: look at shapes alone.
        shapes = np.stack([np.abs(g - np.median(g)) > 40 for g in grey]).astype(float)
        return shapes.var(axis=0).mean()

    assert spread(1.0) > spread(0.0) * 1.3


def test_clutter_covers_the_background():
    def roughness(clutter):
        pictures = [image(seed=s, clutter=clutter, variation=0).astype(float) for s in range(20)]
        return np.mean([np.abs(np.diff(p[:10, :10], axis=1)).mean() for p in pictures])

    assert roughness(0) < 1 < roughness(0.5) < roughness(1)


def test_all_characters_have_a_shape_of_their_own_in_every_font():
    from pipelines.data.sources.glyphs import FONTS

    for font in FONTS:
        masks = {np.asarray(_glyph_mask(c, font, 40, 0)).tobytes() for c in CHARACTERS}
        assert len(masks) == len(CHARACTERS)


def test_the_set_is_prepared_balanced(tmp_path):
    options = PrepareOptions(count=720, size=16, workers=1)
    manifest = prepare("glyphs", tmp_path / "glyphs", options)
    assert {k: set(v.counts) for k, v in manifest.splits.items()} == {
        "train": {16},
        "minival": {2},
        "val": {2},
    }
    assert manifest.classes == list(CHARACTERS[:36]) and manifest.image_size == 16


def test_classes_and_counts_as_asked():
    source = glyph_source(PrepareOptions(count=1001, num_glyphs=50))
    assert len(source.classes) == 50 and sum(u.num_samples for u in source.units) == 1001


def test_scale_sets_how_much_of_an_image_is_the_character():
    def covered(scale):
        pictures = [image(10, s, clutter=0, scale=scale).mean(2) for s in range(20)]
        return np.mean([(np.abs(p - np.median(p)) > 40).mean() for p in pictures])

    assert covered(0.31) == pytest.approx(covered(0.62) / 4, rel=0.15)
