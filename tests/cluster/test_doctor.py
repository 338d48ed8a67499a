import shutil
import socket
import subprocess
from pathlib import Path

from cluster import doctor
from cluster.doctor import check_disk, check_jpeg_decoder, check_package, check_port

INSTALL = Path(__file__).parents[2] / "cluster/install.sh"


def test_a_port_in_use_is_named_with_its_remedy():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        check = check_port("tokenpool ui", port, "use another")
        assert check.status == "warn" and str(port) in check.found and check.remedy == "use another"
    assert check_port("tokenpool ui", port, "").status == "ok"


def test_a_package_that_is_missing_or_does_not_import():
    missing = check_package("no-such-package", "nothing")
    assert missing.status == "fail" and "make install" in missing.remedy
    broken = check_package("numpy", "numpy.no_such_module")
    assert broken.status == "fail" and "no_such_module" in broken.found
    assert check_package("numpy", "numpy").status == "ok"


def test_without_a_compiler_or_libjpeg_only_the_fast_decoder_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no decoder was built yet
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        assert check_jpeg_decoder().status == "ok"
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho fatal error: jpeglib.h: No such file >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = check_jpeg_decoder()
    assert check.status == "warn" and "libjpeg" in check.found and "torchvision" in check.found
    compiler.unlink()
    check = check_jpeg_decoder()
    assert check.status == "warn" and "no C compiler" in check.found and "gcc" in check.remedy
    built = tmp_path / "tokenpool/native/decode_rows-0123456789abcdef.so"
    built.parent.mkdir(parents=True)
    built.touch()
    assert check_jpeg_decoder().status == "ok"


def test_disk_is_measured_where_the_folder_will_be(tmp_path, monkeypatch):
    assert str(tmp_path) in check_disk(tmp_path / "not" / "there" / "yet").found
    monkeypatch.setattr(doctor, "_MIN_DISK_GB", 1e9)
    assert check_disk(tmp_path).status == "warn"


def run_install(tmp_path, commands):
    """install.sh in an empty copy of the repository, with only some commands to be found."""
    (tmp_path / "repo/cluster").mkdir(parents=True)
    (tmp_path / "repo/cluster/install.sh").write_text(INSTALL.read_text())
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / "repo" / name).write_text("")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in commands.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    for name in ("cat", "sha256sum", "cut", "dirname", "grep"):
        path = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout
        (tools / name).symlink_to(path.strip())
    return subprocess.run(
        ["/bin/bash", str(tmp_path / "repo/cluster/install.sh")],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_install_without_python_or_with_an_old_one(tmp_path):
    (tmp_path / "a").mkdir()
    none = run_install(tmp_path / "a", {})
    assert none.returncode == 1 and "no python3: install Python 3.11" in none.stderr
    (tmp_path / "b").mkdir()
    old = run_install(
        tmp_path / "b", {"python3": '[ "$1" = --version ] && echo Python 3.9.2 || exit 1'}
    )
    assert old.returncode == 1 and "Python 3.9.2 is too old" in old.stderr


def test_install_without_root_and_sudo_says_what_to_ask_for(tmp_path):
    result = run_install(
        tmp_path,
        {"python3": "exit 0", "dpkg-query": "exit 1", "id": "echo 1000", "apt-get": "exit 0"},
    )
    assert result.returncode == 1
    assert "ask an administrator to run: apt-get install g++ libjpeg-dev" in result.stderr
    assert not (tmp_path / "repo/.venv").exists()
