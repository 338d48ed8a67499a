"""Names of hubs where there is no network: one line at once."""

import socket
import time

import pytest
from huggingface_hub import constants

from pipelines.errors import UserError
from pipelines.models.hub import pretrained

# By a hub's name, and by timm's own, whose weights lie on the same hub.
NAMES = ["hf-hub:nobody/nothing", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def refused(name: str) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        pretrained(name)
    assert time.monotonic() - start < 8  # timm builds the model first; by itself it asks for 25 s
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_server(name, monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fails)
    assert "huggingface.co cannot be reached" in refused(name)
    assert not constants.HF_HUB_OFFLINE


def test_a_proxy_that_is_down(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # it does not listen: connections are refused
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}")
        said = refused(NAMES[0])
    assert "127.0.0.1 cannot be reached" in said
    assert "secret" not in said


def test_a_wrong_tag_is_no_matter_of_networks():
    assert "Invalid pretrained tag" in refused("vit_tiny_patch16_224.nothing")
