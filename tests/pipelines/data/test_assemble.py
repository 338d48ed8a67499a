"""Large files hashed and written in pieces, whatever the number of threads."""

import errno
import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import assemble


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_pieces_end_up_in_their_places(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(assemble, "_PIECE_BYTES", 1000)
    rng = np.random.default_rng(workers)
    parts = [rng.bytes(int(size)) for size in rng.integers(0, 2500, 200)]
    path = tmp_path / "file"
    with closing(assemble._HashingFile(path, workers)) as file:
        for part in parts:
            file.write(part)
        digest = file.finish()
    whole = b"".join(parts)
    assert path.read_bytes() == whole and digest == hashlib.sha256(whole).hexdigest()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_is_heard_of_from_any_thread(monkeypatch, workers):
    monkeypatch.setattr(assemble, "_PIECE_BYTES", 1000)

    def fill() -> None:
        with closing(assemble._HashingFile(Path("/dev/full"), workers)) as file:
            for _ in range(50):
                file.write(bytes(700))
            file.finish()

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
