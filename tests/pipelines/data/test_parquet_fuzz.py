"""Random Parquet data sets: nothing but a UserError ends them, no sample is of a wrong class."""

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import rehearse
from pipelines.data.sources.parquet import parquet_source
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .parquet_made import class_label, features

PICTURE = jpeg(photo(0, 16, 16))
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# A minute for one of them is a hang.
MORE = settings(FUZZ, max_examples=2_000, derandomize=False, deadline=timedelta(minutes=1))

NAMES = ("cat", "dog", "0", "1", "tench, Tinca tinca", "ü", "Dog", "train", " x")
WORDS = {
    "train": ("train", "Training", "TRAIN", "train_set"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "Testing"),
}
PLACES = (
    "{word}-{n}",
    "{word}/part-{n}",
    "data/{word}-{n:05}-of-{all:05}",
    "split={word}/{n:04}",
    "default/{word}/{n:04}",
    "{word}.parquet/part-{n}",
    "partial-{word}/{n:04}",
    "year={n}/my_{word}",
)
IMAGE_TYPES = (
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.list_(pa.uint8()),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.struct([("path", pa.string()), ("bytes", pa.binary_view())]),
)
TEXTS: tuple[Callable[[list[Any]], pa.Array], ...] = (
    lambda v: pa.array(v, pa.string()),
    lambda v: pa.array(v, pa.large_string()),
    lambda v: pa.array(v, pa.string_view()),
    lambda v: pa.array(v, pa.string()).dictionary_encode(),
)
NUMBERS: tuple[Callable[[list[Any]], pa.Array], ...] = (
    lambda v: pa.array(v, pa.int64()),
    lambda v: pa.array(v, pa.int8()),
    lambda v: pa.array(v, pa.float32()),
    lambda v: pa.array(v, pa.int64()).dictionary_encode(),
    lambda v: pa.array(v, pa.int64()).cast(pa.decimal128(30, 2)),
)
FOREIGN = ("._train-0", ".cache/train/0", "_temporary/0/part-0", "@eaDir/train-0")


@dataclass(frozen=True)
class Row:
    """What is true of one row: its split, and its class or "" where it has none."""

    split: str
    name: str


@dataclass
class DataSet:
    """A data set on disk and what is true of it; `refused` says whether it must be."""

    root: Path
    rows: dict[str, Row]
    refused: bool
    options: dict[str, Any]


