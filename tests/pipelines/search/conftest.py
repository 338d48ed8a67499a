"""Digits, and a model that knows a little of them."""

import pytest
from small_models import train_small

import tokenpool as tp
from pipelines.data.prepare import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out)
    return out


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    return tp.save(train_small(digits), tmp_path_factory.mktemp("model") / "model")
