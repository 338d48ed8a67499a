"""What training scripts and hubs write around a model's weights is read, or refused in one line.

M2 of the field: timm's own checkpoints were refused, with a terminal's escape codes.
"""

import argparse
import json
import logging
import pathlib
import sys
import types
from collections import OrderedDict, defaultdict

import pytest
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV2, ModelEmaV3

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.initial_weights import load_into
from pipelines.models.state_dicts import read_state_dict


def vit(seed=0):
    torch.manual_seed(seed)
    return tp.build_vit(16, 4, 16, 2, 2, 5).eval()


AVERAGED, PLAIN = vit(1).state_dict(), vit(2).state_dict()
ARGS = argparse.Namespace(lr=0.1, model="vit", class_map="", data=None, betas=(0.9, 0.999))


def prefixed(prefix, state=PLAIN):
    return OrderedDict((prefix + name, value) for name, value in state.items())


def loaded(path):
    return load_into(vit(3), str(path)).state_dict()


def same(found, state):
    return all(torch.equal(found[name], value) for name, value in state.items())


# The first four are the field's. Neighbours: other scripts' names of the same containers, wrappers
# that are nested or stand in the middle of names, and containers within containers.
FILES = {
    "model_best.pth.tar": ({"epoch": 3, "arch": "vit", "state_dict": PLAIN, "args": ARGS}, PLAIN),
    "last.pth": (
        {"state_dict": PLAIN, "args": ARGS, "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
        PLAIN,
    ),
    "ddp.pth": ({"model": prefixed("module.")}, PLAIN),
    "compiled.pth": (prefixed("_orig_mod."), PLAIN),
    "checkpoint-9.pth.tar": (
        {"state_dict": PLAIN, "state_dict_ema": AVERAGED, "args": ARGS},
        AVERAGED,
    ),
    "no-ema.pth.tar": ({"state_dict": PLAIN, "state_dict_ema": None}, PLAIN),
    "deit.pth": (
        {"model": PLAIN, "model_ema": AVERAGED, "scaler": {"scale": torch.ones(1)}},
        AVERAGED,
    ),
    "lightning.ckpt": (
        {
            "state_dict": prefixed("model."),
            "hyper_parameters": {"lr": 1},
            "callbacks": {"C": {"best": torch.ones(2)}},
        },
        PLAIN,
    ),
    "lightning-ema.ckpt": (
        {"state_dict": prefixed("model.") | prefixed("ema_model.", AVERAGED)},
        AVERAGED,
    ),
    "compiled-ddp.th": ({"net": prefixed("module._orig_mod.")}, PLAIN),
    "ddp-compiled.th": (prefixed("_orig_mod.module."), PLAIN),
    "fsdp.pt": (
        {k.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): v for k, v in PLAIN.items()},
        PLAIN,
    ),
    "dino.pth": (
        {
            "student": prefixed("module.backbone."),
            "teacher": prefixed("backbone.", AVERAGED),
            "args": ARGS,
            "dino_loss": {"center": torch.ones(1, 3)},
        },
        AVERAGED,
    ),
    "swa.pt": (prefixed("module.", AVERAGED) | {"n_averaged": torch.tensor(3)}, AVERAGED),
    "deepspeed.pt": ({"module": PLAIN, "ds_config": {}, "buffer_names": []}, PLAIN),
    "nested.pth": ({"state": {"model": {"state_dict": prefixed("encoder.")}}}, PLAIN),
    "distilled.pth": ({"model": PLAIN, "teacher": AVERAGED}, PLAIN),  # a teacher, not an average
    "linear.pth": (
        {
            "state_dict": {
                ("head." + k[5:] if k.startswith("head.") else "backbone." + k): v
                for k, v in PLAIN.items()
            }
        },
        PLAIN,
    ),
    "counted.pth": (PLAIN | {"bn.num_batches_tracked": torch.tensor(1)}, PLAIN),
    "pytorch_model.bin": (PLAIN, PLAIN),
}


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_training_scripts_load(tmp_path, name):
    content, expected = FILES[name]
    torch.save(content, tmp_path / name)
    assert same(loaded(tmp_path / name), expected)


@pytest.mark.parametrize("kind", [ModelEmaV2, ModelEmaV3])
def test_what_timms_averages_save(tmp_path, kind):
    average = kind(vit(1))
    torch.save({"state_dict": PLAIN, "state_dict_ema": average.state_dict()}, tmp_path / "m.pth")
    assert same(loaded(tmp_path / "m.pth"), AVERAGED)


def test_that_the_average_is_taken_is_said(tmp_path, caplog):
    torch.save({"state_dict": PLAIN, "state_dict_ema": AVERAGED}, tmp_path / "m.pth")
    with caplog.at_level(logging.WARNING):
        loaded(tmp_path / "m.pth")
    assert "its averaged weights are taken (state_dict_ema, not state_dict)" in caplog.text


