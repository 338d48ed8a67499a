"""`--classes` and `--class`: numbers, names, and names with commas in them."""

import pytest

from pipelines.data.class_choice import chosen_classes, order_notes, read_classes
from pipelines.errors import UserError

FISH = ["tench, Tinca tinca", "goldfish", "crane", "great white shark, white shark", "crane"]


def choose(found: list[str], text: str | None = None, *names: str) -> list[int]:
    return chosen_classes(found, read_classes(text, names), "SOURCE")


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (None, (), [0, 1, 2, 3, 4]),
        ("2", (), [0, 1]),
        ("goldfish", (), [1]),
        ("tench, Tinca tinca", (), [0]),
        ("tench,Tinca tinca", (), [0]),  # typed without the blank
        ("goldfish, tench, Tinca tinca", (), [0, 1]),  # among others
        ("tench, Tinca tinca, great white shark, white shark", (), [0, 3]),  # two of them
        ("crane", (), [2, 4]),  # both classes of that name
        (None, ("tench, Tinca tinca", "crane"), [0, 2, 4]),
        ("goldfish", ("crane",), [1, 2, 4]),
        ("goldfish,", (), [1]),
    ],
)
def test_choices(text, names, expected):
    assert choose(FISH, text, *names) == expected


def test_classes_called_by_numbers_and_odd_names():
    names = ["3", "7", " lead", "x", "²", ""]
    assert choose(names, "3") == [0, 1, 2]  # a number is always a count
    assert choose(names, None, "7") == [1]
    assert choose(names, "7,") == [1]  # as it always was
    assert choose(names, None, " lead") == [2] and choose(names, "lead") == [2]
    assert choose(names, "²") == [4]  # a digit that is no number
    assert choose(names, None, "") == [5]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("", (), "--classes is empty"),
        (" , ", (), "--classes is empty"),
        ("0", (), "SOURCE has 4 classes"),
        ("7", (), "for the class called 7 give --class 7"),
        ("3", ("a",), "leave --class out"),
        ("a, zebra", (), "no class 'zebra'"),
        ("٣", (), "no class '٣'"),  # a digit of another script
        ("a,b", (), r"can be read as .*: name each by --class NAME"),
    ],
)
def test_what_cannot_be_meant(text, names, message):
    found = ["a", "b", "a,b", "7"]
    with pytest.raises(UserError, match=message) as caught:
        choose(found, text, *names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["1", "10", "2"], "the order of their names as text: 1, 10, 2"),
        (["2", "10", "1"], ""),  # an order that a file declares is not that of text
        (["1", "2", "10"], ""),
        (["1", "10", "2", "x"], ""),
        (["dog", "dog "], "'dog' and 'dog ' are two"),
        (["ﬁsh", "fish"], "are two"),  # a ligature
        (["crane", "crane"], ""),  # two of one name are known to be two
    ],
)
def test_what_is_said_of_names(names, told):
    notes = order_notes(names)
    assert len(notes) == bool(told) and told in "".join(notes)
