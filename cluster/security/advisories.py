"""Published advisories on the packages this program stands on, and the versions that mend them.

A short list of what matters to a search on a cluster (ids as published, versions as given there;
looked up on 2026-11-23), not a vulnerability scanner: run one beside it.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Advisory:
    """What was wrong with a package before a version.

    Attributes:
        fixed: The first version without it.
    """

    package: str
    fixed: str
    identifier: str
    what: str


ADVISORIES = (
    Advisory("ray", "2.8.1", "CVE-2023-48023", "the dashboard reads any address or file"),
    Advisory("ray", "2.52.0", "CVE-2025-62593", "a web page can submit jobs by DNS rebinding"),
    Advisory("ray", "2.54.0", "CVE-2026-27482", "a web page can delete jobs"),
    Advisory("mlflow", "3.5.0", "CVE-2025-14279", "a web page can read and change runs"),
    Advisory("mlflow", "3.10.0", "CVE-2026-2614", "anyone can read the server's files"),
    Advisory("mlflow", "3.10.0", "CVE-2026-2652", "basic auth leaves the job API open"),
    Advisory("mlflow", "3.11.0", "CVE-2026-4137", "temporary model folders others can write to"),
    Advisory("torch", "2.6.0", "CVE-2025-32434", "torch.load(weights_only=True) runs code"),
    Advisory("torch", "2.10.0", "CVE-2026-24747", "torch.load(weights_only=True) spoils memory"),
    Advisory("pyarrow", "14.0.1", "CVE-2023-47248", "reading Parquet or IPC runs code"),
    Advisory("pyarrow", "23.0.1", "CVE-2026-25087", "reading IPC files uses freed memory"),
    Advisory("pillow", "12.2.0", "CVE-2026-42308", "rendering fonts overflows an integer"),
)
# A Ray that lets anybody in is no fault of a version (CVE-2023-48022): tokens came with 2.52.
FIRST_RAY_WITH_TOKENS = "2.52.0"


def installed(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def open_advisories(versions: dict[str, str | None]) -> list[Advisory]:
    """The advisories that these versions are not beyond; an unreadable version counts as old."""
    return [one for one in ADVISORIES if _is_below(versions.get(one.package), one.fixed)]


def _is_below(version: str | None, fixed: str) -> bool:
    if version is None:
        return False
    try:
        return Version(version) < Version(fixed)
    except InvalidVersion:
        return True
