"""Secrets are planted wherever they could come in, and looked for in all that is written."""

import os
import subprocess
import sys
from pathlib import Path

import ledgers
import pytest
from one_process import END, run_commands
from thinning import fast

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.secrecy.guard import CleanedError, clean_errors, known_secrets, redactor
from pipelines.storage.search_files import Search
from pipelines.tracking.mlflow_errors import first_line
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracking_store import tracking_store
from pipelines.trials.run_trials import short_reason

MARK = "pLaNt3d"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+key0",
    "HF_TOKEN": f"{MARK}-hf-token",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-mlflow",
    "DATABASE_URL": f"postgresql://me:{MARK}@db@127.0.0.1/runs",
}
TOKENPOOL = [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def marked(folder: Path) -> list[str]:
    """Files under a folder that hold a secret."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return [str(path) for path in found if MARK.encode() in path.read_bytes()]


def planted_events() -> list[dict]:
    """A search's events with secrets in every text that comes from outside."""
    rows = ledgers.events()
    rows[0]["source"] = f"s3://AKIA0123:{MARK}/secret@bucket/images"
    rows[0]["config"] |= {"password": f"{MARK}1", "note": f"see {SECRETS['HF_TOKEN']}"}
    for row in rows:
        if row["event"] == "trial_failed":
            row["reason"] = short_reason(
                RuntimeError(f"OSError: no access with AWS_SECRET_ACCESS_KEY={MARK}x to s3://x")
            )
        if row["event"] == "trial_stopped":
            row["reason"] = f"stopped by {SECRETS['AWS_SECRET_ACCESS_KEY']} at --api-key {MARK}9z"
    return rows


def test_ledger_mlflow_page_and_commands(folder: Path, planted: None) -> None:
    search = Search(folder, "digits")
    with Ledger(search) as ledger, MlflowTracker(search, tracking_store(folder)) as tracker:
        for row in planted_events():
            fields = {key: value for key, value in row.items() if key not in ("event", "time")}
            ledger.append(row["event"], **fields)
        tracker.notify()
    storage = ["--storage", str(folder)]
    commands = (
        ["report", "digits"],
        ["explain", "digits", "t005"],
        ["explain", "digits", "t007"],
        ["status", "digits", "--json"],
        ["front", "digits", "--all", "--json"],
    )
    ran = run_commands([[*words, *storage] for words in commands], text=True)
    said = ran.stdout + ran.stderr
    assert said.count(f"{END}0") == len(commands), said
    assert "no access with AWS_SECRET_ACCESS_KEY=***" in said and MARK not in said
    assert (folder / "mlflow.db").stat().st_size > 0
    assert list(folder.rglob("front.html")) and list(folder.rglob("report.html"))
    assert marked(folder) == []


@pytest.mark.parametrize(
    ("uri", "words", "says"),
    fast(
        2,
        [
            (f"http://me:{MARK}@127.0.0.1:9", ["ui"], "does not answer"),
            (f"http://me:{MARK}/@x@127.0.0.1:9", ["track", "rebuild", "digits"], "does not take"),
            (
                f"postgresql://me:{MARK}@127.0.0.1:9/runs",
                ["ui", "digits"],
                "the database postgresql:",
            ),
            (f"nonsense://me:{MARK}@host/x", ["track", "rebuild", "digits"], "does not take"),
        ],
    ),
)
def test_an_mlflow_that_cannot_be_used(
    storage: Path, uri: str, words: list[str], says: str
) -> None:
    environment = os.environ | SECRETS | {"MLFLOW_TRACKING_URI": uri}
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = subprocess.run(
        [*TOKENPOOL, *words, "--storage", str(storage)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert MARK not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert marked(storage) == []


@pytest.mark.parametrize(
    "words",
    fast(
        3,
        [
            ["search", "tune_spaces/presets/digits.yaml", "--set", f"storage=s3://k:{MARK}@b/x"],
            ["search", "tune_spaces/presets/digits.yaml", "--set", f"data.path=/x/{MARK}-hf-token"],
            ["search", "tune_spaces/presets/digits.yaml", "--set", f"api_key={MARK}"],
            [
                *("search", "tune_spaces/presets/digits.yaml", "--address"),
                *(f"http://me:{MARK}@127.0.0.1:9", "--set", "storage=RUNS"),
            ],
            ["search", f"{MARK}-hf-token.yaml"],
            ["prepare", f"s3://key:{MARK}@bucket/x", "OUT"],
            ["prepare", f"https://host/x.parquet?X-Amz-Signature={MARK}", "OUT"],
            [
                "submit",
                "tune_spaces/presets/digits.yaml",
                "--address",
                f"http://me:{MARK}@127.0.0.1:9",
            ],
            ["status", "--address", f"http://me:{MARK}@127.0.0.1:9"],
        ],
    ),
)
def test_no_command_repeats_a_secret_it_was_given(tmp_path: Path, words: list[str]) -> None:
    # Not the checkout's own `runs`: a search that `make search` finished there has nothing to do.
    folders = {"OUT": str(tmp_path / "out"), "storage=RUNS": f"storage={tmp_path / 'runs'}"}
    done = subprocess.run(
        [*TOKENPOOL, *(folders.get(word, word) for word in words)],
        env=os.environ | SECRETS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2) and done.stderr
    assert MARK not in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


CRASH = """
import logging, sys, threading
from pipelines import cli
password = "pLaNt3d-hf-token"
def bug(**_):
    logging.getLogger("x").warning("sent %s to http://me:pLaNt3d@host", password)
    thread = threading.Thread(target=int, args=(password,))
    thread.start()
    thread.join()
    try:
        raise ConnectionError(2, "no", f"/{password}")
    except ConnectionError as error:
        raise ValueError(f"{password} is wrong") from error
cli.app.registered_commands.clear()
cli.app.command("bug")(bug)
cli.app.command("other")(bug)
sys.argv = ["tokenpool", "bug"]
cli.main()
"""


def test_a_bugs_traceback_a_threads_and_a_log_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH.replace("(**_)", "()")],
        env=os.environ | SECRETS,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stderr
    assert done.returncode == 1 and MARK not in text.replace('"pLaNt3d-hf-token"', ""), text
    assert text.count("Traceback") == 3 and "ValueError: *** is wrong" in text
    assert "sent *** to http://host" in text and "Exception in thread" in text


def test_what_leaves_a_worker(planted: None) -> None:
    from pipelines.trials.ray_job import train_trial, train_worker

    for run, job in ((train_worker, {"job_id": 1}), (train_trial, {"job": {"job_id": 1}})):
        inner = job.get("job", job)
        inner["storage"] = ["not a path", SECRETS["HF_TOKEN"]]
        with pytest.raises(CleanedError) as caught:
            run(job)
        assert MARK not in str(caught.value) and "ValidationError" in str(caught.value)
    with pytest.raises(OSError, match="cannot") as failed, clean_errors():
        raise OSError(5, f"cannot read s3://k:{MARK}@b/x", SECRETS["AWS_SECRET_ACCESS_KEY"])
    assert failed.value.errno == 5 and MARK not in str(failed.value)
    with pytest.raises(UserError) as said, clean_errors():
        raise UserError(f"bad {SECRETS['HF_TOKEN']}")
    assert said.value.exit_code == 2 and str(said.value) == "bad ***"


def test_one_line_of_an_error(planted: None) -> None:
    error = RuntimeError(f"cannot reach http://me:{MARK}@h with {SECRETS['HF_TOKEN']}")
    assert first_line(error) == "RuntimeError: cannot reach http://h with ***"
    assert short_reason(error) == "cannot reach http://h with ***"


def test_where_secrets_are_known_from(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("raytoken-0123456789\n")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = in%file-pass\n"
    )
    environment = {
        "HOME": str(tmp_path),
        "OTHER_URL": "https://me:in-the-url@host/",
        "TOKENPOOL_RUNS": "/runs",
        "MY_API_KEY": "in-a-variable",
        "WIDTH": "384",
    }
    known = known_secrets(environment)
    assert {"raytoken-0123456789", "in%file-pass", "in-the-url", "in-a-variable"} <= known
    assert "bWU6aW4lZmlsZS1wYXNz" in known  # me:in%file-pass, as Basic authentication sends it
    assert not {"/runs", "384", "me"} & known
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("another-token-42")
    environment["RAY_AUTH_TOKEN_PATH"] = str(elsewhere)
    assert "another-token-42" in known_secrets(environment)
    environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path)  # a folder; not to be read
    assert "another-token-42" not in known_secrets(environment)


def test_a_changed_environment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"with {MARK}-later"
    assert redactor().text(text) == text
    monkeypatch.setenv("LATER_TOKEN", f"{MARK}-later")
    assert redactor().text(text) == "with ***"


def test_the_last_resort_of_logging_is_guarded() -> None:
    code = (
        "import logging; from pipelines.secrecy.guard import guard_process; guard_process();"
        "logging.getLogger('x').warning('http://me:pLaNt3d@host')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "http://host\n"
