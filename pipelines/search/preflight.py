"""What is looked at on a cluster before a search records or runs anything there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.preflight import check_nodes
from pipelines.config import SearchConfig
from pipelines.console import Screen
from pipelines.data.manifest import MANIFEST_NAME, Manifest
from pipelines.search.check_inputs import needed
from pipelines.storage.address import without_options
from pipelines.storage.store import ObjectStore, StoreError
from pipelines.storage.working import cache_root


@dataclass(frozen=True)
class StoreOfAll:
    """An object store that every node must reach with credentials of its own; a `Storage`."""

    store: ObjectStore

    @property
    def place(self) -> str:
        """See `Storage`."""
        return without_options(self.store.address)

    @property
    def folder(self) -> Path:
        """See `Storage`."""
        return cache_root()

    @property
    def remedy(self) -> str:
        """See `Storage`."""
        return (
            "give every node credentials for it (its own role, or AWS_PROFILE and the like where "
            "Ray is started), and a way there"
        )

    def read(self, name: str) -> str:
        """See `Storage`."""
        with _as_os_error():
            content = self.store.read(name)
        if content is None:
            raise FileNotFoundError(name)
        return content.decode()

    def write(self, name: str, text: str) -> None:
        """See `Storage`."""
        with _as_os_error():
            self.store.write(name, text.encode())

    def delete(self, beginning: str) -> None:
        """See `Storage`."""
        for entry in self.store.entries():
            if entry.name.startswith(beginning):
                self.store.delete(entry.name)


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise OSError(str(error)) from None


def check_cluster(
    config: SearchConfig, manifest: Manifest, done: Mapping[str, str], screen: Screen
) -> None:
    """Whether every node of the connected cluster can do its part in a search.

    Args:
        config: of the search.
        manifest: of its data.
        done: stage → how it stands.
        screen: told what was looked at.

    Raises:
        ClusterError: something is not right with a node: other data, other versions, a storage
            folder that is not shared, an object store that it cannot use, GPUs, clocks, room on
            disks, nodes that do not reach each other.
    """
    data = config.data.path.resolve()
    # What is fetched from an address is checked by whoever fetches it.
    files = (
        []
        if config.data.address
        else [data / MANIFEST_NAME, *(data / split.file for split in manifest.splits.values())]
    )
    # Weights that lie in folders are read by whichever node trains with them.
    files = [*files, *(path for named in needed(config, done) for path in named.files)]
    gpus = max(config.base.workers.gpus_per_worker, config.finals.workers.gpus_per_worker)
    storage = (
        config.storage.resolve()
        if isinstance(config.storage, Path)
        else StoreOfAll(ObjectStore(config.storage))
    )
    found = check_nodes(storage, files, gpus_per_worker=gpus)
    screen.say(f"{found.nodes} nodes checked in {found.seconds:.1f} s", style="dim")
