"""FFCV's decoder against the torchvision oracle, image by image, on the same boxes."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.beton import read_table
from pipelines.data.decoders import Crops, FfcvDecoder, TorchvisionDecoder
from pipelines.data.geometry import Geometry, centre_crops, random_resized_crops
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare

from .conftest import jpeg, photo
from .made_images import SRGB, rgb_profile, saved, srgb_levels, to_d50


def _both(table, indices, boxes, flips, size, beyond=False):
    outs = []
    for decoder in (FfcvDecoder(table), TorchvisionDecoder(table)):
        out = np.full((len(indices), size, size, 3), 77, np.uint8)
        decoder.decode(Crops(indices, boxes, flips, beyond), out, 0, len(indices))
        outs.append(out.astype(int))
    return outs


@pytest.mark.parametrize("size", [16, 32, 96])
@pytest.mark.parametrize("train", [True, False])
def test_jpegs_agree_with_the_oracle(prepared_photos, size, train):
    """Smaller and larger than stored: mean difference at most 2.5 of 255, none over 12."""
    table = read_table(prepared_photos / "train.beton")
    rng = np.random.default_rng(0)
    indices = rng.permutation(len(table))
    height, width = table.height[indices], table.width[indices]
    if train:
        boxes = random_resized_crops(height, width, Geometry(), rng)
    else:
        boxes = centre_crops(height, width, Geometry(), size)
    flips = rng.random(len(indices)) < 0.5
    ours, oracle = _both(table, indices, boxes, flips, size, beyond=not train)
    assert np.abs(ours - oracle).mean() < 2.5
    assert np.abs(ours - oracle).max() <= 12


@pytest.mark.parametrize("size", [7, 20, 51])
def test_raw_images_differ_by_rounding_alone(digits, size):
    """No JPEG in between: crop, resize and flip are Pillow's to one level."""
    table = read_table(digits / "val.beton")
    rng = np.random.default_rng(1)
    indices = np.arange(64)
    boxes = random_resized_crops(table.height[indices], table.width[indices], Geometry(), rng)
    flips = rng.random(64) < 0.5
    ours, oracle = _both(table, indices, boxes, flips, size)
    assert np.abs(ours - oracle).max() <= 1


def test_a_box_of_the_size_asked_for_is_copied_bit_for_bit(digits):
    table = read_table(digits / "val.beton")
    data = np.fromfile(table.path, np.uint8)
    indices = np.array([5, 0])
    boxes = np.array([[3, 4, 20, 20], [0, 12, 20, 20]])
    out = np.empty((2, 20, 20, 3), np.uint8)
    FfcvDecoder(table).decode(Crops(indices, boxes, np.array([False, True])), out, 0, 2)
    for row, flip in ((0, False), (1, True)):
        start = table.pointer[indices[row]]
        image = data[start : start + 32 * 32 * 3].reshape(32, 32, 3)
        top, left = boxes[row, :2]
        cut = image[top : top + 20, left : left + 20]
        np.testing.assert_array_equal(out[row], cut[:, ::-1] if flip else cut)


def test_large_jpegs_are_decoded_at_a_fraction_and_still_agree(tmp_path):
    """1,200 px to 64: decoded at an eighth; mean difference at most 2.5 of 255."""
    for i in range(4):
        folder = tmp_path / "source" / f"c{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(jpeg(photo(i, 1200, 1000)))
    out = tmp_path / "out"
    prepare(str(tmp_path / "source"), out, PrepareOptions(val=0, minival=0, workers=1))
    table = read_table(out / "train.beton")
    indices = np.arange(4)
    boxes = centre_crops(table.height, table.width, Geometry(), 64).astype(int)
    boxes[0] = [37, 411, 801, 603]  # not on any block's edge
    ours, oracle = _both(table, indices, boxes, np.zeros(4, bool), 64)
    assert np.abs(ours - oracle).mean() < 2.5


@pytest.mark.fault("corrupt image in a beton")
def test_undecodable_bytes_raise_and_name_the_sample(prepared_photos, tmp_path):
    source = read_table(prepared_photos / "train.beton")
    data = bytearray(source.path.read_bytes())
    start = int(source.pointer[3])
    data[start : start + 40] = bytes(40)
    path = tmp_path / "broken.beton"
    path.write_bytes(data)
    table = read_table(path)
    boxes = centre_crops(table.height[:5], table.width[:5], Geometry(), 16)
    for decoder in (FfcvDecoder(table), TorchvisionDecoder(table)):
        out = np.empty((5, 16, 16, 3), np.uint8)
        with pytest.raises(ValueError, match=r"sample 3 of .* cannot be decoded"):
            decoder.decode(Crops(np.arange(5), boxes, np.zeros(5, bool), True), out, 0, 5)


def test_the_oracle_itself_is_pillow(prepared_photos):
    """The whole image at its own size, by plain Pillow, against the oracle."""
    table = read_table(prepared_photos / "val.beton")
    data = table.path.read_bytes()
    start, size = int(table.pointer[0]), int(table.size[0])
    plain = np.asarray(Image.open(io.BytesIO(data[start : start + size])).convert("RGB"))
    side = min(plain.shape[:2])
    out = np.empty((1, side, side, 3), np.uint8)
    box = np.array([[0, 0, side, side]])
    TorchvisionDecoder(table).decode(Crops(np.array([0]), box, np.zeros(1, bool)), out, 0, 1)
    np.testing.assert_array_equal(out[0], plain[:side, :side])


