"""Labels of many Parquet files become one list of classes: by name, or not at all."""

import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .parquet_made import class_label, features, hub_file, open_made, per_class, taken

PETS = ["cat", "dog"]
FILES = ("train-0", "train-1", "validation-0")


def files_of(root, *files):
    """(labels, names) of each of train-0, train-1, validation-0."""
    for name, (labels, names) in zip(FILES, files, strict=False):
        hub_file(root / f"{name}.parquet", labels, names)
    return root


MATCHED = {
    # the field script and its list of kin
    "another order in val": [([0, 1, 1], PETS), ([], PETS), ([0, 1, 1], PETS[::-1])],
    "another order in a second shard": [([0, 1, 1], PETS), ([0, 1, 1], PETS[::-1])],
    "the older form": [([0, 1], PETS), ([0, 1, 1], {"1": "cat", "0": "dog"})],
    "some of the names": [([0, 1, 2], ["ant", "cat", "dog"]), ([0, 1, 1], PETS)],
    "more names in val": [([0, 1], PETS), ([], PETS), ([0, 1, 2], ["ant", "cat", "dog"])],
    # neighbours: names that come another way
    "names in one, text in the other": [([1, 0, 1], PETS), (["cat", "dog", "cat"], None)],
    "text in all": [(["eel", "cat"], None), (["dog", "cat", "cat"], None)],
    "text under a ClassLabel": [(["dog", "cat"], PETS), ([1, 1, 0], PETS[::-1])],
    "three orders": [([0, 1], PETS), ([1, 1, 0], PETS[::-1]), ([1], {"0": "cat", "1": "dog"})],
    "numbers that are named by themselves": [([0, 1], ["0", "1"]), ([1, 1], None)],
}


@pytest.mark.parametrize("files", MATCHED.values(), ids=MATCHED)
def test_names_decide(tmp_path, files):
    source = open_made(files_of(tmp_path, *files))
    found = {image: name for _, name, image in taken(source)}
    expected = {}
    for name, (labels, names) in zip(FILES, files, strict=False):
        named = dict(enumerate(names)) if isinstance(names, list) else {}
        named |= {int(k): v for k, v in names.items()} if isinstance(names, dict) else {}
        for i, label in enumerate(labels):
            text = label if isinstance(label, str) else named.get(label, str(label))
            expected[f"{name}.parquet {i}"] = text
    assert found == expected
    assert len(set(source.classes)) == len(source.classes)


CONFLICTS = {
    "names in one, bare numbers in the other": [([0, 1], PETS), ([0, 1], None)],
    "bare numbers first": [([0, 1], None), ([0, 1], PETS[::-1])],
    "bare numbers and text": [([0, 1], None), (["cat", "dog"], None)],
    "other names": [([0, 1], PETS), ([0, 1], ["cow", "emu"])],
    "names that overlap": [([0, 1], PETS), ([0, 1], ["dog", "emu"])],
    "another spelling": [([0, 1], PETS), ([0, 1], ["Cat", "Dog"])],
    "text that is no name": [([0, 1], PETS), (["dog", "emu"], None)],
    "bool and numbers": [([True, False], None), ([0, 1], None)],
    "two of a name in another order": [
        ([0, 1, 2], ["crane", "a", "crane"]),
        ([0, 1, 2], ["a", "crane", "crane"]),
    ],
}


@pytest.mark.parametrize("files", CONFLICTS.values(), ids=CONFLICTS)
def test_conflicts_are_refused_with_both_files(tmp_path, files):
    with pytest.raises(UserError, match=r"train-[01]\.parquet.*train-[01]\.parquet") as caught:
        open_made(files_of(tmp_path, *files))
    assert {"train-0", "train-1"} <= {
        word.split(".")[0] for word in str(caught.value).replace(":", " ").split()
    }


def test_share_names_settles_numbers_without_names(tmp_path):
    files_of(tmp_path, ([0, 1], None), ([0, 1], PETS[::-1]))
    with pytest.raises(UserError, match="--share-names"):
        open_made(tmp_path)
    source = open_made(tmp_path, share_names=True)
    assert [name for _, name, _ in taken(source)] == ["dog", "cat"] * 2
    hub_file(tmp_path / "train-2.parquet", [0, 1], PETS)
    with pytest.raises(UserError, match="do not all number alike"):
        open_made(tmp_path, share_names=True)


def test_what_was_matched_is_said(tmp_path):
    source = open_made(files_of(tmp_path, ([0, 1], PETS), ([0, 1], PETS[::-1])))
    assert any("train-1.parquet numbers its classes otherwise" in note for note in source.notes)


