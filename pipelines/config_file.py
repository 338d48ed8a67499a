"""Reads configurations from YAML, with `--set` overrides; tells in one line what is wrong."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipelines.config import SearchConfig, StrictModel
from pipelines.errors import UserError

ConfigT = TypeVar("ConfigT", bound=StrictModel)


def load_config(path: Path, overrides: list[str] | None = None) -> SearchConfig:
    """Reads a search's YAML file and applies `key.sub=value` overrides.

    Raises:
        UserError: no such file, not YAML, an unknown key, a wrong value. One line.
    """
    return load_as(SearchConfig, path, overrides)


def load_as(kind: type[ConfigT], path: Path, overrides: list[str] | None = None) -> ConfigT:
    """`load_config` for any of the configurations."""
    values = _read_yaml(path)
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_problem(kind, path, error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no config file {path}: give the path of a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    try:
        values = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: see tune_spaces/presets/digits.yaml")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: write it as key=value, for instance finals.trials=8")
    *parents, leaf = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {key}: {parent} is a value and has no keys of its own")
        node = child
    try:
        node[leaf] = _parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {_problem(error)}") from None


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError) as error:  # a day that there is not; a million brackets
        raise yaml.YAMLError(str(error)) from None


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _first_problem(kind: type[StrictModel], path: Path, error: ValidationError) -> str:
    problems = error.errors()
    # An unknown key is named first: a misspelt one also shows up as a missing one.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, leaf = problem["loc"]
        near = difflib.get_close_matches(str(leaf), _keys_at(kind, parents), n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        return f"{path}: unknown key {key}{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}: {key}: {message}{more}" if key else f"{path}: {message}{more}"


def _keys_at(kind: type[StrictModel], parents: list[Any]) -> list[str]:
    model: Any = kind
    for parent in parents:
        field = getattr(model, "model_fields", {}).get(parent)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
