import json
import re
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.secrecy.redact import HIDDEN, Redactor, holds_secret, is_secret_name, secret_places

ROOT = Path(__file__).parents[2]
PLAIN = Redactor()
SECRET = "c0rrect-h0rse-battery"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "apiKey",
        "HF_TOKEN",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "db.password",
        "clientSecret",
        "RAY_AUTH_TOKEN",
        "--auth-token",
        "PGPASSWORD",
        "passphrase",
        "GOOGLE_CREDENTIALS",
        "MY_TOKEN_2",
        "tokenpool_api_key",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name) and holds_secret(name, "x")


@pytest.mark.parametrize(
    "name",
    [
        "TOKENPOOL_RUNS",
        "TOKENIZERS_PARALLELISM",
        "RAY_AUTH_TOKEN_PATH",
        "KeyError",
        "keyword",
        "SSL_KEY_FILE",
        "PATH",
        "width",
        "storage",
        "CREDENTIALS_DIR",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ],
)
def test_names_that_are_harmless(name):
    assert not is_secret_name(name)


def test_counts_of_tokens_are_no_secrets():
    config = {
        "min_tokens": 16,
        "token_step": 2,
        "tokens": "49, 40, 40",
        "keys": [],
        "tokens_k": 4.0,
    }
    assert PLAIN.value(config) == config
    assert PLAIN.value({"password": 1234, "token": 123456789, "secret": "1"}) == {
        "password": HIDDEN,
        "token": HIDDEN,
        "secret": HIDDEN,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p4ss@host/db", "postgresql://host/db"),
        ("postgresql://u:p@s/s:w@host/db", "postgresql://host/db"),
        ("postgresql+psycopg2://:pw@h", "postgresql+psycopg2://h"),
        ("http://token@host/path", "http://host/path"),
        ("s3://AKI:se/cr+et@bucket/runs", "s3://bucket/runs"),
        (str(Path("s3://AKI:se/cr+et@bucket/runs")), "s3:/bucket/runs"),
        ("https://h/p?a=1&sig=abc%2F&b=2", "https://h/p?a=1&sig=***&b=2"),
        ("https://h/p?X-Amz-Signature=00ff&x=1", "https://h/p?X-Amz-Signature=***&x=1"),
        ("https://h/p?access_token=abc&x=1", "https://h/p?access_token=***&x=1"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+g tail", "AWS_SECRET_ACCESS_KEY=*** tail"),
        ("api_key='a b c', x=1", "api_key='***', x=1"),
        ('{"api_key": "a\\"b", "width": 96}', '{"api_key": "***", "width": 96}'),
        ("{'token': 'abc'}", "{'token': '***'}"),
        ("password: hunter2", "password: ***"),
        ("--password hunter2 --epochs 3", "--password *** --epochs 3"),
        ("--auth-token=abc123", "--auth-token=***"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("{'Authorization': 'Basic YWRtaW4='}", "{'Authorization': '***'}"),
        ("sent bearer 0123456789abcdef", "sent bearer ***"),
        ("AKIAIOSFODNN7EXAMPLE denied", "*** denied"),
        ("ghp_" + "a1" * 18, "***"),
        ("hf_" + "a1" * 17, "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nx", "***\nx"),
        ("-----BEGIN PRIVATE KEY-----\ncut off", "***"),
    ],
)
def test_texts(text, shown):
    assert PLAIN.text(text) == shown
    assert PLAIN.text(shown) == shown  # nothing changes twice


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'width'",
        "tokenpool: no search under runs: run `tokenpool search CONFIG.yaml` first",
        "layer 4 keeps 52 tokens but layer 3 keeps only 40",
        "space.min_tokens 65 exceeds the 64 patch tokens of a 32 px image",
        "cfg.yaml: unknown key finals.trails: did you mean trials?",
        "http://127.0.0.1:5000/#/experiments/1/runs/2?workflowType=machine_learning",
        "http://host:5000/path@v2",
        "models:/digits@knee",
        "sorted(points, key=lambda point: point.gmacs)",
        "kmedoids[on=keys,start=matching]",
        "patch tokens after each block: 49 40 40 12×3",
        "min_tokens=16 token_step: 4",
        "a key: the width; a token: one patch",
    ],
)
def test_ordinary_texts_stay_as_they_are(text):
    assert PLAIN.text(text) == text


