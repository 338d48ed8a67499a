"""Images whose labels are in a table beside them."""

import pytest

from pipelines.errors import UserError

from .folders import left_out, make, opened


def table(root, text, name="labels.csv"):
    (root / name).write_bytes(text.encode("utf-8-sig") if isinstance(text, str) else text)
    return name


@pytest.fixture
def pictures(tmp_path):
    """images/0.png … images/5.png."""
    return make(tmp_path, "images", count=6)


@pytest.mark.parametrize(
    "text",
    [
        "image,label\n0.png,cat\n1.png,dog\n2.png,cat\n",
        # Neighbours: no ending (dog breeds), semicolons and another pair of names, tabs and a
        # Windows path, a path below the source, any names where there are only two, blanks.
        "id,breed\n0,cat\n1,dog\n2,cat\n",
        "filename;class\n0.png;cat\n1.png;dog\n2.png;cat\n",
        "path\tCategory\n.\\images\\0.png\tcat\nimages\\1.png\tdog\nimages\\2.png\tcat\n",
        "Image,Label\n./images/0.png,cat\nimages/1.png,dog\nimages/2.png,cat\n",
        "was,ist\n0.png,cat\n1.png,dog\n2.png,cat\n\n",
        'width,file_name,label\n9,"0.png", cat\n9,1.png,dog \n9,2.png,cat\n',
        # Excel's "Unicode text"; whole paths of other machines.
        "file\tKlasse\n0.png\tcat\n1.png\tdog\n2.png\tcat\n".encode("utf-16"),
        "path,label\n/home/me/data/images/0.png,cat\nC:\\d\\images\\1.png,dog\n/images/2.png,cat\n",
    ],
)
def test_tables(pictures, text):
    source, samples = opened(pictures, labels=table(pictures, text))
    assert samples == {
        "images/0.png": ("cat", ""), "images/1.png": ("dog", ""), "images/2.png": ("cat", ""),
    }  # fmt: skip
    assert left_out(source)["images that labels.csv does not name"] == 3
    assert not source.problems


def test_json_lines(pictures):
    rows = [
        '{"file_name": "0.png", "label": "cat", "objects": {"bbox": [1, 2]}}',
        "",
        '{"label": "dog", "file_name": "1.png"}',  # another order of the keys
        '{"file_name": "2.png"}',
        '{"file_name": "3.png", "label": null}',
    ]
    name = table(pictures, "\n".join(rows), "metadata.jsonl")
    source, samples = opened(pictures, labels=name)
    assert samples == {"images/0.png": ("cat", ""), "images/1.png": ("dog", "")}
    assert left_out(source)["without a label in the table"] == 2
    for broken in ("[1, 2]\n", '{"file_name": \n'):
        with pytest.raises(UserError, match="cannot be read as a table"):
            opened(pictures, labels=table(pictures, broken, "metadata.jsonl"))


def test_whole_paths_mean_no_other_image(tmp_path):
    root = make(tmp_path, "a", "b")
    text = f"path,label\n{root}/a/0.png,x\n/mnt/b/0.png,y\n/mnt/c/1.png,y\n"
    source, samples = opened(root, labels=table(root, text))
    assert samples == {"a/0.png": ("x", ""), "b/0.png": ("y", "")}
    told = [("/mnt/c/1.png", "named in labels.csv, but there is no such image")]
    assert source.problems == told


def test_splits_by_column_by_folder_and_by_option(tmp_path):
    root = make(tmp_path, "train", "holdout", "test", count=2)
    rows = "".join(f"{place}/{i}.png,{'xy'[i]}\n" for place in ("train", "test") for i in (0, 1))
    name = table(root, "image,label\n" + rows)
    expected = {"train/0.png": ("x", "train"), "train/1.png": ("y", "train")}
    source, samples = opened(root, labels=name)
    assert samples == expected and left_out(source)["images of the test split"] == 2
    _, samples = opened(root, labels=name, train_from="train", val_from="test")
    assert samples == expected | {"test/0.png": ("x", "val"), "test/1.png": ("y", "val")}
    named = table(root, "image,label,split\ntrain/0.png,x,train\ntrain/1.png,y,Valid\n", "b.csv")
    _, samples = opened(root, labels=named)
    assert samples == {"train/0.png": ("x", "train"), "train/1.png": ("y", "val")}
    short = table(root, "image,label\n0.png,x\n1.png,y\n", "short.csv")
    with pytest.raises(UserError, match=r"may be .* say by --train DIR"):
        opened(root, labels=short)
    source, samples = opened(root, labels=short, train_from="holdout")
    assert samples == {"holdout/0.png": ("x", "train"), "holdout/1.png": ("y", "train")}
    assert left_out(source)["images outside --train and --val"] == 4


def test_whole_numbers_are_in_their_own_order_and_columns_can_be_named(pictures):
    name = table(pictures, "nr,image,species,label\n1,0.png,10,a\n2,1.png,9,b\n3,2.png,-1,a\n")
    source, _ = opened(pictures, labels=name, label_column="species")
    assert source.classes == ["-1", "9", "10"]
    source, _ = opened(pictures, labels=name)
    assert source.classes == ["a", "b"]


def test_rows_without_image_without_label_or_with_two(pictures):
    text = "image,label\n0.png,a\n1.png,b\n2.png,\n9.png,a\n0.png,a\n1.png,a\n"
    source, samples = opened(pictures, labels=table(pictures, text))
    assert samples == {"images/0.png": ("a", ""), "images/1.png": ("b", "")}
    assert source.problems == [
        ("9.png", "named in labels.csv, but there is no such image"),
        ("images/1.png", "has two labels in labels.csv: b and a"),
    ]
    assert left_out(source)["without a label in the table"] == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b,c\n0.png,x,y\n", {}, "has the columns a, b, c: give --image-column NAME"),
        ("image,MEL,NV\n0.png,1,0\n", {}, "give --label-column NAME"),
        ("image,label\n0.png,x\n", {"label_column": "klass"}, "no column 'klass', only image, lab"),
        ("image,label\n0.png,x\n", {}, "has one class only, 'x'"),
        ("image,label\nnope.png,x\n", {}, "names no image"),
        ("image,label\n0.png\n", {}, "line 2: too few columns"),
        ("0.png,x\n1.png,y\n", {}, "put a line of column names first"),
        ("image,label,split\n0.png,x,maybe\n", {}, "'maybe' is no split"),
        ("", {}, "give --image-column NAME"),
        (b"\xff\xfe\0\0\x9c", {}, "give --image-column NAME"),
    ],
)
def test_other_tables_are_refused_with_what_settles_it(pictures, text, options, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(pictures, labels=table(pictures, text), **options)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_asked_for_is_named_and_one_elsewhere_is_not_taken(pictures):
    table(pictures, "image,label\n0.png,x\n")
    with pytest.raises(UserError, match=r"one class only, 'images'.*--labels labels.csv"):
        opened(pictures)
    with pytest.raises(UserError, match=r"--labels other\.csv: no such file"):
        opened(pictures, labels="other.csv")
