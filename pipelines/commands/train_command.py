"""`tokenpool train CONFIG.yaml`: one training job alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.search_command import going_on_later
from pipelines.config import TrainRunConfig
from pipelines.console import Screen
from pipelines.remote import Open, refuse_open_cluster


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file, e.g. tune_spaces/presets/train-digits.yaml")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: train.epochs=30. May be repeated."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Running Ray cluster; default: a local one for this job.")
    ] = None,
    i_know_this_is_open: Open = False,
) -> None:
    """Train one model, dense or pooled; goes on from its newest checkpoint if there is one."""
    from pipelines.config_file import load_as

    loaded = load_as(TrainRunConfig, config, overrides)
    refuse_open_cluster(address, i_know_this_is_open)
    screen = Screen()
    # Imported only now: Ray and torch take seconds that a wrong config need not wait for.
    from pipelines.trials.single_job import run_alone

    with going_on_later(screen):
        run_alone(loaded, screen, address)
