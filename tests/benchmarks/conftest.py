"""Digits, prepared once."""

import pytest

from pipelines.data.prepare import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out)
    return out
