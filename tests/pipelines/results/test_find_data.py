"""A storage folder that was moved, or is looked at from elsewhere."""

from pathlib import Path

import ledgers
import pytest

from pipelines.config import SearchConfig
from pipelines.errors import UserError
from pipelines.results.find_data import find_data
from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "runs" / "data" / "digits"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def state(directory: Path, data: str, storage: str = "runs") -> SearchState:
    values = ledgers.config() | {"data": {"path": data, "image_size": 32}, "storage": storage}
    place = Search(directory.parents[1], "digits")
    return SearchState("digits", place, recorded=SearchConfig.model_validate(values))


def test_looked_at_from_elsewhere(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "home" / "runs" / "searches" / "digits"
    monkeypatch.chdir(tmp_path)
    assert find_data(state(directory, "runs/data/digits")) == prepared
    beside = tmp_path / "home" / "betons"
    beside.mkdir()
    (beside / "manifest.json").write_text("{}")
    assert find_data(state(directory, "betons")) == beside


def test_moved_with_its_storage(tmp_path: Path, prepared: Path) -> None:
    was = tmp_path / "home" / "runs"
    found = state(tmp_path / "kept" / "searches" / "digits", f"{was}/data/digits", str(was))
    was.rename(tmp_path / "kept")
    assert find_data(found) == tmp_path / "kept" / "data" / "digits"


def test_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared data at gone, where search digits read it"):
        find_data(state(tmp_path / "runs" / "searches" / "digits", "gone"))
    with pytest.raises(UserError, match="no prepared data at"):
        find_data(state(tmp_path, "gone"), tmp_path / "also")
