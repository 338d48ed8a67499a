"""WebDataset shards: labels beside images, in any order and form; the images say the truth."""

import json

import pytest

from pipelines.errors import UserError

from .tar_made import all_true, class_files, left_out, open_made, put, said, taken


def pair(key: str, split: str, label: int, name: str | None = None) -> list[tuple[str, bytes]]:
    """An image that says its class, and the number of it."""
    return [(f"{key}.jpg", said(split, name or label)), (f"{key}.cls", b"%d" % label)]


def members(split: str, count: int = 4, classes: int = 2) -> list[tuple[str, bytes]]:
    return [m for i in range(count) for m in pair(f"{i:04d}", split, i % classes)]


def as_json(content: object, label: object = 1) -> list[tuple[str, bytes]]:
    """Two samples: one of class 0 in the plainest form, one with `content`."""
    return [
        ("0.jpg", said("train", 0)),
        ("0.json", b'{"label": 0}'),
        ("1.jpg", said("train", label)),
        ("1.json", json.dumps(content).encode()),
    ]


TWO = [*pair("a", "train", 0), *pair("b", "train", 1)]

# Each is a neighbour: what writers of shards do differently, to the same two samples.
FORMS = {
    "label before image": [TWO[1], TWO[0], TWO[3], TWO[2]],
    "all images, then all labels": [TWO[0], TWO[2], TWO[1], TWO[3]],
    "folders": [(f"x/y/{name}", data) for name, data in TWO],
    "keys of the same name in two folders": [*pair("x/k", "train", 0), *pair("y/k", "train", 1)],
    "a line end and blanks": [(n, b" %s\n" % d if n.endswith("cls") else d) for n, d in TWO],
    "dots in the key": [*pair("img.01", "train", 0), *pair("img.02", "train", 1)],
    "two endings": [(name.replace(".jpg", ".img.jpg"), data) for name, data in TWO],
    "endings in capitals": [(name.upper(), data) for name, data in TWO],
    "other formats": [
        (name.replace("a.jpg", "a.webp").replace("b.jpg", "b.PNG"), data) for name, data in TWO
    ],
    "json": as_json({"label": 1, "width": 64}),
    "json under another name": as_json({"class_id": 1, "caption": "a dog"}),
    "json with text": as_json({"cls": "1"}),
    "json alone": as_json(1),
    "json of something else beside .cls": [*TWO, ("a.json", b"{}"), ("b.json", b'{"label": 9}')],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    put(tmp_path / "train-000.tar", FORMS[form])
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 2 and source.classes == ["0", "1"]
    assert not source.problems


@pytest.mark.parametrize(
    "names",
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train/000.tar", "val/000.tar"),
        ("data/train/shard-0.tar", "data/valid/shard-0.tar"),
        ("Train_1.tar", "dev_1.tar"),
    ],
)
def test_names_tell_the_splits(names, tmp_path):
    for name, split in zip(names, ("train", "val"), strict=True):
        put(tmp_path / name, members(split))
    source = open_made(tmp_path)
    assert all_true(source) and set(source.origins) == {"train", "val"}
    assert {split for split, *_ in taken(source)} == {"train", "val"}


@pytest.mark.parametrize("place", ["classes.txt", "train/classnames.txt", "classnames.txt"])
def test_class_names_of_a_file_beside(place, tmp_path):
    """Timm's and OpenCLIP's habits: beside the shards, or above them within the source."""
    names = ["tench, Tinca tinca", "goldfish", "never seen"]
    shard = [m for i in range(4) for m in pair(str(i), "x", i % 2)]
    put(tmp_path / "s" / "train" / "0.tar", shard)
    (tmp_path / "classes.txt").write_text("above the source\nis not\nthe source's\n")
    (tmp_path / "s" / place).write_text("\n".join(names) + "\n\n", encoding="utf-8")
    source = open_made(tmp_path / "s")
    assert source.classes == names
    assert [(name, text) for _, name, text in taken(source)] == [
        (names[i % 2], f"x {i % 2}") for i in range(4)
    ]
    assert any(place.rpartition("/")[2] in note for note in source.notes)


def test_labels_that_are_names_are_sorted_over_all_shards(tmp_path):
    put(tmp_path / "train-0.tar", [("0.jpg", said("train", "dog")), ("0.cls", b"dog")])
    put(tmp_path / "train-1.tar", [("0.jpg", said("train", "cat")), ("0.json", b'"cat"')])
    put(tmp_path / "val-0.tar", [("0.jpg", said("val", "dog")), ("0.cls", b"dog")])
    source = open_made(tmp_path)
    assert source.classes == ["cat", "dog"] and all_true(source)


