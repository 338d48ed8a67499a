"""The process group of a job's workers under Ray Train: gloo on CPUs, NCCL on GPUs.

Ray's own `TorchTrainer` would do, but its modules import torch in the trial's process and in the
controller's, which never compute: seconds before each job's first step. It also leaves the network
interface to gloo and NCCL, which pick the wrong one on machines with several; and torch's store,
where the workers meet, would listen on all of them, asking nobody for a token. Here it listens on
loopback where the workers are all on one node, else on the node's Ray address alone.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train import get_context
from ray.train.backend import Backend, BackendConfig

from cluster.interfaces import use_interface_of
from pipelines.train.imports import without_collector

_TIMEOUT = timedelta(minutes=30)


_LOOPBACK = "127.0.0.1"
_listening: socket.socket | None = None  # in the first worker, from one call to the next


def _meeting_point() -> tuple[str, int]:
    """Runs in the first worker: where it waits for all of them."""
    global _listening
    context = get_context()
    on_one_node = context.get_local_world_size() == context.get_world_size()
    host = _LOOPBACK if on_one_node else ray.util.get_node_ip_address()
    _listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    _listening.bind((host, 0))
    _listening.listen(max(128, context.get_world_size()))
    return host, int(_listening.getsockname()[1])


def _join(address: str, port: int, backend: str) -> None:
    """Runs in each worker: the variables that torchrun would set, and the process group."""
    with without_collector():
        import torch.distributed as dist

    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    use_interface_of(ray.util.get_node_ip_address(), on_one_node=address == _LOOPBACK)
    store = dist.TCPStore(
        address,
        port,
        world_size,
        is_master=_listening is not None,
        timeout=_TIMEOUT,
        # The store owns it from here on.
        master_listen_fd=None if _listening is None else _listening.detach(),
    )
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass
class ProcessGroupConfig(BackendConfig):
    """How the workers of a job come together; for Ray Train's `DataParallelTrainer`.

    Attributes:
        backend: "gloo" or "nccl".
    """

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return _ProcessGroup

    def to_dict(self) -> dict[str, Any]:
        """For Ray's own records."""
        return {"backend": self.backend}


class _ProcessGroup(Backend):
    share_cuda_visible_devices = True  # NCCL needs to see the neighbours' devices

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, _meeting_point)
        worker_group.execute(_join, address, port, backend_config.backend)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            # A worker that hangs in a collective must not keep the others' resources.
            ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=30)