def image_of(token: str) -> bytes:
    """A JPEG with a comment: read by any decoder, another file for each token."""
    text = f"<{token}>".encode()
    return PICTURE[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text + PICTURE[2:]


def images_of(tokens: list[str], kind: pa.DataType) -> pa.Array:
    data: list[Any] = [image_of(token) for token in tokens]
    if pa.types.is_struct(kind):
        data = [{"bytes": item, "path": "x.jpg"} for item in data]
    elif pa.types.is_list(kind):
        data = [list(item) for item in data]
    return pa.array(data, kind)


@st.composite
def data_sets(draw: st.DrawFn, root: Path) -> DataSet:
    """Files of one to three splits, each with labels written in its own way."""
    classes = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    naming = draw(st.sampled_from(["named", "named", "named", "bare", "mixed"]))
    by_column = draw(st.integers(0, 5)) == 0
    spoken = not by_column and draw(st.integers(0, 3)) > 0
    rows: dict[str, Row] = {}
    declared: list[set[str]] = []
    texts: set[str] = set()
    kinds: set[str] = set()
    identical: set[tuple[str, ...]] = set()
    counter = itertools.count()
    splits = ["train", *draw(st.sets(st.sampled_from(["val", "test"])))] if spoken else [""]
    place = draw(st.sampled_from(PLACES)) if spoken else "part-{n}"
    for split in splits:
        word = draw(st.sampled_from(WORDS[split])) if spoken else ""
        number = draw(st.integers(1, 2))
        for n in range(number):
            path = root / (place.format(word=word, n=n, all=number) + ".parquet")
            size = draw(st.integers(0, 5))
            kind = draw(st.sampled_from(["text", "names", "names"]))
            if naming == "bare" or (naming == "mixed" and draw(st.booleans())):
                kind = "bare"
            own = draw(st.permutations(classes))
            if draw(st.integers(0, 3)) == 0:
                own = own[: draw(st.integers(1, len(own)))]
            if draw(st.integers(0, 15)) == 0:
                own = [*own, "another"]
            picks = draw(st.lists(st.integers(-1, len(own) - 1), min_size=size, max_size=size))
            tokens = [f"{next(counter)}" for _ in picks]
            told = [
                draw(st.sampled_from(["train", "val", "TEST"])) if by_column else split
                for _ in picks
            ]
            labels: list[Any]
            if kind == "text":
                labels = [own[pick] if pick >= 0 else None for pick in picks]
                column = draw(st.sampled_from(TEXTS))(labels)
            else:
                missing = draw(st.sampled_from([None, -1]))
                labels = [pick if pick >= 0 else missing for pick in picks]
                column = draw(st.sampled_from(NUMBERS))(labels)
            for token, pick, said in zip(tokens, picks, told, strict=True):
                name = "" if pick < 0 else str(pick) if kind == "bare" else own[pick]
                if said.lower() != "test":
                    rows[token] = Row(said, name)
            if picks and split != "test":
                kinds.add(kind)
                if kind == "names":
                    declared.append(set(own))
                    identical.add(tuple(own))
                elif kind == "text":
                    texts |= {label for label in labels if label}
            columns = draw(st.sampled_from([("image", "label"), ("img", "fine_label")]))
            if kind == "bare" or naming == "mixed":
                columns = ("image", "label")
            image_type = draw(st.sampled_from(IMAGE_TYPES))
            table = {columns[0]: images_of(tokens, image_type), columns[1]: column}
            if by_column:
                table["split"] = pa.array(told, pa.string())
            meta: dict[str, Any] = {columns[0]: {"_type": "Image"}}
            if kind == "names":
                asdict = draw(st.booleans())
                names: Any = {str(i): name for i, name in enumerate(own)} if asdict else own
                meta[columns[1]] = class_label(names)
            elif columns[1] != "label":
                meta[columns[1]] = class_label(None)
            path.parent.mkdir(parents=True, exist_ok=True)
            made = pa.table(table).replace_schema_metadata(features(**meta))
            views = "view" in str(made.schema)  # pyarrow cannot write these in parts
            pq.write_table(made, path, row_group_size=100 if views else draw(st.integers(1, 4)))
    for name in draw(st.sets(st.sampled_from(FOREIGN), max_size=2)):
        (root / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.parquet").write_bytes(b"foreign")
    refused = _contradict(declared, texts, kinds, identical)
    if draw(st.integers(0, 9)) == 0:  # a second data set beside the first
        hidden = root / draw(st.sampled_from(["other/part-0", "other/train-0"]))
        hidden.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, f"{hidden}.parquet")
        refused = True
    return DataSet(root, rows, refused, {"split_column": "split"} if by_column else {})


def _contradict(
    declared: list[set[str]],
    texts: set[str],
    kinds: set[str],
    identical: set[tuple[str, ...]],
) -> bool:
    """Whether the labels cannot be matched beyond doubt."""
    if "bare" in kinds and len(kinds) > 1:
        names = next(iter(identical), ())
        by_number = list(names) == [str(i) for i in range(len(names))]
        return not (len(identical) == 1 and by_number and "text" not in kinds)
    every = max(declared, key=len, default=set())
    return bool(declared) and not all(names <= every for names in [*declared, texts])


def check(data_set: DataSet) -> None:
    """The source must be refused, or every sample be what it truly is, and none be missing."""
    options = PrepareOptions(workers=1, **data_set.options)
    usable = [row for row in data_set.rows.values() if row.name]
    no_train = data_set.options and not any(row.split == "train" for row in usable)
    if data_set.refused or not usable or no_train:
        with suppress(UserError) if not data_set.refused else pytest.raises(UserError):
            parquet_source(str(data_set.root), options)
        return
    source = parquet_source(str(data_set.root), options)
    found: dict[str, Row] = {}
    errors = 0
    for sample in itertools.chain.from_iterable(unit.read() for unit in source.units):
        if sample.error:
            errors += 1
            continue
        token = bytes(sample.data).split(b"<", 1)[1].split(b">", 1)[0].decode()
        assert token not in found
        found[token] = Row(sample.split, source.classes[sample.label])
    assert found == {token: row for token, row in data_set.rows.items() if row.name}
    assert errors == len(data_set.rows) - len(found)
    if found and len(source.classes) > 1:
        summary, why = rehearse(str(data_set.root), options)
        parts = {split: part.images for split, part in summary.splits.items()}
        true = Counter("val" if row.split == "val" else "train" for row in found.values())
        assert sum(parts.values()) == len(found)
        if true["val"]:
            assert parts.get("val", 0) == true["val"]
        assert bool(why) >= bool(errors)


@contextmanager
def _folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="parquet-fuzz-"))
    try:
        yield folder / "data"
    finally:
        shutil.rmtree(folder)


