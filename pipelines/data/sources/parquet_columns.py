"""Which columns of a Parquet file hold images, labels and splits, and what may stand in them.

`docs/data.md` has a table of the types that are taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipelines.data.layout import split_of_folder
from pipelines.data.options import PrepareOptions
from pipelines.errors import UserError

IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo")
"""Names by which an image column is known where no metadata tells it; the first has precedence."""

PATH_NAMES = ("file_name", "filename", "path", "file_path", "filepath", "image_path", "image_file")
"""Names by which a column of paths is known, where no column holds images."""

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "category")
"""Names by which a label column is known where no metadata tells it; the first has precedence."""

SPLIT_NAME = "split"
"""A column of this name that speaks of splits is never passed over in silence."""

Features = dict[str, dict[str, Any]]
LabelKind = Literal["number", "bool", "text"]


@dataclass(frozen=True)
class Columns:
    """The columns of one file. `split` is None where no column tells the split.

    `names` are the class names that the metadata gives to the numbers of the label column.
    """

    image: str
    label: str
    split: str | None
    label_kind: LabelKind
    names: dict[int, str] | None
    paths_only: bool


def find_columns(schema: pa.Schema, options: PrepareOptions, file: str) -> Columns:
    """Choose the columns by option, by the hub's metadata, by name; nothing is guessed.

    Raises:
        UserError: a column is not there, twice there, of a wrong type, or one of several.
    """
    features = hub_features(schema)
    image = _choose("image", options.image_column, schema, features, file)
    label = _choose("label", options.label_column, schema, features, file)
    if image == label:
        raise UserError(f"{file}: column {image} cannot be both image and label")
    kind = label_kind(_type_of(schema, label))
    assert kind is not None
    return Columns(
        image,
        label,
        _split_column(schema, options, file),
        kind,
        class_names(features.get(label, {}), file),
        image_kind(_type_of(schema, image)) == "path",
    )


def hub_features(schema: pa.Schema) -> Features:
    """What the metadata that hub data sets carry says of each column; empty without it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: told for name, told in features.items() if isinstance(told, dict)}


def class_names(feature: dict[str, Any], file: str) -> dict[int, str] | None:
    """Number → class name as the hub's metadata has it, a list or {"0": "cat", …}; None without.

    Raises:
        UserError: the numbers are none.
    """
    names = feature.get("names")
    if isinstance(names, list) and names:
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict) and names:
        try:
            named = {int(number): str(name) for number, name in names.items()}
        except ValueError:
            named = {}
        if sorted(named) != list(range(len(names))):
            raise UserError(f"{file}: its metadata does not number the classes from 0 up")
        return dict(sorted(named.items()))
    return None


