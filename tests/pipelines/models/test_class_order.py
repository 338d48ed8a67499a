"""Classes are matched by name, never by number where names are known."""

import json

import pytest
import torch

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.class_order import (
    known_names,
    match_classes,
    order_of,
    read_class_map,
    reorder_head,
)

TEXT = [str(i) for i in sorted(range(1, 13), key=str)]  # 1, 10, 11, 12, 2, …: as folders sort
NATURAL = [str(i) for i in range(1, 13)]  # as timm sorts them


def vit(names=None, classes=12, **kwargs):
    torch.manual_seed(0)
    model = tp.build_vit(16, 4, 16, 1, 2, classes, **kwargs).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    if names is not None:
        model.pretrained_cfg = {"label_names": names, "num_classes": len(names)}
    return model


def test_a_head_in_another_order_says_the_same_of_the_same_class():
    model, images = vit(NATURAL), torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        before = model(images)
        order, note = match_classes(model, TEXT)
        reorder_head(model, order, TEXT)
        after = model(images)
    for name in NATURAL:
        assert torch.equal(after[:, TEXT.index(name)], before[:, NATURAL.index(name)])
    assert "11 of 12 stand in another order" in note
    assert known_names(model, TEXT) == [TEXT]
    assert match_classes(model, TEXT)[0] == list(range(12))  # not a second time


def test_names_travel_with_a_saved_model(tmp_path):
    assert known_names(tp.load(tp.save(vit(NATURAL), tmp_path / "m")), TEXT) == [NATURAL]
    assert json.loads((tmp_path / "m" / "model.json").read_text())["classes"] == NATURAL
    # A head that was replaced since: the old names are not its.
    model = vit(NATURAL)
    model.reset_classifier(5)
    assert known_names(tp.load(tp.save(model, tmp_path / "n")), TEXT) == []


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (["Sea Lion", "tabby_cat"], ["tabby cat", "sea_lion"]),  # spelling
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["goldfish", "tench"]),  # synonyms
        (["b", "a"], ["a", "b"]),
    ],
)
def test_names_in_another_spelling(model, data):
    assert order_of(model, data) == [1, 0]


def test_what_names_do_not_tell_is_refused_or_said():
    with pytest.raises(UserError, match=r"class 'dog' is none of the model's \('1' to '12'\)"):
        match_classes(vit(NATURAL), ["dog", *NATURAL[1:]])
    # ImageNet has two cranes: their names do not tell which is which.
    with pytest.raises(UserError, match="two of the model's classes are called 'crane'"):
        match_classes(vit(["crane", "a", "crane"], 3), ["a", "crane", "crane"])
    same = ["crane", "a", "crane"]
    assert match_classes(vit(same, 3), same)[0] == [0, 1, 2]
    order, note = match_classes(vit(), TEXT)
    assert order is None and "does not say what its classes are called" in note
    model = vit(NATURAL)
    model.head = torch.nn.Sequential(model.head)
    with pytest.raises(UserError, match="a head that is a Sequential cannot be put into it"):
        reorder_head(model, order_of(NATURAL, TEXT), TEXT)


def test_imagenets_synsets_are_known_of_timms_models():
    import timm
    from timm.data import ImageNetInfo

    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    synsets = list(ImageNetInfo("imagenet-1k").label_names())
    shuffled = synsets[::-1]
    assert match_classes(model, shuffled)[0] == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "ant\nbee\ncat 5x"),
        ("pairs.txt", "bee 1\nant 0\ncat 5x 2\n"),
        ("pairs.csv", "ant,0\ncat 5x,2\nbee,1\n"),
        ("numbered.txt", "0: ant\n2: cat 5x\n1: bee\n"),
        ("tabs.tsv", "1\tbee\n0\tant\n2\tcat 5x\n"),
        ("map.json", json.dumps({"ant": 0, "bee": 1, "cat 5x": 2})),
        ("back.json", json.dumps({"2": "cat 5x", "0": "ant", "1": "bee"})),
        ("list.json", json.dumps(["ant", "bee", "cat 5x"])),
        ("bom.txt", "\ufeffant\r\nbee\r\ncat 5x\r\n"),
    ],
)
def test_class_maps(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_map(tmp_path / name) == ["ant", "bee", "cat 5x"]


def test_class_maps_of_synsets_and_of_names_with_commas(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_class_map(path) == ["n01440764", "n01443537"]
    path.write_text("tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    assert read_class_map(path) == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    path.write_text('"tench, Tinca tinca",1\n"goldfish",0\n')
    assert read_class_map(path) == ["goldfish", "tench, Tinca tinca"]
    path.write_text("\n".join(NATURAL))  # names that are numbers are names
    assert read_class_map(path) == NATURAL


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gap.txt", b"a 0\nb 2\n", "are not 0 to 1, each once"),
        ("twice.txt", b"a 0\nb 0\n", "are not 0 to 1, each once"),
        ("empty.txt", b"\n", "is empty"),
        ("bad.json", b"{", "no JSON"),
        ("latin.txt", b"caf\xe9\n", "no text of UTF-8"),
        ("text.json", b'{"a": "b"}', "gives no numbers"),
    ],
)
def test_class_maps_that_are_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_class_map(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        read_class_map(tmp_path / "nowhere.txt")


def test_a_class_map_stands_in_for_what_the_model_does_not_know(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("\n".join(NATURAL))
    order, _ = match_classes(vit(), TEXT, path)
    assert [NATURAL[i] for i in order] == TEXT
    path.write_text("a\nb\n")
    with pytest.raises(UserError, match="names 2 classes, the data has 12"):
        match_classes(vit(), TEXT, path)
