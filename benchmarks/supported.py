"""Which of timm's models can be pooled: every name of a ViT, built small and put through its paces.

`python -m benchmarks.supported --out docs/models.md` writes the table.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.patches import patches_of
from tokenpool.pooling import KINDS

METHODS = ("leader", "wkmedoids", "tome")
# Where timm keeps models of these classes.
_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "naflexvit")
_SIDE = 4  # patches


@dataclass(frozen=True)
class Row:
    """What became of one name.

    Attributes:
        name: timm's.
        kind: its class.
        parts: block, attention, rotary embedding and head, by their classes.
        refused: why it cannot be pooled; empty if it can.
    """

    name: str
    kind: str
    parts: tuple[str, ...]
    refused: str


def names() -> list[str]:
    """timm's names whose module has models of the classes that can be pooled."""
    return [
        n for n in timm.list_models() if model_entrypoint(n).__module__.split(".")[-1] in _MODULES
    ]


def small(name: str) -> Any:
    """The model of that name with two narrow blocks and few patches; None if of another class.

    What its name stands for beside size (layers, tokens, positions, head) is as ever.
    """
    arguments: dict[str, Any] = {"depth": 2, "num_classes": 7}
    try:
        with torch.device("meta"):
            known = timm.create_model(name, **arguments)
    except AssertionError as error:
        if "num_kv_heads" not in str(error):
            raise
        arguments["num_kv_heads"] = 1
        with torch.device("meta"):
            known = timm.create_model(name, **arguments)
    if type(known) not in KINDS:
        return None
    embed = patches_of(known)
    side = 16 * _SIDE if "hybrid" in model_entrypoint(name).__module__ else 0
    arguments |= {"img_size": side or embed.patch_size[0] * _SIDE, "embed_dim": 96, "num_heads": 2}
    if hasattr(known, "embeds"):
        del arguments["img_size"]
        arguments["pos_embed_grid_size"] = (_SIDE, _SIDE)
    torch.manual_seed(0)
    try:
        return timm.create_model(name, **arguments).eval()
    except AssertionError:  # a stem of a width of its own
        del arguments["embed_dim"], arguments["num_heads"]
        return timm.create_model(name, **arguments).eval()


def tried(name: str) -> Row | None:
    """Pools a model of the name by three methods, counts, saves and loads it.

    Raises:
        AssertionError: it can be pooled, but something about it is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = small(name)
        if model is None:
            return None
        block = model.blocks[0]
        parts = [type(block).__name__, type(getattr(block, "attn", block)).__name__]
        parts += [type(model.rope).__name__] if getattr(model, "rope", None) is not None else []
        parts.append(f"{model.global_pool or 'no'} head")
        try:
            tp.pool(model, None)
        except ValueError as error:
            return Row(name, type(model).__name__, tuple(parts), str(error))
        _check(model)
    return Row(name, type(model).__name__, tuple(parts), "")


def _check(model: Any) -> None:
    embed = patches_of(model)
    number, sides = embed.number, embed.img_size
    assert sides is not None
    images = torch.randn(2, model.in_chans, *sides)
    with torch.no_grad():
        dense = model(images)
        assert torch.equal(tp.pool(model, (number, number))(images), dense), "dense is not dense"
    for method in METHODS:
        tp.pool(model, (number * 3 // 4, number // 2), method)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            logits = model(images[:1])
        assert logits.isfinite().all(), f"{method} gives values that are not finite"
        ratio = 2 * tp.macs(model).total / counter.get_total_flops()
        assert abs(ratio - 1) <= 0.005, f"{method}: {ratio:.4f} of the counted MACs"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = tp.load(tp.save(model, Path(folder) / "model"))
        assert torch.equal(loaded(images), model(images)), "loaded it is another"
        assert torch.equal(tp.pool(model, None)(images), dense), "un-pooled it is another"


def sweep() -> Iterator[Row]:
    """One row for each name of a model of the classes."""
    for name in names():
        row = tried(name)
        if row is not None:
            yield row


def table(rows: list[Row]) -> str:
    """The rows as Markdown: one line for models made of the same parts."""
    alike: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for row in rows:
        alike.setdefault((row.kind, row.parts, row.refused), []).append(row.name)
    known = sum(not row.refused for row in rows)
    lines = [
        "# Models that can be pooled",
        "",
        "Made by `python -m benchmarks.supported --out docs/models.md`: every name that timm "
        f"{timm.__version__} has for a `VisionTransformer`, `Eva` or `NaFlexVit`, built with two "
        f"narrow blocks and {_SIDE}x{_SIDE} patches. Can be pooled means: by "
        f"{', '.join(f'`{method}`' for method in METHODS)}, MACs within 0.5 % of PyTorch's "
        "operator counter, saved and loaded with equal logits, equal to the dense model to the "
        f"last bit where nothing is pooled and after un-pooling. **{known} of {len(rows)} can.**",
        "",
        "| class | made of | names | |",
        "|---|---|---|---|",
    ]
    for (kind, parts, refused), found in sorted(
        alike.items(), key=lambda item: (item[0][2] != "", item[0])
    ):
        some = ", ".join(f"`{name}`" for name in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        verdict = "refused: " + refused.split(", which")[0] if refused else "yes"
        lines.append(f"| {kind} | {', '.join(parts)} | {some}{more} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    given = parser.parse_args()
    given.out.write_text(table(list(sweep())))


if __name__ == "__main__":
    main()