ONE_FILE = {
    "null, unlabelled, out of range": (
        pa.array([0, None, -1, 2, -7]), PETS,
        ["cat", "no label", "label -1, which marks images without a label",
         "label 2 is out of range 0..1", "label -7 is out of range 0..1"],
    ),
    "beyond 64 bits with a sign": (
        pa.array([1, 2**63], pa.uint64()), PETS,
        ["dog", "label 9223372036854775808 is out of range 0..1"],
    ),
    "floats": (
        pa.array([1.0, 0.5, float("nan"), float("inf")]), PETS,
        ["dog", "label 0.5 is not a whole number", "no label", "label inf is not a whole number"],
    ),
    "half floats": (pa.array([1.0, 0.0]).cast(pa.float16()), PETS, ["dog", "cat"]),
    "decimals": (
        pa.array([decimal.Decimal("1.0"), decimal.Decimal("0.1")]), PETS,
        ["dog", "label 0.1 is not a whole number"],
    ),
    "bool": (pa.array([True, None, False]), None, ["True", "no label", "False"]),
    "bytes of one bit": (
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())), PETS,
        ["dog", "cat"],
    ),
    "large text": (pa.array(["b", "", "a"], pa.large_string()), None, ["b", "no label", "a"]),
    "text views": (pa.array(["b", None], pa.string_view()), None, ["b", "no label"]),
    "a dictionary": (pa.array(["b", "a", "b"]).dictionary_encode(), None, ["b", "a", "b"]),
    "a dictionary of numbers": (pa.array([1, 0]).dictionary_encode(), PETS, ["dog", "cat"]),
    "text that is not UTF-8": (
        pa.array([b"\xff", b"ok"]).view(pa.string()), None, ["no label", "ok"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "names", "expected"), ONE_FILE.values(), ids=ONE_FILE)
def test_types_and_rows_without_a_label(tmp_path, labels, names, expected):
    hub_file(tmp_path / "train.parquet", labels, names)
    assert [name for _, name, _ in taken(open_made(tmp_path))] == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (pa.array([None, None]), None, "is null, expected whole numbers or text.*--label-column"),
        (pa.array([[1]]), None, "is list"),
        (pa.array([{"id": 1}]), None, "is struct"),
        (pa.array([b"cat"]), None, "is binary"),
        (pa.array([1], pa.date32()), None, "is date32"),
        (pa.array([0, 10**9]), None, r"labels up to 1000000000 .* --classes"),
        (pa.array([-1, -1]), None, "no labels of 0 or more"),
        (pa.array([0, 1]), {"0": "cat", "5": "dog"}, "does not number the classes from 0"),
    ],
)
def test_what_is_no_label(tmp_path, labels, names, message):
    hub_file(tmp_path / "train.parquet", labels, names)
    with pytest.raises(UserError, match=message):
        open_made(tmp_path)


CRANES = ["a", "crane", "crane", "b"]


@pytest.mark.parametrize(
    ("wanted", "classes", "counts"),
    [
        (None, CRANES, {"a": 1, "crane": 2, "b": 1}),
        (3, CRANES[:3], {"a": 1, "crane": 2}),  # the field script D16
        (["crane"], ["crane", "crane"], {"crane": 2}),
        (["b", "crane"], ["crane", "crane", "b"], {"crane": 2, "b": 1}),
    ],
)
def test_two_classes_of_one_name_stay_two(tmp_path, wanted, classes, counts):
    hub_file(tmp_path / "train-0.parquet", [3, 2, 1, 0], CRANES)
    hub_file(tmp_path / "train-1.parquet", [0, 1], ["b", "a"])  # only names that occur once
    source = open_made(tmp_path, classes=wanted)
    assert source.classes == classes
    labels = [s.label for unit in source.units for s in unit.read() if b"train-0" in s.data]
    assert sorted(labels) == list(range(len(classes)))  # each its own, none merged, none lost
    both = {"train": counts.copy()}
    for name in ("a", "b"):
        if name in classes:
            both["train"][name] += 1
    assert per_class(source) == both
    dropped = sum(entry.count for entry in source.left_out if "not chosen" in entry.reason)
    assert dropped == 6 - sum(both["train"].values())


def test_columns_of_other_names_are_tied_only_by_class_names(tmp_path):
    for i, column in enumerate(("label", "cls")):
        table = pa.table({"image": [b"x"], column: [0]})
        pq.write_table(table, tmp_path / f"train-{i}.parquet")
    with pytest.raises(UserError, match=r"train-0\.parquet are in its column label.*train-1"):
        open_made(tmp_path)
    for i, column in enumerate(("label", "cls")):
        table = pa.table({"image": [b"x"], column: [0]})
        told = features(**{column: class_label(PETS[:: 1 - 2 * i])})
        pq.write_table(table.replace_schema_metadata(told), tmp_path / f"train-{i}.parquet")
    assert [name for _, name, _ in taken(open_made(tmp_path))] == ["cat", "dog"]


def test_prepare_puts_swapped_names_right(tmp_path):
    """The field script D2: all images of the second file came out under the wrong class."""
    true = {}
    for name, names, base in (("train", PETS, 0), ("validation", PETS[::-1], 50)):
        data = [jpeg(photo(base + i, 32, 32)) for i in range(10)]
        labels = [int(i < 3) for i in range(10)]
        table = pa.table({"image": data, "label": labels})
        told = table.replace_schema_metadata(features(label=class_label(names)))
        (tmp_path / "h").mkdir(exist_ok=True)
        pq.write_table(told, tmp_path / "h" / f"{name}-0.parquet")
        true |= {f"{name}-0.parquet:0:{i}": names[label] for i, label in enumerate(labels)}
    manifest = prepare(str(tmp_path / "h"), tmp_path / "out", PrepareOptions(workers=1))
    assert manifest.splits["val"].counts == [3, 7]
    for row in pq.read_table(tmp_path / "out" / "index.parquet").to_pylist():
        name = row["source_name"].rsplit("/", 1)[-1]
        assert manifest.classes[row["label"]] == true[name]
