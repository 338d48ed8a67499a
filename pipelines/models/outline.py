"""The model that a job or a search is about: a DeiT, or what the weights it starts from are of."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.hub import is_named
from pipelines.models.initial_weights import described, open_source
from pipelines.models.model_spec import ModelSpec
from pipelines.storage.address import parse_place
from pipelines.storage.copies import local_path
from pipelines.storage.store import ObjectStore
from tokenpool.models.architecture import build, describe
from tokenpool.models.storage import read_header
from tokenpool.patches import patches_of

# What a job decides itself, whatever it starts from.
_OWN = ("num_classes", "img_size", "drop_path_rate", "num_heads")


def shaped(
    spec: ModelSpec, drop_path: float, architecture: dict[str, Any] | None, device: str = "cpu"
) -> Any | None:
    """A model of an architecture, of the size and for the classes of a job.

    Args:
        spec: of the job: width, heads, depth and patch size must be the architecture's.
        drop_path: rate of stochastic depth.
        architecture: as `tokenpool.models.architecture.describe` gives it.
        device: "meta" makes one without values.

    Returns:
        None where the architecture is a plain DeiT, is not known, or of another shape.
    """
    if architecture is None:
        return None
    own: dict[str, Any] = {
        "num_classes": spec.num_classes,
        "img_size": [spec.image_size, spec.image_size],
        "drop_path_rate": drop_path,
    }
    if architecture["class"] == "timm":
        arguments = architecture["arguments"] | own
        wanted = architecture | {"num_classes": spec.num_classes, "arguments": arguments}
    else:
        wanted = architecture | own
        plain = describe(_deit(spec))
        if {k: v for k, v in wanted.items() if k not in _OWN} == {
            k: v for k, v in plain.items() if k not in _OWN
        }:
            return None
    try:
        found = build(wanted, device=device)
    except (TypeError, ValueError, AssertionError):
        return None  # an architecture that takes no other size: comparing says it
    embed = patches_of(found)
    first: Any = found.blocks[0]
    shape = (found.embed_dim, len(found.blocks), first.attn.num_heads, embed.patch_size)
    asked = (spec.width, spec.depth, spec.heads, (spec.patch_size,) * 2)
    return found if shape == asked else None


def _deit(spec: ModelSpec) -> Any:
    """A plain DeiT of the shape, without values."""
    with torch.device("meta"):
        return tp.build_vit(
            spec.image_size, spec.patch_size, spec.width, spec.depth, spec.heads, spec.num_classes
        )


@lru_cache(maxsize=64)
def outline(spec: ModelSpec, source: str | None, *, narrowed: bool = False) -> Any:
    """The model of a shape and the weights it will start from, without values: to be counted.

    `narrowed`: the weights are a wider model's, of whose kind it is.

    Raises:
        UserError: there are no such weights.
    """
    if source is None:
        return _deit(spec)
    architecture = _architecture(source)
    if narrowed and architecture is not None and "embed_dim" in architecture:
        architecture = architecture | {"embed_dim": spec.width, "num_heads": spec.heads}
    found = shaped(spec, 0.0, architecture, "meta")
    return outline(spec, None) if found is None else found


def _architecture(source: str) -> dict[str, Any] | None:
    if is_named(source):
        if not timm.is_model(source):
            return open_source(source).architecture
        with torch.device("meta"):
            model = timm.create_model(source, pretrained=False)
        return described(model, source)
    place = parse_place(source)
    header = ObjectStore(place).read("model.json") if isinstance(place, str) else None
    if header is not None:
        # A saved model in an object store: its weights are not fetched to be counted.
        with tempfile.TemporaryDirectory(prefix="tokenpool-header-") as folder:
            (Path(folder) / "model.json").write_bytes(header)
            return _saved(Path(folder), source)
    path = local_path(source)
    if (path / "model.json").is_file():
        return _saved(path, source)
    # One that is not there is missed where it is loaded.
    return open_source(source).architecture if path.exists() else None


def _saved(folder: Path, source: str) -> dict[str, Any]:
    try:
        known: dict[str, Any] = read_header(folder)["architecture"]
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    return known
