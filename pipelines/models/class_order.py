"""A model's classes by name: matched with the data's, the head put into their order.

Names come from timm's `label_names`, a saved model's header, or a class map; ImageNet's from timm's
list of synsets, where a pretrained model and the data both are ImageNet's.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from pipelines.errors import UserError
from tokenpool.models.preprocessing import class_names

_SYNSET = re.compile(r"n\d{8}")
# How two names may be the same: as written, in another spelling, by the first of several words.
_READINGS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: re.sub(r"[\s_\-]+", " ", name).strip().casefold(),
    lambda name: re.sub(r"[\s_\-]+", " ", name.split(",")[0]).strip().casefold(),
)


def known_names(model: nn.Module, classes: Sequence[str]) -> list[list[str]]:
    """What a model's outputs are called, in their order, each way it is known; empty if it is not.

    The data's classes tell whether they are ImageNet's.
    """
    found = []
    names = class_names(model)
    config = getattr(model, "pretrained_cfg", None) or {}
    if names is not None:
        found.append(names)
        described = config.get("label_descriptions")
        if isinstance(described, dict) and all(name in described for name in names):
            found.append([str(described[name]) for name in names])
    elif config.get("architecture") and all(map(_SYNSET.fullmatch, classes)):
        subset = infer_imagenet_subset(model)
        if subset:
            found.append(list(ImageNetInfo(subset).label_names()))
    return [names for names in found if len(names) == getattr(model, "num_classes", len(names))]


def order_of(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """For each of the data's classes, which of the model's it is; None where names do not tell."""
    if list(names) == list(classes):
        return list(range(len(names)))
    for reading in _READINGS:
        ours, theirs = [reading(name) for name in classes], [reading(name) for name in names]
        if len(set(theirs)) == len(theirs) and sorted(ours) == sorted(theirs):
            place = {name: index for index, name in enumerate(theirs)}
            return [place[name] for name in ours]
    return None


def match_classes(
    model: nn.Module, classes: Sequence[str], class_map: Path | None = None
) -> tuple[list[int] | None, str]:
    """Which of the model's outputs belongs to each of the data's classes, and a line that says so.

    Args:
        model: knows as many classes as the data has.
        classes: the data's, in its order.
        class_map: a file of the model's names in its order, instead of what it knows itself.

    Returns:
        The order, None where the model's names are not known; and what to say of it.

    Raises:
        UserError: names are known and are not the data's.
    """
    known = known_names(model, classes)
    if class_map is not None:
        known = [read_class_map(class_map)]
        if len(known[0]) != len(classes):
            raise UserError(
                f"{class_map} names {len(known[0])} classes, the data has {len(classes)}"
            )
    if not known:
        return None, (
            "the model does not say what its classes are called: taken in the data's order, "
            f"{classes[0]!r} to {classes[-1]!r}"
        )
    for names in known:
        order = order_of(names, classes)
        if order == list(range(len(order or ()))):
            return order, f"classes: the model's are the data's, {classes[0]!r} to {classes[-1]!r}"
        if order is not None:
            moved = sum(place != index for index, place in enumerate(order))
            return order, (
                f"classes: {moved} of {len(order)} stand in another order in the model: matched by "
                "name, its head is put into the data's order"
            )
    names = known[0]
    strange = next((n for n in classes if n not in names), None)
    if strange is None:
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(
            f"two of the model's classes are called {twice!r}, so names do not tell which of the "
            "data's is which: give --class-map FILE with the data's names in the model's order, "
            "each once"
        )
    raise UserError(
        f"the data's class {strange!r} is none of the model's ({names[0]!r} to {names[-1]!r}): "
        "give data it was trained on, or --class-map FILE with the data's names in the model's "
        "order"
    )


@torch.no_grad()
def reorder_head(model: Any, order: Sequence[int], classes: Sequence[str]) -> None:
    """Puts a linear head (a distilled model's two) into an order; the model knows the new names.

    Raises:
        UserError: the head is not linear.
    """
    if list(order) != list(range(len(order))):
        index = torch.tensor(list(order))
        for name in ("head", "head_dist"):
            head = getattr(model, name, None)
            if head is None and name == "head_dist":
                continue
            if not isinstance(head, nn.Linear):
                raise UserError(
                    f"the classes stand in another order, and a head that is a "
                    f"{type(head).__name__} cannot be put into it: prepare the data in the model's"
                )
            for part in (head.weight, head.bias):
                if part is not None:
                    part.copy_(part[index.to(part.device)].clone())
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    model.pretrained_cfg = model.default_cfg = config | {
        "label_names": list(classes),
        "num_classes": len(classes),
    }


def read_class_map(path: Path) -> list[str]:
    """Names in the model's order, from a file of one name a line, of names and numbers, or JSON.

    Lines may be `name`, `name index` or `index name` (by tab, comma, colon, equals or space), or
    `synset words…`, of which the synset is the name. JSON is a list, `{name: index}` or
    `{index: name}`.

    Raises:
        UserError: it cannot be read, or its numbers are not 0 to n - 1.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text of UTF-8, or no JSON"
        raise UserError(f"--class-map {path}: {reason}") from None
    if isinstance(found, list):
        return [str(name) for name in found]
    if isinstance(found, dict):
        pairs = [(str(a), str(b)) for a, b in found.items()]
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise UserError(f"--class-map {path} is empty")
        split = [_numbered(line) for line in lines]
        if not all(split):
            synsets = [_SYNSET.match(line) for line in lines]
            if all(synsets):
                return [line.split()[0].rstrip(",:") for line in lines]
            return lines
        pairs = [pair for pair in split if pair is not None]
    if not all(b.lstrip("-").isdecimal() for _, b in pairs):
        pairs = [(b, a) for a, b in pairs]
    try:
        placed = {int(index): name for name, index in pairs}
    except ValueError:
        raise UserError(f"--class-map {path} gives no numbers to its names") from None
    if sorted(placed) != list(range(len(pairs))):
        raise UserError(
            f"--class-map {path}: the numbers of its {len(pairs)} names are not 0 to "
            f"{len(pairs) - 1}, each once"
        )
    return [placed[index] for index in range(len(pairs))]


def _numbered(line: str) -> tuple[str, str] | None:
    """(name, number) of a line that has both, with the number first or last."""
    for pattern, name, number in (
        (r"(.*\S)\s*[\t,:=;]\s*(\d+)", 1, 2),
        (r"(\d+)\s*[\t,:=;]\s*(\S.*)", 2, 1),
        (r"(.*\S)\s+(\d+)", 1, 2),
        (r"(\d+)\s+(\S.*)", 2, 1),
    ):
        match = re.fullmatch(pattern, line)
        if match:
            (cell,) = next(csv.reader([match.group(name)]), [""])[:1] or [""]
            whole = match.group(name)
            return (cell if whole.startswith('"') else whole, match.group(number))
    return None
