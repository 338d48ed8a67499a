"""What `prepare` says at the end, keeps in the manifest, and says beforehand with --dry-run."""

import json
import re
import shutil

import pytest
import typer
from typer.testing import CliRunner

from pipelines.commands.prepare_command import prepare
from pipelines.data.manifest import MANIFEST_NAME, load_manifest
from pipelines.data.options import PrepareOptions, options_hash
from pipelines.data.prepare import rehearse
from pipelines.data.refusals import group_refusals, in_words
from pipelines.errors import UserError

from .folders import make, picture

app = typer.Typer()
app.command()(prepare)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--workers", "1"])


@pytest.fixture
def source(tmp_path):
    """Training, validation and test images, with some of what people have among them."""
    root = make(tmp_path / "source", "Train/x", "Train/y", "Val/x", "Val/y", "test/x", count=4)
    for name, data in {
        "Train/x/png.jpg": picture(500),
        "Train/x/kept.jpg": picture(501, "JPEG"),
        "Train/x/notes.xml": b"<a/>",
        "Train/y/.hidden.png": b"",
    }.items():
        (root / name).write_bytes(data)
    return root


def test_the_summary_at_a_glance(source, tmp_path):
    result = run(source, tmp_path / "out", "--minival", 0.25)
    assert result.exit_code == 0, result.exception
    text = result.stdout
    assert f"{source}: 2 classes, x … y" in text
    assert re.search(r"train +\d images, from Train/", text)
    assert re.search(r"minival +3 images, taken out of train by the seed", text)
    assert re.search(r"val +8 images, from Val/", text)
    assert re.search(r"converted: 8 PNG", text)
    assert "4 images: of the test split test/" in text
    assert "1 file: hidden, Train/y/.hidden.png" in text
    assert "1 file: no images (.xml), Train/x/notes.xml" in text
    again = run(source, tmp_path / "out", "--minival", 0.25).stdout
    assert again.replace("is complete and verified", "prepared") == text


def test_the_manifest_has_it_and_manifests_without_it_are_read(source, tmp_path):
    out = tmp_path / "out"
    run(source, out)
    manifest = load_manifest(out)
    summary = manifest.summary
    assert summary is not None
    for split, part in manifest.splits.items():
        assert summary.splits[split].images == part.samples
    assert (summary.first_class, summary.last_class) == ("x", "y")
    assert summary.splits["val"].origins == ["Val/"]
    old = json.loads((out / MANIFEST_NAME).read_text())
    del old["summary"]
    (out / MANIFEST_NAME).write_text(json.dumps(old))
    assert load_manifest(out).summary is None
    assert "is complete and verified" in run(source, out).output


def test_data_prepared_by_earlier_programs_is_the_same_data():
    """The hashes are those of the program before it had these options."""
    known = {
        "dd96926f88f64f33cba1a8e16853124a2d95c8e9f68e964ff887a3fccf5bdf02": {},
        "8b753e3a69fb5b24b267873b6c9709b1aed96298cb9c585ccd7443312fda4859": {"classes": 3},
        "03c161d07ff30e7784ad9236221562afaf0fef2ff002509d09ad794842685896": {
            "classes": ["a", "b"],
            "resolution": 64,
            "mode": "raw",
        },
    }
    for expected, options in known.items():
        assert options_hash("/d", PrepareOptions(**options)) == expected
    assert options_hash("/d", PrepareOptions(train_from="x")) not in known


