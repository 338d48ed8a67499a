"""A ledger whose last write was torn at any byte, or in which any bit has flipped."""

import random

import pytest

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger, read_events
from pipelines.storage.search_files import Search


@pytest.fixture
def written(tmp_path):
    """The ledger's bytes and its events."""
    with Ledger(Search(tmp_path, "whole")) as ledger:
        ledger.append("began", budget={"trials": 3, "deadline": "8 h – at most"})
        ledger.append_all(
            [
                ("trial_report", {"trial_id": "t000", "report": {"top1_minival": 0.91}}),
                ("trial_stopped", {"trial_id": "t000", "reason": 'below "the front"'}),
            ]
        )
    return ledger.path.read_bytes(), list(read_events(ledger.path))


@pytest.mark.fault("power cut: ledger torn at every byte of its tail")
def test_torn_at_any_byte_it_is_what_was_complete_and_goes_on(written, tmp_path, told):
    content, events = written
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    search = Search(tmp_path, "torn")
    search.folder.mkdir(parents=True)
    for cut in range(len(content)):
        path = search.ledger
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        assert list(read_events(path)) == events[:whole], cut
        with Ledger(search) as ledger:
            ledger.append("later")
        found = list(read_events(path))
        assert found[:-1] == events[:whole] and found[-1]["event"] == "later", cut
    told("power cut: ledger torn at every byte of its tail", len(content) - 1)


@pytest.mark.fault("ledger with a flipped bit")
def test_a_flipped_bit_is_never_taken_for_what_was_written(written, tmp_path, told):
    content, events = written
    path = tmp_path / "ledger.jsonl"
    rng, said = random.Random(0), set()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = list(read_events(path))
        except UserError as error:
            said.add(str(error).partition(" line ")[0])
            continue
        # The end of the file may be taken for a torn line; a line is never another one. Where the
        # checksum's own name was hit, the line is as it was, with a key more.
        kept = [{k: v for k, v in e.items() if k in events[i]} for i, e in enumerate(found)]
        assert kept == events[: len(kept)] and len(kept) >= len(events) - 1, place
    assert said == {str(path)}  # what is damaged is named
    told("ledger with a flipped bit", len(content) - 1)


def test_a_ledger_of_an_older_version_has_no_checksums(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"event":"began","time":1.0,"budget":{}}\n')
    assert list(read_events(path)) == [{"event": "began", "time": 1.0, "budget": {}}]
