"""Placement groups that a driver leaves behind, found and removed.

Ray Train reserves its workers' room as a placement group. A driver that ends in the midst of a
job (Ctrl-C, an error, `ray job stop`, SIGKILL) leaves it to a detached actor to remove the
group, which sometimes does not: then the room is lost to everybody until the cluster ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster import ray_private

_POLL_SECONDS, _GONE_SECONDS = 0.1, 5.0


@dataclass(frozen=True)
class Group:
    """A placement group that holds, or waits for, resources; ids are hexadecimal."""

    group_id: str
    job_id: str


def held_groups() -> list[Group]:
    """Every placement group of the cluster that is not meant to outlive its driver."""
    table, found = ray_private.PlacementGroupTableData, []
    for raw in ray_private.state._connect_and_get_accessor().get_placement_group_table():
        entry = table.FromString(raw)
        if entry.state != table.REMOVED and not entry.is_detached:
            found.append(Group(entry.placement_group_id.hex(), entry.creator_job_id.hex()))
    return found


def own_groups() -> list[Group]:
    """Those of this driver and of all that it started."""
    mine = ray.get_runtime_context().get_job_id()
    return [group for group in held_groups() if group.job_id == mine]


def stale_groups() -> list[Group]:
    """Those whose driver has ended: nobody can use them any more."""
    living = {job["JobID"] for job in ray_private.jobs() if not job["IsDead"]}
    return [group for group in held_groups() if group.job_id not in living]


def remove(groups: list[Group]) -> int:
    """Removes placement groups and waits until they hold nothing; gives how many are gone."""
    for group in groups:
        remove_placement_group(
            PlacementGroup(ray_private.PlacementGroupID(bytes.fromhex(group.group_id)))
        )
    deadline = time.monotonic() + _GONE_SECONDS
    wanted = set(groups)
    while (left := wanted & set(held_groups())) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return len(wanted) - len(left)
