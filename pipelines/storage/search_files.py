"""The files of a search: what each is called, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.address import is_address, join, without_options
from pipelines.storage.store import ObjectStore
from pipelines.storage.working import open_root, store_of

SEARCHES = "searches"


class _Within:
    """A path of this name in a search's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, search: Search, kind: type[Search]) -> Path:
        return search.folder / self._name


@dataclass(frozen=True)
class Search:
    """A search's folder on this machine, and the object store's folder that it stands for.

    Attributes:
        root: the storage folder, or the folder that stands for an address (`open_root`).
        name: the search's.
    """

    root: Path
    name: str

    @classmethod
    def open(cls, storage: str | Path, name: str) -> Search:
        """The search of that name at a folder or an address.

        Raises:
            UserError: see `open_root`.
        """
        return cls(open_root(storage), name)

    @property
    def folder(self) -> Path:
        """Where all of its files lie, or copies of them."""
        return self.root / SEARCHES / self.name

    ledger = _Within("ledger.jsonl")  # every event, as one line of JSON
    driver_lock = _Within("driver.lock")  # held by the driver at work, with its host and process
    stop_request = _Within("stop.json")  # there while somebody wants the search to end
    config_file = _Within("config.yaml")  # the whole configuration, as it began
    jobs = _Within("jobs")  # a folder for each training: checkpoints, reports, signs of life
    tune = _Within("tune")  # Ray Tune's own files
    outside = _Within("outside")  # fronts that were imported for comparison
    report = _Within("report.html")  # the page that `tokenpool report` writes
    mlflow_cursor = _Within("mlflow_cursor.json")  # how far MLflow has got with the ledger

    @property
    def store(self) -> ObjectStore | None:
        """The store's folder that this one stands for; None: itself."""
        store = store_of(self.root)
        return None if store is None else store.child(f"{SEARCHES}/{self.name}")

    @property
    def shown(self) -> str:
        """Where it lies, as people may read it."""
        store = self.store
        return str(self.folder) if store is None else without_options(store.address)

    def located(self, checkpoint: str) -> str:
        """Where a checkpoint of the ledger lies now; a storage folder may have been moved.

        A path, or an address (see `pipelines.storage.copies`).
        """
        store = self.store
        if store is not None and not (is_address(checkpoint) or checkpoint.startswith("/")):
            return join(store.address, checkpoint)
        return str(self.folder.resolve() / checkpoint)
