"""What is looked at on a cluster before a search records or runs anything there."""

from __future__ import annotations

from cluster.preflight import check_nodes
from pipelines.config import SearchConfig
from pipelines.console import Screen
from pipelines.data.manifest import MANIFEST_NAME, Manifest


def check_cluster(config: SearchConfig, manifest: Manifest, screen: Screen) -> None:
    """Whether every node of the connected cluster can do its part in a search.

    Raises:
        ClusterError: something is not right with a node: other data, other versions, a storage
            folder that is not shared, GPUs, clocks, room on disks, nodes that do not reach each
            other.
    """
    data = config.data.path.resolve()
    # What is fetched from an address is checked by whoever fetches it.
    files = (
        []
        if config.data.address
        else [data / MANIFEST_NAME, *(data / split.file for split in manifest.splits.values())]
    )
    gpus = max(config.base.workers.gpus_per_worker, config.finals.workers.gpus_per_worker)
    fetched = config.data.address is not None
    found = check_nodes(config.storage.resolve(), files, fetched=fetched, gpus_per_worker=gpus)
    screen.say(f"{found.nodes} nodes checked in {found.seconds:.1f} s", style="dim")
