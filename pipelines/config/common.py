"""What every run is told: its name, its data, its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from pipelines.secrecy.guard import redactor
from pipelines.secrecy.redact import secret_places
from pipelines.storage.address import parse_place, parse_storage
from pipelines.storage.room import MINUTES
from pipelines.storage.working import local_root

Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Names:
    """Marks a text of a config that names something that must be there: where it is run."""

    what: Literal["weights", "data"]


# A saved model's folder, a file of weights, the address of either, or a timm name.
Weights = Annotated[str, Names("weights")]


def _place(given: Any, info: ValidationInfo) -> Path | str:
    if not isinstance(given, str | Path):
        raise ValueError("write a folder, or an address as s3://bucket/runs")
    # Where a search was kept once says nothing of where it is now.
    return parse_place(given) if info.context is RECORDED else parse_storage(given)


# A folder as a path; an address (s3://bucket/runs) as a text.
Place = Annotated[Path | str, BeforeValidator(_place)]

# Context of validating what a ledger holds: no secret ever got there.
RECORDED: dict[str, Any] = {}

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(StrictModel):
    """Where the images come from."""

    path: Path = Field(description="The prepared folder (betons and manifest.json).")
    address: Annotated[str, Names("data")] | None = Field(
        default=None,
        description="Where every machine fetches that folder from, once: any pyarrow or fsspec "
        "address (s3://bucket/imagenet). None: it is there.",
    )
    image_size: Positive = Field(description="Side of the square the model sees, in pixels.")
    loader: Literal["auto", "ffcv", "torchvision"] = "auto"
    loader_threads: Positive = Field(
        default=1, description="Decoding threads of each training worker."
    )


class ModelConfig(StrictModel):
    """The DeiT all widths share."""

    patch_size: Positive = 16
    depth: Positive = 12

    def num_patches(self, image_size: int) -> int:
        """Number of patch tokens of a square image, the class token not counted."""
        return (image_size // self.patch_size) ** 2


class RunConfig(StrictModel):
    """What a search and a single training run have in common."""

    name: str = Field(pattern=_NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)
    storage: Place = Field(
        default=Path("runs"),
        description="What keeps searches: a folder that all nodes see, or an address at s3://, "
        "gs:// or abfs:// (s3://bucket/runs).",
    )
    stall_minutes: float | None = Field(
        default=None,
        gt=0,
        description="A process that gives no sign of life for so long is killed, and its work "
        "goes on from the last checkpoint; none: 3, or ten times the median step if that is more.",
    )
    full_disk_minutes: float = Field(
        default=MINUTES,
        gt=0,
        description="How long a full disk is waited for; then the run ends in order.",
    )
    data: DataConfig
    model: ModelConfig

    @property
    def root(self) -> Path:
        """`storage` on this machine: the folder itself, or the one that stands for the address."""
        return local_root(self.storage)

    @model_validator(mode="after")
    def _holds_no_secret(self, info: ValidationInfo) -> RunConfig:
        if info.context is RECORDED:
            return self
        # A config is written to the ledger, to MLflow and into every job's description.
        places = secret_places(self.model_dump(mode="json"), redactor())
        if places:
            raise ValueError(
                f"{places[0]} holds a password, token or key: leave it out of the config, which is "
                "written down in many places; storage and servers read theirs from the "
                "environment (AWS_SECRET_ACCESS_KEY, …) or their own credentials files"
            )
        return self
