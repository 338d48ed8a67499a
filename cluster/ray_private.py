"""The names of Ray that Ray does not promise, and what they are used for: all of them are here.

Each is imported when it is first asked for; `tests/cluster/test_ray_private.py` asks for all. Where
a new Ray has another place for one, the table changes, and the bound in `pyproject.toml` with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_TRAIN = "ray.train.v2._internal"
_CHECKPOINTS = f"{_TRAIN}.execution.checkpoint.checkpoint_manager"

PLACES = {
    # Connecting: who answers at an address, and with which token.
    "AuthenticationTokenLoader": "ray._raylet",
    "Config": "ray._raylet",
    "gcs_service_pb2": "ray.core.generated",
    "gcs_service_pb2_grpc": "ray.core.generated",
    "get_ray_address_from_environment": "ray._private.services",
    "init_grpc_channel": "ray._private.grpc_utils",
    "ray_address_to_api_server_url": "ray.dashboard.utils",
    # Nodes: what an autoscaler says, memory of a container, what is free, drained, left behind.
    "PlacementGroupID": "ray._raylet",
    "PlacementGroupTableData": "ray.core.generated.gcs_pb2",
    "_internal_kv_get": "ray.experimental.internal_kv",
    "available_resources_per_node": "ray._private.state",
    "get_cluster_status": "ray.autoscaler.v2.sdk",
    "get_system_memory": "ray._common.utils",
    "jobs": "ray._private.state",
    "state": "ray._private.state",
    # Tune: the variables it hands on, and the queue by which a trial's workers report.
    "class_cache": "ray.tune.execution",
    "get_session": "ray.train._internal.session",
    # Train: a trainer without Ray Data, a look at its workers, its failures, its own record.
    "CheckpointManager": _CHECKPOINTS,
    "CheckpointManagerInitializationError": f"{_TRAIN}.exceptions",
    "DataParallelTrainer": "ray.train.v2.api.data_parallel_trainer",
    "DatasetsCallback": f"{_TRAIN}.callbacks",
    "RayTrainError": f"{_TRAIN}.exceptions",
    "StorageContext": f"{_TRAIN}.execution.storage",
    "WorkerGroupCallback": f"{_TRAIN}.execution.callback",
    "WorkerGroupStartupTimeoutError": f"{_TRAIN}.exceptions",
    "_CheckpointManagerState": _CHECKPOINTS,
    "_TrainingResultState": _CHECKPOINTS,
    "get_train_context": f"{_TRAIN}.execution.context",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"{__name__} has no {name}")
    place = import_module(PLACES[name])
    # A module, where it is no name within one.
    return getattr(place, name) if hasattr(place, name) else import_module(f"{PLACES[name]}.{name}")