def test_shards_and_folders(tmp_path):
    names = sorted(PLAIN)
    halves = {
        "a-00001-of-00002.safetensors": names[::2],
        "a-00002-of-00002.safetensors": names[1::2],
    }
    folder = tmp_path / "hub"
    folder.mkdir()
    for file, part in halves.items():
        save_file({name: PLAIN[name].clone() for name in part}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, part in halves.items() for n in part}}))
    assert same(loaded(folder), PLAIN) and same(loaded(index), PLAIN)
    (folder / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"names a-00002-of-00002\.safetensors, which is not beside it"
    ):
        read_state_dict(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="which is not beside it"):
        read_state_dict(folder)
    index.unlink()
    assert len(read_state_dict(folder).tensors) == len(halves["a-00001-of-00002.safetensors"])
    # DeepSpeed's folder: `latest` names the one inside.
    (tmp_path / "ds" / "epoch").mkdir(parents=True)
    (tmp_path / "ds" / "latest").write_text("epoch")
    torch.save({"module": PLAIN}, tmp_path / "ds" / "epoch" / "mp_rank_00_model_states.pt")
    assert same(loaded(tmp_path / "ds"), PLAIN)


def test_objects_that_only_describe_a_run_become_empty(tmp_path):
    # What Lightning, Hydra and NumPy leave in checkpoints; none of their code is run.
    content = {
        "state_dict": PLAIN,
        "path": pathlib.PurePosixPath("/a/b"),
        "metric": torch.ones(3).numpy().mean(),
        "space": types.SimpleNamespace(a=1),
        "lists": defaultdict(list, {"a": [1]}),
    }
    torch.save(content, tmp_path / "m.ckpt")
    assert same(loaded(tmp_path / "m.ckpt"), PLAIN)


class Config:
    pass


class AttributeDict(dict):
    """As Lightning's: `__module__` is set to its."""


AttributeDict.__module__ = "lightning_fabric.utilities.data"


def test_a_dict_of_lightnings(tmp_path, monkeypatch):
    module = types.ModuleType(AttributeDict.__module__)
    module.AttributeDict = AttributeDict
    for name in ("lightning_fabric", "lightning_fabric.utilities", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"state_dict": PLAIN, "hyper_parameters": AttributeDict(lr=1)}, tmp_path / "m.ckpt")
    assert same(loaded(tmp_path / "m.ckpt"), PLAIN)


REFUSED = {
    "module.pt": (vit(), "whole model was pickled"),
    "object.pth": (
        {"state_dict": PLAIN, "config": Config()},
        "holds a .*Config, which might run code",
    ),
    "list.pth": ([torch.ones(3)], "holds no state dict but a list"),
    "empty.pth": ({}, "it has nothing"),
    "log.pth": ({"epoch": 3, "loss": 0.5}, "it has epoch, loss"),
    "two.pth": ({"gan_a": PLAIN, "gan_b": AVERAGED}, "several sets of weights"),
    "two-prefixes.pth": (prefixed("left.") | prefixed("right."), "several models"),
    "neck.pth": (
        {
            **prefixed("backbone.", {k: v for k, v in PLAIN.items() if "head" not in k}),
            "head.weight": PLAIN["head.weight"],
            "head.bias": PLAIN["head.bias"],
            "neck.weight": torch.ones(4, 4),
        },
        "it has neck.weight",
    ),
    "hf.bin": ({"vit.embeddings.cls_token": torch.zeros(1, 1, 16)}, "does not fit: it has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line_with_the_remedy(tmp_path, name):
    content, said = REFUSED[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=said) as caught:
        load_into(vit(), str(tmp_path / name))
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text and name in text


RAW = {
    "a.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "b.pth": (b"<!DOCTYPE html><html>", "a web page or text"),
    "c.safetensors": (b"\x00" * 40, "cannot be read as weights alone"),
    "d.npz": (b"PK\x03\x04", "is JAX's"),
    "e.pth": (b"", "is empty"),
    "f.yaml": (b"a: b", "weights are read from"),
}


@pytest.mark.parametrize("name", RAW)
def test_files_that_are_something_else(tmp_path, name):
    content, said = RAW[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_torchscript_program_and_a_cut_file(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        read_state_dict(tmp_path / "program.pt")
    torch.save(PLAIN, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read_state_dict(tmp_path / "cut.pth")


def test_damage_within_a_file_is_said(tmp_path, caplog):
    """torch writes checksums and does not read them: a changed byte is another model's weight."""
    path = tmp_path / "flipped.pth"
    torch.save(PLAIN, path)
    read_state_dict(path)
    assert not caplog.records
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    read_state_dict(path)
    assert "checksum" in caplog.text


def test_quantised_weights_are_no_weights(tmp_path):
    torch.save({name: value.to(torch.int8) for name, value in PLAIN.items()}, tmp_path / "q.pth")
    with pytest.raises(UserError, match="int8 values"):
        loaded(tmp_path / "q.pth")


@pytest.mark.parametrize("part", ["model", "net", "backbone"])
def test_what_configuration_libraries_nest_is_compared(tmp_path, part):
    file = {"state_dict": prefixed("model."), "hyper_parameters": {part: {"num_heads": 4}}}
    torch.save(file, tmp_path / "nested.ckpt")
    with pytest.raises(UserError, match="heads 4 there and 2"):
        loaded(tmp_path / "nested.ckpt")


def test_a_distilled_model_is_no_plain_one(tmp_path):
    """And so said by what differs, not as positions without a grid."""
    distilled = PLAIN | {"dist_token": torch.zeros(1, 1, 16), "pos_embed": torch.zeros(1, 18, 16)}
    torch.save(distilled, tmp_path / "distilled.pth")
    with pytest.raises(UserError, match=r"pos_embed is \(1, 18, 16\)"):
        loaded(tmp_path / "distilled.pth")