def test_a_dry_run_says_the_same_and_writes_nothing(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    dry = run(source, tmp_path / "out", "--dry-run")
    assert dry.exit_code == 0 and sorted(tmp_path.rglob("*")) == before
    as_json = json.loads(run(source, tmp_path / "out", "--dry-run", "--json").stdout)
    real = run(source, tmp_path / "out")
    assert real.stdout.startswith(dry.stdout)
    summary = load_manifest(tmp_path / "out").summary
    assert summary is not None and as_json == summary.model_dump(mode="json")


def test_a_dry_run_tells_what_would_be_refused(source, tmp_path):
    for i in range(3):
        (source / "Train/x" / f"empty{i}.jpg").write_bytes(b"")
    result = run(source, tmp_path / "out", "--dry-run")
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 1
    assert "3 images: empty file, Train/x/empty0.jpg" in result.stdout
    assert "3 of 21 images refused: 3 like Train/x/empty0.jpg" in str(result.exception)
    assert run(source, tmp_path / "out", "--dry-run", "--skip-bad").exit_code == 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


# The script has one picture in two classes of val. Its neighbours: two classes of train, a class
# of train and another of val, three classes, under names that do not end like images.
@pytest.mark.parametrize(
    "places",
    [
        ["Val/x/a.png", "Val/y/b.png"],
        ["Train/x/a.png", "Train/y/b.png"],
        ["Train/x/a.png", "Val/y/b.png"],
        ["Train/x/a.png", "Train/y/b.png", "Val/x/c.png"],
        ["Train/x/a", "Val/y/b.dat"],
    ],
)
def test_a_picture_in_two_classes_is_refused_in_both(source, tmp_path, places):
    for place in places:
        (source / place).write_bytes(picture(999))
    result = run(source, tmp_path / "out")
    assert f"{len(places)} of" in str(result.exception)
    listed = (tmp_path / "out.partial" / "rejected.csv").read_text().splitlines()[1:]
    for place in places:
        (line,) = (line for line in listed if line.startswith(f"{place},"))
        others = [p for p in places if p.split("/")[1] != place.split("/")[1]]
        said = [f"{place},same picture as {p} of class {p.split('/')[1]}" for p in others]
        assert line in said


def test_copies_in_a_class_are_counted_and_in_two_splits_refused(source):
    for name in ("a", "b", "c"):
        (source / "Train/x" / f"{name}.png").write_bytes(picture(999))
    summary, why = rehearse(str(source), PrepareOptions(workers=1, minival=0))
    assert not why and "2 images are copies of others in their class and split" in summary.notes
    shutil.copy(source / "Train/x/a.png", source / "Val/x/a.png")
    summary, why = rehearse(str(source), PrepareOptions(workers=1, minival=0))
    assert [(group.reason, group.count) for group in summary.refused] == [
        ("copies of images in val", 3)
    ]


def test_refusals_are_grouped_by_kind_with_the_option_that_takes_them():
    refused = [
        ("a.png", "decompression bomb: 9×9 is over 4"),
        ("b.png", "decompression bomb: 8×8 is over 4"),
        ("c.jpg", "cannot be decoded: end (--reencode takes it)"),
        ("d.jpg", "label 7 is out of range 0..3"),
        ("e\n.jpg", "label 8 is out of range 0..3"),
        ("f.jpg", "label 9 is out of range 0..3"),
        ("g.jpg", "duplicate of val/x in val"),
        ("h.jpg", "cannot be read: Permission denied"),
    ]
    groups = group_refusals(refused)
    assert [(g.reason, g.count, g.option) for g in groups] == [
        ("labels out of range", 3, ""),
        ("too many pixels", 2, "--max-pixels N"),
        ("cannot be decoded", 1, "--reencode"),
        ("copies of images in val", 1, ""),
        ("cannot be read, Permission denied", 1, ""),
    ]
    words = in_words(groups)
    assert "3 like d.jpg: label 7" in words and "(--max-pixels N)" in words
    assert "\n" not in words


@pytest.mark.parametrize("option", ["--train", "--val", "--class", "--labels"])
@pytest.mark.parametrize("source", ["digits", "glyphs"])
def test_options_that_mean_nothing_to_a_source_are_not_passed_over(tmp_path, source, option):
    result = run(source, tmp_path / "out", option, "x")
    assert isinstance(result.exception, UserError) and option in str(result.exception)


def test_nothing_of_the_chosen_classes(source, tmp_path):
    """There is no rejected.csv to look into then."""
    make(source, "Train/z", count=1)
    (source / "Train/z/0.png").write_bytes(b"")
    result = run(source, tmp_path / "out", "--class", "z", "--skip-bad")
    assert "holds no usable image" in str(result.exception)
    assert "1 of 1 images refused" in str(result.exception) or "empty file" in str(result.exception)


def test_training_images_that_are_all_in_val_too(source, tmp_path):
    """Their mean would be that of nothing, and the manifest one that cannot be read again."""
    shutil.rmtree(source / "Train")
    shutil.copytree(source / "Val", source / "Train")
    result = run(source, tmp_path / "out", "--skip-bad")
    assert "holds no usable image to train on: 10 of 16" in str(result.exception)
    result = run(source, tmp_path / "out", "--skip-bad", "--dry-run")
    assert result.exit_code == 1 or isinstance(result.exception, UserError)
