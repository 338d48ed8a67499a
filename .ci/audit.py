"""What published advisories say of the packages that are installed here, as pip-audit finds it.

An advisory that a newer version mends fails: raise the version in constraints.txt. One that no
version mends yet is printed and passes, as nobody could make it green. Where the mended version
cannot be taken, `make audit` hands `--ignore-vuln ID` on, with the reason beside it. Where the
service that knows the advisories cannot be reached, one line says so, and that passes as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.version import Version

# pip-audit ends with 1 whether it found something or heard nothing; its own last words tell.
_UNHEARD = (
    "requests.exceptions.",
    "urllib3.exceptions.",
    "pip_audit._service.interface.",
    "your network may be blocking this service",
)
_LONGEST = 160


def main(options: list[str]) -> int:
    """Prints a line for each advisory.

    Args:
        options: For pip-audit.

    Returns:
        The exit code: 1 if a newer version mends something, 2 if pip-audit itself failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off"]
        command += ["--skip-editable", "--format", "json", "--output", str(report), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.exists():
            return _without_report(done)
        packages = json.loads(report.read_text())["dependencies"]
    findings = [(package, one) for package in packages for one in package.get("vulns", ())]
    mended = [_say(package, one) for package, one in findings]
    known = sum("skip_reason" not in package for package in packages)
    sys.stdout.write(
        f"audit: advisories: {len(findings)}, mended by a newer version: {sum(mended)}; "
        f"packages that the service knows: {known} of {len(packages)}\n"
    )
    return int(any(mended))


def _say(package: dict[str, Any], advisory: dict[str, Any]) -> bool:
    """Prints an advisory, and tells whether a version newer than this one is without it."""
    version = package["version"]
    newer = [fixed for fixed in advisory["fix_versions"] if Version(fixed) > Version(version)]
    remedy = f"install {newer[0]} or later" if newer else "no version mends it yet"
    names = ", ".join([advisory["id"], *advisory["aliases"]])
    what = " ".join(advisory["description"].split())[:_LONGEST]
    sys.stdout.write(f"audit: {package['name']} {version}: {names}: {what}: {remedy}\n")
    return bool(newer)


def _without_report(done: subprocess.CompletedProcess[str]) -> int:
    if any(word in done.stderr for word in _UNHEARD):
        reason = done.stderr.strip().splitlines()[-1][:_LONGEST]
        sys.stdout.write(f"audit: not done, the advisory service cannot be reached: {reason}\n")
        return 0
    sys.stderr.write(done.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
