import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from found_checks import SECRET, by_status, failures

from pipelines.secrecy import secret_checks
from pipelines.secrecy.secret_checks import (
    check_environment,
    check_storage,
    check_tokens,
    check_tracking,
    check_written,
)

TOKEN = "0123456789abcdef" * 4


def test_a_password_in_the_tracking_address_or_on_an_open_line(tmp_path, monkeypatch):
    home = {"HOME": str(tmp_path)}
    address = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    password = {"MLFLOW_TRACKING_PASSWORD": SECRET}
    in_url = failures(
        check_tracking(home | {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:5000"})
    )
    assert "stands in MLFLOW_TRACKING_URI" in in_url and SECRET not in in_url
    assert not list(check_tracking(home | address | password))  # loopback
    monkeypatch.setattr(secret_checks, "is_loopback", lambda host: False)
    assert not list(check_tracking(home | address))
    for sent in (password, {"MLFLOW_TRACKING_TOKEN": SECRET}):
        (open_line,) = check_tracking(home | address | sent)
        assert open_line.status == "warn" and "unencrypted" in open_line.found
        assert SECRET not in open_line.found
    secure = {"MLFLOW_TRACKING_URI": "https://mlflow.example.org"} | password
    assert not list(check_tracking(home | secure))
    insecure = secure | {"MLFLOW_TRACKING_INSECURE_TLS": "true"}
    assert "certificate" in failures(check_tracking(home | insecure))
    assert not list(check_tracking(home | {"MLFLOW_TRACKING_URI": "http://[::1"}))


def test_tokens_and_their_modes(tmp_path):
    home = {"HOME": str(tmp_path)}
    tmp_path.chmod(0o755)
    assert "none needed" in next(iter(check_tokens(home))).found
    path = tmp_path / ".ray/auth_token"
    path.parent.mkdir(mode=0o700)
    path.write_text(TOKEN)
    path.chmod(0o600)
    assert not failures(check_tokens(home)) and not by_status(check_tokens(home), "warn")
    path.chmod(0o644)
    (warning,) = by_status(check_tokens(home), "warn")  # its folder keeps others out
    assert "0644" in warning.found and warning.remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    path.write_text("secret")
    short = failures(check_tokens(home))
    assert "too short" in short and "secret" not in short.replace("secrets", "")
    path.write_text("a" * 64)
    assert "too short" in failures(check_tokens(home))
    missing = home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    assert "no file" in failures(check_tokens(missing))
    assert not failures(check_tokens(home | {"RAY_AUTH_TOKEN": TOKEN}))
    off = home | {"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}
    assert "RAY_AUTH_MODE=disabled" in failures(check_tokens(off))


def test_a_token_others_can_read_or_replace(monkeypatch):
    folder = Path("/tmp") / f"tokenpool-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "token"
        path.write_text(TOKEN)
        path.chmod(0o644)
        named = {"HOME": "/nonexistent", "RAY_AUTH_TOKEN_PATH": str(path)}
        assert "others can read it" in failures(check_tokens(named))
        path.chmod(0o600)
        assert not failures(check_tokens(named))
        folder.chmod(0o777)
        assert "others can replace" in failures(check_tokens(named))
        if os.getuid() == 0:
            os.chown(path, 4711, 4711)  # what is root's is nobody's to doubt
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert "somebody else" in failures(check_tokens(named))
    finally:
        path.unlink()
        folder.rmdir()


def test_mlflows_files(tmp_path):
    credentials = tmp_path / ".mlflow/credentials"
    credentials.parent.mkdir()
    credentials.write_text("[mlflow]\n")
    credentials.chmod(0o640)
    auth = tmp_path / "basic_auth.ini"
    auth.write_text("[mlflow]\nadmin_password = a-good-long-one\n")
    auth.chmod(0o604)
    environment = {"HOME": str(tmp_path), "MLFLOW_AUTH_CONFIG_PATH": str(auth)}
    found = [check for check in check_tokens(environment) if check.status != "ok"]
    assert any("0640" in check.found and str(credentials) in check.found for check in found)
    assert any("0604" in check.found and str(auth) in check.found for check in found)


def test_secrets_of_the_environment():
    assert "no variable" in next(iter(check_environment({"PATH": "/bin"}))).found
    environment = {
        "MY_API_KEY": SECRET,
        "DATABASE_URL": "postgresql://me:another-secret@h/db",
        "RAY_RUNTIME_ENV": json.dumps({"env_vars": {"HF_TOKEN": "a-third-secret"}}),
    }
    found = list(check_environment(environment))
    text = " ".join(check.found for check in found)
    assert "MY_API_KEY" in text and "DATABASE_URL" in by_status(found, "warn")[0].found
    assert "RAY_RUNTIME_ENV" in failures(found)
    assert not {SECRET, "another-secret", "a-third-secret"} & set(text.replace(",", "").split())


def test_a_secret_in_a_command_line_is_seen(monkeypatch):
    code = "import time; print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, SECRET], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        found = failures(check_environment({"MY_TOKEN": SECRET}))
        assert f"({child.pid})" in found and SECRET not in found
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_secret_in_what_was_written_is_found(tmp_path):
    environment = {"HOME": str(tmp_path), "MY_TOKEN": SECRET}
    folder = tmp_path / "searches/s"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("{}\n")
    assert check_written(tmp_path, environment).status == "ok"
    (folder / "ledger.jsonl").write_text(json.dumps({"reason": f"with {SECRET}"}))
    check = check_written(tmp_path, environment)
    assert check.status == "fail" and "searches/s/ledger.jsonl" in check.found
    assert SECRET not in check.found
    assert check_written(tmp_path, {"HOME": str(tmp_path)}).status == "ok"


def test_a_storage_folder_anybody_may_write_to(tmp_path):
    assert check_storage(tmp_path / "none").status == "ok"
    assert check_storage(tmp_path).status == "ok"
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IWOTH)
    check = check_storage(tmp_path)
    assert check.status == "fail" and check.remedy == f"chmod o-w {tmp_path}"
