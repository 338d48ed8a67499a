"""What a ledger's objects add up to, and the file they make."""

import itertools

import pytest

from pipelines.errors import UserError
from pipelines.storage.segments import Segment, chain, pull, segments_in


def test_names_say_what_they_stand_for(store):
    segment = Segment(17, 17, 2)
    assert segment.name == "ledger/000000017-000000017-000002.jsonl"
    for name in (segment.name, "ledger/other.jsonl", f"{segment.name}.part"):
        store.write(name, b"")
    assert segments_in(store) == [segment]


def test_in_order_whatever_they_were_listed_in():
    parts = [Segment(1, 1, 1), Segment(2, 2, 1), Segment(3, 3, 2)]
    for order in itertools.permutations(parts):
        assert chain(order) == parts
    assert chain([]) == []


def test_what_a_replaced_driver_wrote_does_not_count():
    ours = [Segment(1, 1, 1), Segment(2, 2, 2), Segment(3, 3, 2)]
    # It had 2 on its way when the second began there, and went on to 6.
    late = [Segment(n, n, 1) for n in (2, 3, 4, 6)]
    assert chain(ours + late) == ours
    # Put together by the late one, of what it knew: that is the same and may count.
    assert chain([*ours, Segment(1, 1, 1)]) == ours


def test_what_was_put_together_stands_for_its_parts():
    whole, parts = Segment(1, 3, 3), [Segment(1, 1, 1), Segment(2, 2, 1), Segment(3, 3, 2)]
    after = [Segment(4, 4, 3)]
    assert chain([*parts, whole, *after]) == [whole, *after]
    assert chain([parts[1], whole, *after]) == [whole, *after]  # killed while it deleted them


def test_a_gap_is_damage():
    with pytest.raises(ValueError, match="batch 2 is missing"):
        chain([Segment(1, 1, 1), Segment(3, 3, 1)])


def test_the_file_is_what_the_objects_are(store, tmp_path):
    path = tmp_path / "ledger.jsonl"
    segments = [Segment(n, n, 1) for n in range(1, 6)]
    for segment in segments[:3]:
        store.write(segment.name, b'{"n":%d}\n' % segment.first)
    assert pull(store, path) == segments[:3]
    assert path.read_bytes() == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    for segment in segments[3:]:
        store.write(segment.name, b'{"n":%d}\n' % segment.first)
    with path.open("ab") as file:
        file.write(b'{"torn')  # what a driver left that was killed while it wrote
    pull(store, path)
    content = b"".join(b'{"n":%d}\n' % n for n in range(1, 6))
    assert path.read_bytes() == content
    elsewhere = tmp_path / "elsewhere.jsonl"
    pull(store, elsewhere)
    assert elsewhere.read_bytes() == content


def test_what_an_older_version_put_together_is_read(store, tmp_path):
    """It deleted the parts, or was killed amid that."""
    path, lines = tmp_path / "ledger.jsonl", [b'{"n":%d}\n' % n for n in range(1, 6)]
    for n in (1, 2, 3):
        store.write(Segment(n, n, 1).name, lines[n - 1])
    pull(store, path)
    whole = Segment(1, 3, 2)
    store.write(whole.name, b"".join(lines[:3]))
    store.delete(Segment(1, 1, 1).name)
    for n in (4, 5):
        store.write(Segment(n, n, 3).name, lines[n - 1])
    assert pull(store, path) == [whole, Segment(4, 4, 3), Segment(5, 5, 3)]
    assert path.read_bytes() == b"".join(lines)


def test_only_what_is_new_is_fetched(store, tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    for n in range(1, 4):
        store.write(Segment(n, n, 1).name, b"{}\n")
    pull(store, path)
    store.write(Segment(4, 4, 1).name, b"{}\n")
    fetched = []
    monkeypatch.setattr(
        type(store), "read_all", lambda self, names: fetched.extend(names) or [b"{}\n"] * len(names)
    )
    pull(store, path)
    assert fetched == [Segment(4, 4, 1).name] and path.read_bytes() == b"{}\n" * 4


def test_a_missing_object_is_said(store, tmp_path):
    for n in (1, 3):
        store.write(Segment(n, n, 1).name, b"{}\n")
    with pytest.raises(UserError, match=r"is damaged .batch 2 is missing") as found:
        pull(store, tmp_path / "ledger.jsonl")
    assert found.value.exit_code == 1
