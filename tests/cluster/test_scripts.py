"""The scripts, images and pages of `cluster/` and `docs/`: what they check, start and copy."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = [CLUSTER / "install.sh", CLUSTER / "node.sh", CLUSTER / "slurm.sbatch"]


# --- a node of a cloud


def run_node(tmp_path, *arguments, token="t"):
    """node.sh in a copy of the repository with a stand-in for install.sh."""
    (tmp_path / "repo/cluster").mkdir(parents=True)
    shutil.copy(CLUSTER / "node.sh", tmp_path / "repo/cluster")
    install = tmp_path / "repo/cluster/install.sh"
    install.write_text('#!/bin/bash\necho "installed $*"\n')
    install.chmod(0o755)
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o644)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mountpoint").write_text("#!/bin/bash\nexit 0\n")
    (tools / "mountpoint").chmod(0o755)
    return subprocess.run(
        [tmp_path / "repo/cluster/node.sh", *arguments],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SHARED": str(tmp_path),
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        ((), "t", "no shared file system"),
        (("CHANGE-ME:/",), "t", "setup_commands still says CHANGE-ME"),
        (("10.0.0.4",), "t", "no shared file system"),
        (("10.0.0.4:/export",), "", "no token in"),
    ],
)
def test_a_node_that_is_not_set_up_says_what_is_missing(tmp_path, arguments, token, said):
    result = run_node(tmp_path, *arguments, token=token)
    assert result.returncode == 1 and said in result.stderr and result.stderr.count("\n") == 1
    assert "installed" not in result.stdout


def test_a_node_installs_by_the_script_that_make_uses(tmp_path):
    result = run_node(tmp_path, "10.0.0.4:/export")
    assert result.returncode == 0 and result.stdout == "installed --run\n"
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


# --- images


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow/Dockerfile"])
def test_the_image_is_pinned_runs_as_nobody_in_particular_and_copies_what_is_there(name):
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    (base,) = [rest for step, rest in steps if step == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-bookworm", base)
    assert [rest for step, rest in steps if step == "USER"][-1] in ("tokenpool", "mlflow")
    assert not [rest for step, rest in steps if step == "ADD"]
    allowed = (ROOT / ".dockerignore").read_text().split()
    for source in [s for step, rest in steps if step == "COPY" for s in rest.split()[:-1]]:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in allowed, source
    assert not re.search(r"password|secret_key", text, re.I)


def test_the_image_is_set_up_by_the_script_that_make_uses():
    runs = [
        line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if "install.sh" in line
    ]
    assert "RUN cluster/install.sh --run && rm -rf /root/.cache /var/lib/apt/lists/*" in runs
    assert "cluster/install.sh" in (ROOT / "Makefile").read_text()
    assert not re.search(r"\bpip3? install", (CLUSTER / "Dockerfile").read_text())


def test_what_is_copied_before_the_code_is_all_that_the_installer_reads():
    before = (CLUSTER / "Dockerfile").read_text().split("RUN cluster/install.sh")[0]
    script = (CLUSTER / "install.sh").read_text()
    for name in re.findall(r"[\w/]+\.(?:txt|toml|sh)\b", script):
        assert name in before, name


# --- shell


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        assert not os.environ.get("CI"), "CI needs shellcheck: cluster/install.sh installs it"
        pytest.skip("no shellcheck on this machine: cluster/install.sh installs it where it can")
    checked = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def slurm(tmp_path, *arguments, head="10.1.2.3"):
    """slurm.sbatch as Slurm would run it, with stand-ins that say what they were asked."""
    bin_ = tmp_path / ".venv/bin"
    bin_.mkdir(parents=True)
    stand_ins = {
        bin_ / "ray": 'echo "ray $*"; stat -c "token %a" "$RAY_AUTH_TOKEN_PATH";'
        ' wc -c <"$RAY_AUTH_TOKEN_PATH"; echo "mode $RAY_AUTH_MODE"; exit "${RAY_EXIT:-0}"',
        tmp_path / "bin/scontrol": "printf 'node7\\nnode8\\n'",
        # Runs what follows its own options.
        tmp_path / "bin/srun": 'echo "srun $*" >&2; while [[ $1 == --* ]]; do shift; done; "$@"',
        tmp_path / "bin/hostname": f'echo "{head} fe80::1"',
    }
    (tmp_path / "bin").mkdir()
    for path, script in stand_ins.items():
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "config.yaml").write_text("name: x\n")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "RAY_EXIT": "3",
    }
    return subprocess.run(
        ["bash", CLUSTER / "slurm.sbatch", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_slurm_starts_ray_on_all_nodes_with_a_token_of_the_jobs_own(tmp_path):
    result = slurm(tmp_path, "config.yaml", "--set", "name=a b")
    assert result.returncode == 3  # the search's exit code is the job's
    ray = shlex.split(result.stdout.splitlines()[0])
    assert ray[:6] == ["ray", "symmetric-run", "--address", "10.1.2.3:24711", "--min-nodes", "2"]
    assert "--num-cpus=32" in ray
    assert "tokenpool search config.yaml --set name=a b --address 10.1.2.3:24711" in result.stdout
    assert result.stdout.splitlines()[1:] == ["token 600", "64", "mode token"]
    assert "--nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1" in result.stderr
    assert not list(tmp_path.glob(".ray-token*"))


@pytest.mark.parametrize(
    ("arguments", "said"), [((), "no configuration"), (("not.yaml",), "no file not.yaml")]
)
def test_slurm_without_a_configuration_says_so_before_any_node_works(tmp_path, arguments, said):
    result = slurm(tmp_path, *arguments)
    assert result.returncode == 2 and said in result.stderr and result.stdout == ""


# --- docs


def test_every_way_to_run_has_a_page_and_what_pages_name_is_there():
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    for page in ("laptop", "gpu-box", "aws", "gcp", "kubernetes", "slurm", "mlflow"):
        assert f"({page}.md)" in index
    for path in docs.glob("*.md"):
        for shipped in re.findall(r"\bcluster/[\w/.-]+\.(?:yaml|sh|sbatch|txt)", path.read_text()):
            assert (ROOT / shipped).exists(), f"{path.name}: {shipped}"


def test_what_the_pages_say_to_type_is_shell():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(), re.M | re.S):
            parsed = subprocess.run(
                ["bash", "-n"], input=block, capture_output=True, text=True, check=False
            )
            assert parsed.returncode == 0, f"{path.name}: {parsed.stderr}"
