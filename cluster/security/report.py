"""`tokenpool doctor --security`: what stands open, what is out of date, and what would leak."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.security import advisories
from cluster.security.checks import Check
from cluster.security.door_checks import check_cluster, check_listeners, check_mlflow
from cluster.security.doors import FLAG, listeners
from cluster.security.secret_checks import (
    check_environment,
    check_storage,
    check_tokens,
    check_written,
)


def security_checks(
    storage: Path, *, address: str | None = None, open_is_meant: bool = False
) -> list[Check]:
    """All findings about safety on this machine, and of a cluster where an address is given.

    Args:
        storage: The folder that keeps the searches.
        address: Of a cluster, as for `--address`.
        open_is_meant: What stands open is a warning and not a failure.
    """
    environment, here = dict(os.environ), listeners()
    found = [
        *check_listeners(here),
        *(check_cluster(address) if address else []),
        *check_tokens(environment),
        *check_mlflow(environment, here),
        *check_versions(
            {one.package: advisories.installed(one.package) for one in advisories.ADVISORIES}
        ),
        *check_environment(environment),
        check_written(storage, environment),
        check_storage(storage),
    ]
    if not open_is_meant:
        return found
    return [
        Check(one.name, "warn", one.found, f"{one.remedy} (allowed by {FLAG})")
        if one.status == "fail" and one.is_door
        else one
        for one in found
    ]


def check_versions(versions: dict[str, str | None]) -> Iterator[Check]:
    """Packages below a version that mends a published fault."""
    found = advisories.open_advisories(versions)
    for one in found:
        yield Check(
            f"{one.package} {versions[one.package]}",
            "fail",
            f"{one.identifier}: {one.what}",
            f"install {one.package} {one.fixed} or later",
        )
    if not found:
        count = len({one.package for one in advisories.ADVISORIES})
        yield Check(
            "versions", "ok", f"{count} packages are beyond all {len(advisories.ADVISORIES)} "
            "advisories that this program knows of",
        )  # fmt: skip