def test_what_the_program_says_is_left_alone():
    """No message of the program's own sources, nor a preset, loses a word to the redaction."""
    for folder in ("pipelines", "tune_spaces", "tokenpool"):
        for path in (ROOT / folder).rglob("*.py"):
            for message in re.findall(r'UserError\(\s*f?"([^"]+)"', path.read_text()):
                assert PLAIN.text(message) == message, path
    for path in (ROOT / "tune_spaces/presets").glob("*.yaml"):
        assert PLAIN.text(path.read_text()) == path.read_text()


def test_known_secrets_go_wherever_they_stand_and_however_they_are_written():
    secret = "p@ss/w'ord+1"
    redactor = Redactor([secret])
    for written in (secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)):
        assert "ss" not in redactor.text(f"cannot open x{written}y")
    # One secret inside another leaves no rest; short ones would blot out words.
    both = Redactor(["abcdefgh", "abcdefgh-ijklmnop", "short"])
    assert both.text("abcdefgh-ijklmnop short") == "*** short"


def test_values_of_any_depth():
    redactor = Redactor([SECRET])
    value = {
        "env_vars": {"HF_TOKEN": "abc", "PATH": "/bin"},
        "uri": "http://u:pw@h",
        "list": [f"x {SECRET}", 3, None, True],
        "api_keys": {"one": "abc", "two": ["def"]},
        "path": Path("/tmp") / SECRET,
        f"name-{SECRET}": 1,
    }
    assert redactor.value(value) == {
        "env_vars": {"HF_TOKEN": HIDDEN, "PATH": "/bin"},
        "uri": "http://h",
        "list": [f"x {HIDDEN}", 3, None, True],
        "api_keys": {"one": HIDDEN, "two": [HIDDEN]},
        "path": Path("/tmp") / HIDDEN,
        f"name-{HIDDEN}": 1,
    }
    assert secret_places(value, redactor) == [
        "env_vars.HF_TOKEN",
        "uri",
        "list[0]",
        "api_keys.one",
        "api_keys.two[0]",
        "path",
    ]


def raise_chain():
    try:
        try:
            raise ConnectionError(f"http://u:{SECRET}@h refused", {"password": "pw"})
        except ConnectionError as error:
            raise FileNotFoundError(2, "No such file", f"/x/{SECRET}") from error
    except OSError as error:
        last = RuntimeError(f"with {SECRET}")
        last.hint = f"hint {SECRET}"
        last.add_note(f"note {SECRET}")
        raise ExceptionGroup("a group's own message cannot be changed", [last, error])  # noqa: B904


def test_exceptions_are_cleaned_all_the_way_and_keep_their_type():
    redactor = Redactor([SECRET])
    with pytest.raises(ExceptionGroup) as caught:
        raise_chain()
    error = caught.value
    redactor.error(error)
    first, second = error.exceptions
    text = "".join(traceback.format_exception(error)) + first.hint
    assert SECRET not in text and "'pw'" not in text and "raise_chain" in text
    assert isinstance(second, FileNotFoundError) and second.errno == 2


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=8, max_size=40),
    st.text(max_size=30),
    st.text(max_size=30),
)
def test_no_known_secret_survives_any_text(secret, before, after):
    shown = Redactor([secret]).text(before + secret + after)
    assert secret not in shown.replace(HIDDEN, "") or secret in before + after + HIDDEN


NAMES = st.sampled_from(["API_KEY", "hf_token", "client-secret", "PASSWORD", "x.apikey"])
VALUES = st.from_regex(r"[A-Za-z][A-Za-z0-9/+_.-]{7,30}[0-9]", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(NAMES, VALUES, st.sampled_from(["{}={}", "{}: {}", '"{}": "{}"', "'{}': '{}'", "--{} {}"]))
def test_no_named_secret_survives(name, value, form):
    assert value not in PLAIN.text("some words " + form.format(name, value) + " and more")
