"""A finished small search, as state and on disk."""

from pathlib import Path

import ledgers
import pytest

from pipelines.search.state import SearchState, fold


@pytest.fixture
def state() -> SearchState:
    return fold("digits", ledgers.events())


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    ledgers.write_ledger(tmp_path, "digits", ledgers.events())
    return tmp_path