def test_the_field_can_be_named(tmp_path):
    content = {"label": 0, "fine": 1}
    put(
        tmp_path / "train.tar",
        [
            (
                n,
                json.dumps(content | {"fine": int(n[0])}).encode()
                if n.endswith("json")
                else said("train", n[0]),
            )
            for n in ("0.jpg", "0.json", "1.jpg", "1.json")
        ],
    )
    source = open_made(tmp_path, label_column="fine")
    assert all_true(source) and len(taken(source)) == 2


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([("k.jpg", b"x")], "no label"),
        ([("k.jpg", b"x"), ("k.cls", b"")], "cannot be read: it is empty"),
        ([("k.jpg", b"x"), ("k.cls", b"\xff\xfe")], "no text in UTF-8"),
        ([("k.jpg", b"x"), ("k.json", b"{")], "k.json cannot be read"),
        ([("k.jpg", b"x"), ("k.json", b"[" * 100_000)], "k.json cannot be read"),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": "hi"}')], "give --label-column"),
        ([("k.jpg", b"x"), ("k.json", b'{"label": [1, 2]}')], "neither a number nor a name"),
        ([("k.jpg", b"x"), ("k.json", b'{"label": true}')], "neither a number nor a name"),
        ([("k.jpg", b"x"), ("k.jpg", b"y"), ("k.cls", b"1")], "second image"),
    ],
)
def test_what_has_no_label_is_a_problem_and_the_rest_is_taken(extra, reason, tmp_path):
    put(tmp_path / "train.tar", [*members("train"), *extra])
    source = open_made(tmp_path)
    [(name, told)] = source.problems
    assert name == "train.tar:k.jpg" and reason in told and "\n" not in told
    assert len(taken(source)) == 4 + ("second" in reason)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([("k.cls", b"1")], "labels without an image"),
        ([("k.txt", b"a caption")], "neither images nor labels (.txt)"),
        ([("0000.seg.png", b"mask")], "further images of a key that has its image"),
        ([("._k.jpg", b"x")], "hidden"),
    ],
)
def test_what_is_passed_over_is_counted(extra, reason, tmp_path):
    files = members("train")
    put(tmp_path / "train.tar", [*files[:2], *extra, *files[2:]])
    source = open_made(tmp_path)
    assert left_out(source) == {reason: 1} and len(taken(source)) == 4 and not source.problems


MIXED = {
    "train-0.tar": members("t"),
    "train-1.tar": [("x.jpg", b""), ("x.cls", b"dog")],
}


@pytest.mark.parametrize(
    ("shards", "names", "told"),
    [
        (MIXED, None, "numbers in train-0.tar .*names in train-1.tar"),
        ({"train.tar": members("t")}, "one\n", "names 1 classes, but train.tar has the label 1"),
        ({"train.tar": members("t")}, "crane\ncrane\n", "twice"),
        ({"train.tar": [*members("t"), *pair("z", "t", -1)]}, None, "label -1"),
        (
            {"a-train.tar": class_files("t", "ab"), "b-train.tar": members("t")},
            None,
            "folder of their own",
        ),
        ({"train.tar": members("t"), "x.tar": members("t")}, None, "tells no split"),
        ({"train.tar": [("a.json", b"{}"), ("a.jpg", b"x")]}, None, "give --label-column"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(shards, names, told, tmp_path):
    for name, files in shards.items():
        put(tmp_path / name, files)
    if names is not None:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(UserError, match=told) as caught:
        open_made(tmp_path)
    assert "\n" not in str(caught.value)


def test_notes_in_json_beside_class_folders_are_no_labels(tmp_path):
    """As annotation tools leave them; the folders tell the class."""
    notes = [
        (name.replace(".jpg", ".json"), b'{"shapes": []}') for name, _ in class_files("", "ab")
    ]
    put(
        tmp_path / "x.tar",
        [m for two in zip(class_files("", "ab"), notes, strict=True) for m in two],
    )
    source = open_made(tmp_path)
    assert source.classes == ["a", "b"] and left_out(source) == {"no images (.json)": 4}


def test_a_broken_first_shard_does_not_hide_what_the_others_are(tmp_path):
    put(tmp_path / "train-0.tar", []).write_bytes(b"\x1f\x8b" + bytes(600))
    put(tmp_path / "train-1.tar", members("train"))
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 4
    assert [name for name, _ in source.problems] == ["train-0.tar"]


def test_shards_in_any_order_hold_few_waiting(tmp_path, monkeypatch):
    """What is matched is let go: no memory that grows with a shard in the usual order."""
    from pipelines.data.sources import webdataset

    waiting = []
    original = webdataset._Shard.take

    def watched(self, member):
        yield from original(self, member)
        waiting.append(len(self._waiting) + len(self._current.images) + len(self._current.labels))

    monkeypatch.setattr(webdataset._Shard, "take", watched)
    put(tmp_path / "train.tar", [m for i in range(200) for m in pair(f"img.{i}", "train", i % 2)])
    assert len(taken(open_made(tmp_path))) == 200 and max(waiting) <= 3
