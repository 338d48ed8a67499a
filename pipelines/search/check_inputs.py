"""What a config names that must be there: found in it, and looked at before anything starts.

A teacher that is not there shows days later otherwise, when the finals begin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pipelines.config import SearchConfig
from pipelines.config.common import Names, StrictModel
from pipelines.errors import UserError
from pipelines.storage.address import parse_place, without_options
from pipelines.storage.store import ObjectStore, explain
from pipelines.train.spec import LOCAL

_HUBS = ("hf-hub:", "hf_hub:")
_WEIGHTS = (
    "give a saved model's folder, a file of weights, the address of either, or the name of a timm "
    "model"
)


@dataclass(frozen=True)
class Named:
    """A setting that names a folder, a file or a model.

    Attributes:
        key: of the setting, as `--set` takes it.
        place: what it says.
        what: what is to be there.
    """

    key: str
    place: str
    what: Literal["weights", "data", "folder"]

    @property
    def address(self) -> str | None:
        """The address it is, if it is not on this machine.

        Raises:
            UserError: it is a wrong one.
        """
        found = self._parsed()
        return None if isinstance(found, Path) else found

    @property
    def path(self) -> Path:
        """Where it would be on this machine."""
        return Path(self._parsed())

    @property
    def is_in_a_hub(self) -> bool:
        """Whether it is a model of a hub's, which whoever reads it fetches."""
        return self.what == "weights" and self.place.startswith(_HUBS)

    def _parsed(self) -> Path | str:
        try:
            return parse_place(self.place.removeprefix(LOCAL))
        except ValueError as error:
            raise UserError(f"{self.key}: {error}") from None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine."""
        return self.path.is_file()

    @property
    def files(self) -> list[Path]:
        """The files of this machine that it stands for; none for an address or a timm name."""
        if self.address is not None or not self.path.exists():
            return []
        place = self.path.resolve()
        return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())


def named_places(config: StrictModel, prefix: str = "") -> Iterator[Named]:
    """All paths, addresses and names of weights in a config, wherever in it they are."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        mark = next(_marks(Annotated[field.annotation, *field.metadata, None]), None)
        if isinstance(value, StrictModel):
            yield from named_places(value, f"{key}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, StrictModel):
                    yield from named_places(item, f"{key}.{number}.")
        elif isinstance(value, Path):
            yield Named(key, str(value), "folder")
        elif isinstance(value, str) and mark is not None:
            yield Named(key, value, mark.what)


def needed(config: SearchConfig, done: Mapping[str, str]) -> list[Named]:
    """The weights that are still to be read.

    Args:
        config: of the search.
        done: stage → how it stands.
    """
    found = []
    for named in named_places(config):
        stage = named.key.partition(".")[0]
        stage = "base" if stage == "space" else stage
        unused = stage == "supernet" and not config.supernet.enabled
        if named.what == "weights" and not unused and done.get(stage) != "done":
            found.append(named)
    return found


def check_given(config: SearchConfig, num_classes: int, done: Mapping[str, str]) -> None:
    """Whether the weights are there that a search will read.

    Raises:
        UserError: some are not, or are for other classes; one line that names the key.
    """
    try:
        str(config.root.resolve()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path of storage {config.root.resolve()} holds bytes that are no UTF-8, which "
            "neither Ray nor MLflow can open: rename the folder, or set storage to another"
        ) from None
    for named in needed(config, done):
        check_weights(named, num_classes)


def check_weights(named: Named, num_classes: int | None) -> None:
    """Whether weights are there; nothing is fetched for that.

    Args:
        named: what names them.
        num_classes: of the data, where it is known.

    Raises:
        UserError: they are not, or say that they are for other classes.
    """
    if named.is_in_a_hub:
        return
    if named.address is not None:
        if not _is_stored(named, named.address):
            raise UserError(f"{named.key}: nothing is at {named.place}: {_WEIGHTS}")
        return
    place = named.path
    if not place.exists():
        known = _classes_of_timm(named)  # which has no name that begins as LOCAL does
    elif place.is_file() or any(place.iterdir()):
        known = _classes_of_saved(place)
    else:
        raise UserError(f"{named.key}: the folder {named.place} is empty: {_WEIGHTS}")
    if num_classes is not None and known not in (None, num_classes):
        raise UserError(
            f"{named.key}: {named.place} knows {known} classes, the data has {num_classes}: give a "
            "model trained on this data"
        )


def _is_stored(named: Named, address: str) -> bool:
    from pyarrow.fs import FileType  # here, as most searches name no address

    store = ObjectStore(address)
    try:
        return bool(store.filesystem.get_file_info(store.path).type != FileType.NotFound)
    except OSError as error:
        raise UserError(
            f"{named.key}: {without_options(address)} cannot be looked at: {explain(error)}"
        ) from None


def _classes_of_saved(place: Path) -> int | None:
    try:
        header: Any = json.loads((place / "model.json").read_text(encoding="utf-8"))
        return int(header["architecture"]["num_classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a file, or of another kind: whoever reads it says what is wrong with it


def _classes_of_timm(named: Named) -> int | None:
    import timm  # here: it takes seconds, and most searches name no weights

    if not timm.is_model(named.place):
        raise UserError(
            f"{named.key}: there is no {named.place} here, nor a timm model of that name: "
            + _WEIGHTS
        )
    published = timm.get_pretrained_cfg(named.place)
    if published is None or not published.has_weights:
        raise UserError(f"{named.key}: timm has no weights for {named.place}: {_WEIGHTS}")
    return int(published.num_classes)


def _marks(annotation: Any) -> Iterator[Names]:
    if get_origin(annotation) is Annotated:
        yield from (mark for mark in annotation.__metadata__ if isinstance(mark, Names))
    for part in get_args(annotation):
        yield from _marks(part)
