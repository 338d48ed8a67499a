"""`make audit`: what is said, and what fails, for each answer of pip-audit."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import QuietHandler, address_of, serving

AUDIT = Path(__file__).parents[2] / ".ci/audit.py"
# In place of pip-audit: writes a report, or says what it would say and ends as it would end.
STAND_IN = """
import os, sys
assert sys.argv[sys.argv.index("--format") + 1] == "json" and "--skip-editable" in sys.argv
if os.environ["REPORT"]:
    open(sys.argv[sys.argv.index("--output") + 1], "w").write(os.environ["REPORT"])
sys.stderr.write(os.environ["SAYS"])
sys.exit(1)
"""


def audit(folder, dependencies=None, says=""):
    (folder / "pip_audit.py").write_text(STAND_IN)
    report = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    done = subprocess.run(
        [sys.executable, str(AUDIT)],
        env=os.environ | {"PYTHONPATH": str(folder), "REPORT": report, "SAYS": says},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def package(*fixes, version="2.0"):
    advisories = [
        {
            "id": f"PYSEC-{number}",
            "fix_versions": list(versions),
            "aliases": [f"CVE-{number}"],
            "description": "Runs\n code",
        }
        for number, versions in enumerate(fixes)
    ]
    return {"name": "ray", "version": version, "vulns": advisories}


def test_nothing_is_known_against_what_is_installed(tmp_path):
    skipped = {"name": "ours", "skip_reason": "not found"}
    code, said, _ = audit(tmp_path, [package(), skipped])
    assert code == 0 and said.count("\n") == 1
    assert "advisories: 0" in said and "knows: 1 of 2" in said


def test_what_a_newer_version_mends_fails_and_names_it(tmp_path):
    code, said, _ = audit(tmp_path, [package(["1.9", "2.0.1", "3.0"], [])])
    assert code == 1
    assert "ray 2.0: PYSEC-0, CVE-0: Runs code: install 2.0.1 or later\n" in said
    assert "PYSEC-1, CVE-1: Runs code: no version mends it yet\n" in said
    assert "advisories: 2, mended by a newer version: 1" in said


def test_what_no_version_mends_is_printed_and_passes(tmp_path):
    for fixes in ([], ["1.9"]):  # an older branch is no remedy
        code, said, _ = audit(tmp_path, [package(fixes)])
        assert code == 0 and "no version mends it yet" in said, fixes


UNREACHABLE = [
    "Traceback …\nrequests.exceptions.ProxyError: HTTPSConnectionPool(host='h', port=443)\n",
    "Traceback …\npip_audit._service.interface.ServiceError\n",
    "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n"
    "ERROR:pip_audit._cli:Tip: your network may be blocking this service. Try another …\n",
]


@pytest.mark.parametrize("says", UNREACHABLE)
def test_a_service_that_cannot_be_reached_is_one_line_and_passes(tmp_path, says):
    code, said, errors = audit(tmp_path, says=says)
    assert code == 0 and "cannot be reached" in said and said.count("\n") == 1 and not errors


def test_another_fault_of_pip_audit_is_not_taken_for_that(tmp_path):
    code, said, errors = audit(tmp_path, says="ERROR:pip_audit._cli:invalid input\n")
    assert code == 2 and not said and "invalid input" in errors


class Advisories(QuietHandler):
    """OSV's service: one package has an advisory, with a remedy, and others none."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        events = [{"introduced": "0"}, {"fixed": "99.0"}]
        found = {
            "id": "PYSEC-2026-1",
            "summary": "Planted",
            "affected": [
                {
                    "package": {"name": name, "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": events}],
                }
            ],
        }
        body = json.dumps({"vulns": [found]} if name == "planted" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.skipif(
    find_spec("pip_audit") is None and not os.environ.get("CI"),
    reason="needs pip-audit: make install",
)
def test_pip_audit_itself_with_a_service_and_without(tmp_path):
    """Its options, its report and its words are what is taken for granted above."""
    for name in ("planted", "harmless"):
        folder = tmp_path / f"site/{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")

    def run(there, **environment):
        done = subprocess.run(
            [
                *(sys.executable, str(AUDIT), "--path", str(tmp_path / "site")),
                *("-s", "osv", "--osv-url", there, "--cache-dir", str(tmp_path / "cache")),
            ],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    with serving(Advisories) as server:
        there = f"{address_of(server)}/v1/query"
        code, said, errors = run(there, NO_PROXY="127.0.0.1")
        assert code == 1, errors
        assert "planted 1.0: PYSEC-2026-1: Planted: install 99.0 or later" in said
        assert "advisories: 1" in said and "knows: 2 of 2" in said
    code, said, errors = run(there, NO_PROXY="127.0.0.1")  # nobody there any more
    assert code == 0 and "cannot be reached" in said and said.count("\n") == 1, errors