def storage_type(kind: pa.DataType) -> pa.DataType:
    """A type without what is wrapped around it: extension types and dictionaries."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def label_kind(kind: pa.DataType) -> LabelKind | None:
    """How a type can say a class, or None."""
    kind = storage_type(kind)
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    return "text" if is_text(kind) else None


def image_kind(kind: pa.DataType) -> Literal["bytes", "list", "path"] | None:
    """How a type can hold an image, looking into a struct, or None."""
    kind = storage_type(kind)
    if pa.types.is_struct(kind):
        held = _field_kind(kind, "bytes")
        if held in ("bytes", "list"):
            return held
        # `bytes` of no type: no row has any.
        return "path" if _field_kind(kind, "path") == "path" else None
    if is_binary(kind):
        return "bytes"
    if is_list(kind):
        return "list" if kind.value_type in (pa.uint8(), pa.int8()) else None
    return "path" if is_text(kind) else None


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text."""
    return _is_any(kind, "string", "large_string", "string_view")


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    return _is_any(kind, "binary", "large_binary", "binary_view", "fixed_size_binary")


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists of one kind or another."""
    return _is_any(kind, "list", "large_list", "list_view", "large_list_view", "fixed_size_list")


def _is_any(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _field_kind(struct: pa.StructType, name: str) -> Literal["bytes", "list", "path"] | None:
    at = struct.get_field_index(name)
    if at < 0:
        return None
    kind = storage_type(struct.field(at).type)
    return None if pa.types.is_struct(kind) else image_kind(kind)


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    return schema.field(schema.get_all_field_indices(name)[0]).type


_WANTED: dict[str, tuple[Callable[[pa.DataType], str | None], str, tuple[str, ...], str]] = {
    "image": (image_kind, "Image", IMAGE_NAMES, "bytes, a struct with bytes, or paths of files"),
    "label": (label_kind, "ClassLabel", LABEL_NAMES, "whole numbers or text"),
}


def _choose(
    role: Literal["image", "label"],
    option: str | None,
    schema: pa.Schema,
    features: Features,
    file: str,
) -> str:
    """The column for a role."""
    takes, feature, known, wanted = _WANTED[role]
    remedy = f"--{role}-column"
    if option is not None:
        _require(schema, option, file, remedy)
        if not takes(_type_of(schema, option)):
            raise UserError(
                f"{file}: column {option} is {_shown(schema, option)}, expected {wanted}: "
                f"cast it, or name another with {remedy}"
            )
        return option
    fit = [name for name in dict.fromkeys(schema.names) if takes(_type_of(schema, name))]
    marked = [name for name in fit if features.get(name, {}).get("_type") == feature]
    default = known[0]
    if default in marked or (not marked and default in fit and _is_sure(role, default, schema)):
        chosen = [default]
    elif marked:
        chosen = marked + [default] * (default in fit and _is_sure(role, default, schema))
    elif default in schema.names and default not in fit:
        raise UserError(
            f"{file}: column {default} is {_shown(schema, default)}, expected {wanted}: "
            f"cast it, or name another with {remedy}"
        )
    else:
        chosen = _by_name(role, fit, schema)
    if len(chosen) == 1:
        _require(schema, chosen[0], file, remedy)
        return chosen[0]
    if chosen:
        raise UserError(
            f"{file} has several columns that may be the {role}: {', '.join(chosen)}: "
            f"name one with {remedy}"
        )
    columns = ", ".join(f"{name} ({_shown(schema, name)})" for name in schema.names[:20])
    hive = [part for part in file.split("/") if "=" in part and not split_of_folder(part)]
    folder = f" (its folder's {hive[0]} is not read: write it into the file)" if hive else ""
    raise UserError(
        f"{file} has no column {default!r}{folder}, only {columns}: name one with {remedy} "
        f"({wanted})"
    )


def _is_sure(role: str, name: str, schema: pa.Schema) -> bool:
    """Whether a column of the very name fits beyond doubt; text called `image` may be anything."""
    return role == "label" or image_kind(_type_of(schema, name)) != "path"


def _by_name(role: str, fit: Sequence[str], schema: pa.Schema) -> list[str]:
    """Columns that their names speak for, where neither metadata nor the usual name is there."""
    if role == "label":
        return [name for name in fit if name.lower() in LABEL_NAMES]
    held = [name for name in fit if image_kind(_type_of(schema, name)) != "path"]
    structs = [name for name in held if pa.types.is_struct(storage_type(_type_of(schema, name)))]
    named = [name for name in held if name.lower() in IMAGE_NAMES]
    paths = [name for name in fit if name.lower() in (*IMAGE_NAMES, *PATH_NAMES)]
    return named or structs or paths


def _require(schema: pa.Schema, name: str, file: str, remedy: str) -> None:
    count = len(schema.get_all_field_indices(name))
    if count == 0:
        columns = ", ".join(schema.names[:20])
        raise UserError(f"{file} has no column {name!r}, only {columns}: name one with {remedy}")
    if count > 1:
        raise UserError(f"{file} has {count} columns called {name!r}: rename all but one")


def _split_column(schema: pa.Schema, options: PrepareOptions, file: str) -> str | None:
    wanted = options.split_column
    if wanted is None:
        ours = [name for name in schema.names if name.lower() == SPLIT_NAME]
        return (
            ours[0] if len(ours) == 1 and is_text(storage_type(_type_of(schema, ours[0]))) else None
        )
    _require(schema, wanted, file, "--split-column")
    if not is_text(storage_type(_type_of(schema, wanted))):
        raise UserError(
            f"{file}: column {wanted} is {_shown(schema, wanted)}, expected text such as train, "
            "validation, test: cast it, or name another with --split-column"
        )
    return wanted


def _shown(schema: pa.Schema, name: str) -> str:
    text = " ".join(str(_type_of(schema, name)).split())
    return text if len(text) <= 80 else text[:77] + "…"