def try_data_set(data: st.DataObject) -> None:
    with _folder() as root:
        check(data.draw(data_sets(root)))


def cycled(values: list[Any], kind: pa.DataType) -> Callable[[int], pa.Array]:
    """Arrays of a type and any length, of these values again and again."""
    return lambda n: pa.array(itertools.islice(itertools.cycle(values), n), kind)


def wrapped(kind: pa.BaseExtensionType, value: Any) -> Callable[[int], pa.Array]:
    storage = cycled([value], kind.storage_type)
    return lambda n: pa.ExtensionArray.from_storage(kind, storage(n))


FLOATS = [0.0, 1.5, float("nan"), float("-inf")]
ARRAYS: dict[str, Callable[[int], pa.Array]] = {
    "null": pa.nulls,
    "bool": cycled([True, False], pa.bool_()),
    "int8": cycled([-1, 0, 1], pa.int8()),
    "int64": cycled([0, 1, 2**62, None, -1], pa.int64()),
    "uint64": cycled([2**64 - 1, 0], pa.uint64()),
    "half": lambda n: cycled([1.0], pa.float32())(n).cast(pa.float16()),
    "double": cycled(FLOATS, pa.float64()),
    "decimal": lambda n: cycled([0, 1, 2], pa.int64())(n).cast(pa.decimal256(30, 3)),
    "date": cycled([1], pa.date32()),
    "time": cycled([1], pa.time64("us")),
    "timestamp": cycled([1], pa.timestamp("us", "UTC")),
    "duration": cycled([1], pa.duration("ms")),
    "string": cycled(["a", "", None, "train", "x/../y"], pa.string()),
    "no text": lambda n: cycled([b"\xff\xfe"], pa.binary())(n).view(pa.string()),
    "large_string": cycled(["ü"], pa.large_string()),
    "string_view": cycled(["b"], pa.string_view()),
    "binary": cycled([b"x", None, b""], pa.binary()),
    "large_binary": cycled([b"x"], pa.large_binary()),
    "binary_view": cycled([b"x"], pa.binary_view()),
    "fixed": cycled([b"xyz"], pa.binary(3)),
    "words": lambda n: cycled(["a", "b"], pa.string())(n).dictionary_encode(),
    "map": cycled([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "bytes list": cycled([[1, 2]], pa.list_(pa.uint8())),
    "uuid": wrapped(pa.uuid(), b"x" * 16),
    "opaque": wrapped(pa.opaque(pa.binary(), "t", "v"), b"x"),
    "bool8": wrapped(pa.bool8(), 0),
}


@st.composite
def arrays(draw: st.DrawFn, n: int, depth: int = 0) -> pa.Array:
    """A column of any type, nested up to three times."""
    wrap = draw(st.sampled_from(["", "", "struct", "image", "list"])) if depth < 3 else ""
    if wrap in ("struct", "image"):
        names = ["bytes", "path"] if wrap == "image" else ["x", "bytes"]
        return pa.StructArray.from_arrays([draw(arrays(n, depth + 1)) for _ in names], names)
    if wrap == "list":
        return pa.ListArray.from_arrays(list(range(n + 1)), draw(arrays(n, depth + 1)))
    return ARRAYS[draw(st.sampled_from(sorted(ARRAYS)))](n)


COLUMNS = ("image", "label", "labels", "img", "split", "Label", "a.b", "image.bytes", "", "猫\n")
ANY_NAMES = st.sampled_from(COLUMNS)
JSON = st.recursive(
    st.none() | st.integers(-1, 3) | st.sampled_from(["Image", "ClassLabel", "cat", "0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_type", "names", "0", "1", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def wild_files(draw: st.DrawFn, root: Path) -> None:
    """Some files of any schema, metadata and number of rows; some with bytes changed."""
    for name in draw(st.sets(st.sampled_from(["train-0", "val-0", "train-1", "x"]), min_size=1)):
        n = draw(st.integers(0, 4))
        names = draw(st.lists(ANY_NAMES, max_size=4)) + draw(
            st.sampled_from([[], ["image", "label"]])
        )
        table = pa.Table.from_arrays([draw(arrays(n)) for _ in names], names=names)
        told = draw(st.dictionaries(ANY_NAMES, JSON, max_size=3))
        root.mkdir(exist_ok=True)
        path = root / f"{name}.parquet"
        try:
            pq.write_table(table.replace_schema_metadata(features(**told)), path, row_group_size=2)
        except (pa.ArrowException, ValueError):  # not every type can be written
            path.unlink(missing_ok=True)
            continue
        if draw(st.integers(0, 3)) == 0:
            content = path.read_bytes()
            path.write_bytes(content[: draw(st.integers(0, len(content)))])


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "image_column": ANY_NAMES,
        "label_column": ANY_NAMES,
        "split_column": ANY_NAMES,
        "classes": st.integers(1, 3) | st.lists(st.sampled_from(["a", "0", "cat"]), min_size=1),
        "train_from": st.sampled_from([".", "x.parquet", "no"]),
        "skip_bad": st.booleans(),
        "share_names": st.booleans(),
    },
)


def try_wild(data: st.DataObject) -> None:
    with _folder() as root:
        data.draw(wild_files(root))
        if not root.exists():
            return
        options = PrepareOptions(workers=1, **data.draw(OPTIONS))
        try:
            source = parquet_source(str(root), options)
        except UserError:
            return
        with suppress(UserError):
            _, why = rehearse(str(root), options)
            assert "\n" not in why
        for unit in source.units:
            for sample in unit.read():
                assert sample.split in ("train", "val", "")
                assert bool(sample.error) != bool(sample.data)
                assert sample.error or 0 <= sample.label < len(source.classes)


@FUZZ
@given(st.data())
def test_every_sample_is_what_it_truly_is(data):
    try_data_set(data)


@FUZZ
@given(st.data())
def test_any_schema_ends_in_samples_or_one_line(data):
    try_wild(data)


@pytest.mark.slow  # the same, 2,000 of them, others each time
@pytest.mark.fault("fuzzing: Parquet inputs")
@MORE
@given(data=st.data())
def test_many_more_samples_are_what_they_truly_are(told, data):
    try_data_set(data)
    told("fuzzing: Parquet inputs")


@pytest.mark.slow
@pytest.mark.fault("fuzzing: Parquet inputs")
@MORE
@given(data=st.data())
def test_many_more_schemas_end_in_samples_or_one_line(told, data):
    try_wild(data)
    told("fuzzing: Parquet inputs")
