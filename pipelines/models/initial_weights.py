"""Initial weights of a model: from where they come, and whether they belong to it.

Every caller (init, checkpoint, teacher, squeeze, analyze) opens its source here.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.hub import is_named, pretrained
from pipelines.models.model_metadata import assumed, compare, config_said, said_architecture
from pipelines.models.positions import fit_positions
from pipelines.models.state_dicts import read_state_dict
from pipelines.storage.address import is_address
from pipelines.storage.copies import local_path
from tokenpool.models.architecture import describe
from tokenpool.models.preprocessing import class_names, image_config, set_config
from tokenpool.patches import patches_of

logger = logging.getLogger(__name__)
_HEADS = ("head.", "head_dist.")
# What pretraining trains beside the encoder, and throws away.
_PRETRAINING = ("mask_token", "decoder_", "decoder.", "predictor.")


@dataclass(frozen=True)
class Source:
    """Weights and all that is known of their model.

    Attributes:
        name: what was asked for.
        tensors: the weights, by their names in the model.
        notes: what was chosen or left out on the way, each to be said in a line.
        architecture: what `describe` gave of the model it is from; None where nothing says it.
        partly: what a plain file says of it: `num_heads`, …
        config: of timm's `pretrained_cfg`, what is known: mean, std, crop, label names.
    """

    name: str
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    architecture: dict[str, Any] | None = None
    partly: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """How many classes its head tells apart; None without a head."""
        head = self.tensors.get("head.weight")
        return None if head is None or head.ndim != 2 else len(head)


def whole_model(source: str) -> Any:
    """The model behind a name, or in a saved model's folder; else the path of what is there.

    A source is a `tp.save` folder, a file or folder of weights as training scripts and hubs write
    them, a timm name, `hf-hub:…` or `local-dir:…`; paths may be addresses (`s3://…`).

    Raises:
        UserError: there is nothing of these, or it cannot be read safely.
    """
    if is_named(source):
        return pretrained(source)
    path = local_path(source)
    if (path / "model.json").is_file():
        try:
            return tp.load(path)
        except ValueError as error:
            raise UserError(str(error)) from None
    if not path.exists():
        raise UserError(
            f"no weights at {source}: it is neither a folder with a saved model nor a timm model's "
            "name nor a file of weights"
        )
    return path


def open_source(source: str) -> Source:
    """The weights behind a path, an address or a name, with what is known of their model.

    Raises:
        UserError: as `whole_model`.
    """
    model = whole_model(source)
    if not isinstance(model, Path):
        return Source(source, model.state_dict(), (), described(model, source), {}, _config(model))
    found = read_state_dict(model)
    architecture = said_architecture(found.said, found.tensors)
    return Source(
        source, found.tensors, found.notes, architecture, found.said, config_said(found.said)
    )


def load_into(
    model: VisionTransformer, source: str, *, head: Literal["any", "own"] = "any"
) -> VisionTransformer:
    """`fit` of what `open_source` opens."""
    return fit(model, open_source(source), head=head)


def fit(
    model: VisionTransformer, found: Source, *, head: Literal["any", "own"] = "any"
) -> VisionTransformer:
    """Loads weights into a model of another class count, image size or patch size.

    Position and patch embeddings are resampled; everything else must fit, in both directions, and
    so must what does not show in shapes, as far as the source says it. What is assumed is said.
    The model gets the source's image preprocessing (`pretrained_cfg`). A head for other classes
    starts anew; with `head="own"` it is refused.

    Raises:
        UserError: the weights are of another architecture; the message names the first key left
            over and the first lacking, or what differs.
    """
    source, notes = found.name, list(found.notes)
    own = model.state_dict()
    state = _adapted(model, found, notes)
    fresh = _fresh_head(state, own, source, head, notes)
    state = {name: value for name, value in state.items() if not (fresh and _of_head(name))}
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            raise UserError(
                f"{source} does not fit: {name} is {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} in the model"
            )
    left = sorted(state.keys() - own.keys())
    lacking = sorted(n for n in own.keys() - state.keys() if not (fresh and _of_head(n)))
    if left or lacking:
        parts = [f"it has {left[0]}, which the model lacks"] if left else []
        parts += [f"it has no {lacking[0]}"] if lacking else []
        raise UserError(f"{source} does not fit: {' and '.join(parts)}")
    for name, value in state.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{source} is not usable: {name} holds {kind} values (quantised?), not floats"
            )
        if not value.isfinite().all():
            raise UserError(f"{source} is not usable: {name} holds values that are not finite")
    ours = describe(model)
    if found.architecture is not None:
        differs = compare(found.architecture, ours)
    else:
        differs = compare(found.partly, ours)
        notes.append(assumed(found.partly, ours))
    if differs:
        raise UserError(f"{source} does not fit: {differs}")
    model.load_state_dict(state, strict=False)
    config = {k: v for k, v in found.config.items() if not (fresh and k == "label_names")}
    if config:
        size = (model.in_chans, *(patches_of(model).img_size or ()))
        own = {"input_size": size, "num_classes": ours["num_classes"]}
        set_config(model, config | own)
    for note in notes:
        logger.warning("%s: %s", source, note)
    return model


def _adapted(model: VisionTransformer, found: Source, notes: list[str]) -> dict[str, Tensor]:
    """The weights with position and patch embeddings resampled, in timm's names."""
    dropped = [name for name in found.tensors if name.startswith(_PRETRAINING)]
    if dropped:
        notes.append(f"left out, as it only serves pretraining: {', '.join(dropped[:3])}")
    # timm looks at mask_token to tell DINOv2's own names; it drops it itself.
    state = {n: v for n, v in found.tensors.items() if n not in dropped or n == "mask_token"}
    if any(n.startswith("pre_logits.") for n in state) and "head.weight" in state:
        raise UserError(
            f"{found.name} does not fit: it has pre_logits.fc.weight, a layer before the head, "
            "which the model lacks"
        )
    try:
        state = fit_positions(state, model, notes, found.architecture)
        # They are on the model's grid now; timm would guess at the one they came from.
        done = {} if "register_tokens" in state else {"pos_embed": state.pop("pos_embed", None)}
        # Each family of timm's has one of its own, by this name.
        family: Any = sys.modules[type(model).__module__]
        state = dict(family.checkpoint_filter_fn(state, model))
        return state | {name: value for name, value in done.items() if value is not None}
    except Exception as error:  # timm assumes its own shapes and fails in many ways on others
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{found.name} cannot be adapted to the model: {first}") from None


