"""Where a search's data lies now, as it may be read from elsewhere than it was searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.data.fetch import fetch
from pipelines.data.manifest import MANIFEST_NAME, load_manifest
from pipelines.errors import UserError
from pipelines.search.state import SearchState


def find_data(state: SearchState, given: Path | None = None) -> Path:
    """The prepared data of a search, or what the user says is it.

    Its configuration names the folder as seen from where the search was started; the storage
    folder, and the data in or beside it, may have been moved together since. Where it was fetched
    from an address, it is fetched again.

    Raises:
        UserError: It is not where it was, nor where it would be, or does not arrive.
    """
    if given is not None:
        load_manifest(given)
        return given
    for folder in _candidates(state):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    address = state.config.data.address
    if address and state.search is not None:
        copy = state.search.root.resolve() / "data" / state.name
        fetch(copy, address)
        return copy
    raise UserError(
        f"no prepared data at {state.config.data.path}, where search {state.name} read it: "
        "say with --data where it is now"
    )


def _candidates(state: SearchState) -> Iterator[Path]:
    data, storage = state.config.data.path, Path(state.config.storage)
    yield data
    if state.search is None or state.search.store is not None:
        return
    now = state.search.root.resolve()
    if data.is_relative_to(storage):
        yield now / data.relative_to(storage)
    if not storage.is_absolute() and now.parts[-len(storage.parts) :] == storage.parts:
        yield now.parents[len(storage.parts) - 1] / data