def test_odd_files_end_up_the_same_in_both_decoders(tmp_path):
    """Grey, progressive, 4:4:4, CMYK, turned, palette and 16 bit, from file to batch."""
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = photo(5, 60, 60)
    ramp = np.linspace(0, 65535, 60).astype(np.uint16)[None].repeat(60, 0)
    files = {
        "a.jpg": (picture.convert("L"), {}),
        "b.jpg": (picture, {"progressive": True, "quality": 95}),
        "c.jpg": (picture, {"subsampling": 0, "quality": 95}),
        "d.jpg": (picture.convert("CMYK"), {"quality": 95}),
        "e.jpg": (picture.transpose(Image.Transpose.ROTATE_90), {"exif": turned, "quality": 95}),
        "f.png": (picture.quantize(64), {}),
        "g.png": (Image.fromarray(ramp), {}),
    }
    for name, (image, options) in files.items():
        folder = tmp_path / "source" / "train" / ("first" if name < "e" else "second")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **options)
    out = tmp_path / "out"
    prepare(str(tmp_path / "source"), out, PrepareOptions(val=0, minival=0, workers=1))
    table = read_table(out / "train.beton")
    indices, boxes = np.arange(7), np.array([[0, 0, 60, 60]] * 7)
    ours, oracle = _both(table, indices, boxes, np.zeros(7, bool), 60)
    assert np.abs(ours - oracle).mean() < 2.5
    expected = np.asarray(picture).astype(int)
    for i in (1, 2, 3, 4):  # colour: as the picture was
        assert np.abs(ours[i] - expected).mean() < 8, i
    assert np.abs(ours[5] - np.asarray(picture.quantize(64).convert("RGB"))).mean() < 8
    assert np.abs(ours[0] - np.asarray(picture.convert("L"))[..., None]).mean() < 4
    assert np.abs(ours[6, 0, :, 0] - (ramp[0] >> 8)).mean() < 3


def test_training_sees_what_a_viewer_shows(tmp_path):
    """From file to batch through both decoders, against the pixels a viewer has on its screen.

    The field's JPEGs (no end marker, a panorama's trailer, a film behind the picture), and their
    neighbours whose bytes are kept or may not be: several pictures in one file, RGB without
    YCbCr, one grey channel, another display's colours, transparency, a turned AVIF.
    """
    picture = photo(5, 60, 60)
    exact = np.asarray(picture)
    whole = jpeg(picture, subsampling=0)
    alpha = picture.convert("RGBA")
    alpha.putalpha(128)
    turned = Image.Exif()
    turned[0x0112] = 3
    linear = rgb_profile(SRGB, 1.0)
    files = {
        "noend.jpg": (whole[:-2], exact),
        "trailer.jpg": (whole[:-2] + bytes(64) + b"SEFT", exact),
        "motion.jpg": (whole + b"MotionPhoto_Data" + bytes(999), exact),
        "several.jpg": (
            saved(picture, "MPO", save_all=True, append_images=[photo(6)], quality=95), exact,
        ),
        "rgb.jpg": (jpeg(picture, keep_rgb=True), exact),
        "grey.jpg": (jpeg(picture.convert("L")), np.asarray(picture.convert("L").convert("RGB"))),
        "linear.jpg": (
            jpeg(picture, icc_profile=linear, subsampling=0),
            srgb_levels(exact / 255 @ to_d50(SRGB).T),
        ),
        "alpha.png": (saved(alpha, "PNG"), exact * (128 / 255) + 127),
        "turned.avif": (saved(picture.rotate(180), "AVIF", exif=turned, quality=95), exact),
    }  # fmt: skip
    for i, (name, (data, _)) in enumerate(files.items()):
        folder = tmp_path / "source" / "train" / f"c{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder.parent / "c0" / "black.png").write_bytes(saved(Image.new("I;16", (60, 60), 900), "PNG"))
    out = tmp_path / "out"
    options = PrepareOptions(val=0, minival=0, workers=1, quality=95)
    manifest = prepare(str(tmp_path / "source"), out, options)
    assert manifest.summary is not None
    told = manifest.summary.splits["train"].converted
    assert told["end marker added"] == 1
    assert told["bytes after the end left off"] == 3
    assert told["profile Made for tests to sRGB"] == 1
    assert told["turned upright + AVIF to JPEG"] == 1
    assert any("nearly black" in note and "c0/black.png" in note for note in manifest.summary.notes)
    table = read_table(out / "train.beton")
    names = pq.read_table(out / "index.parquet").to_pylist()
    at = {row["source_name"].rsplit("/", 1)[-1]: row["position"] for row in names}
    indices, boxes = np.arange(10), np.array([[0, 0, 60, 60]] * 10)
    for decoded in _both(table, indices, boxes, np.zeros(10, bool), 60):
        for name, (_, expected) in files.items():
            assert np.abs(decoded[at[name]] - expected).mean() < 4, name