def _fresh_head(
    state: dict[str, Tensor], own: dict[str, Tensor], source: str, head: str, notes: list[str]
) -> bool:
    """Whether the head must start anew, as the source has none for these classes."""
    wanted = {name: value.shape for name, value in own.items() if _of_head(name)}
    there = {name: value.shape for name, value in state.items() if _of_head(name)}
    if not wanted or there == wanted:
        return False
    known = there.get("head.weight")
    classes = None if known is None or len(known) != 2 else known[0]
    if classes == wanted["head.weight"][0]:
        return False  # the same classes in another form: left over and lacking keys tell
    if head == "own":
        what = f"knows {classes} classes" if classes is not None else "has no head for classes"
        raise UserError(
            f"{source} {what}, the model is for {wanted['head.weight'][0]}: give weights that were "
            "trained on this data"
        )
    reason = "is for other classes" if there else "is not in it"
    notes.append(f"the head {reason} and starts anew")
    return True


def _of_head(name: str) -> bool:
    return name.startswith(_HEADS)


def described(model: Any, source: str) -> dict[str, Any]:
    """The architecture of a source's model, as `tokenpool.models.architecture.describe` gives it.

    Raises:
        UserError: it is of no kind that can be pooled and saved.
    """
    try:
        return describe(model)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _config(model: Any) -> dict[str, Any]:
    try:
        config = image_config(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    names = class_names(model)
    for key in ("mean", "std", "input_size"):
        if key in config:
            config[key] = tuple(config[key])
    return config if names is None else config | {"label_names": names}


def absolute(source: str) -> str:
    """A path for workers that run elsewhere; a name or an address as it is."""
    if is_named(source) or is_address(source) or not Path(source).exists():
        return source
    return str(Path(source).resolve())
