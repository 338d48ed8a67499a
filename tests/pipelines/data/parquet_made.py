"""Small Parquet files whose images are texts that say which class and split they are truly of."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.options import PrepareOptions
from pipelines.data.sources.parquet import parquet_source
from pipelines.data.sources.source import Source


def features(**columns: Any) -> dict[bytes, bytes]:
    """Metadata as the hub writes it."""
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def class_label(names: Any) -> dict[str, Any]:
    """A ClassLabel of the hub."""
    return {"names": names, "_type": "ClassLabel"}


def hub_file(path: Path, labels: list[Any], names: Any = None, **options: Any) -> None:
    """image (struct) and label (numbers), with class names if there are any.

    The image's bytes are "FILE ROW".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": f"{path.name} {i}".encode(), "path": None} for i in range(len(labels))]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            "image": pa.array(images, struct),
            "label": labels if isinstance(labels, pa.Array) else pa.array(labels),
        }
    )
    if names is not None:
        table = table.replace_schema_metadata(
            features(image={"_type": "Image"}, label=class_label(names))
        )
    pq.write_table(table, path, **options)


def open_made(root: Path, **options: Any) -> Source:
    """The source at a path."""
    return parquet_source(str(root), PrepareOptions(**options))


def taken(source: Source) -> list[tuple[str, str, str]]:
    """(split, class name, image as text) of every sample; errors stand where the class would."""
    return [
        (s.split, s.error or source.classes[s.label], bytes(s.data).decode("latin-1"))
        for unit in source.units
        for s in unit.read()
    ]


def per_class(source: Source) -> dict[str, dict[str, int]]:
    """How many samples of each class (or error) each split has."""
    counts: dict[str, dict[str, int]] = {}
    for split, name, _ in taken(source):
        held = counts.setdefault(split, {})
        held[name] = held.get(name, 0) + 1
    return counts
