"""What makes two configurations the same one: what decides the result, and its hash."""

from __future__ import annotations

from typing import Any

from pipelines.storage.hashes import json_hash


def config_hash(resolved: dict[str, Any]) -> str:
    """Hash of what decides a search's result."""
    return json_hash(deciding(resolved))


# Of a training job: they change when it is saved and what it does in distress, not its result.
# And how many jobs run side by side, which follows from the cluster.
_SAFEGUARDS = (
    "max_concurrent",
    "micro_batch",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "max_bad_steps",
    "max_rollbacks",
    "stall_minutes",
    "full_disk_minutes",
)


def deciding(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without what only says where things lie, safeguards and the budget."""
    data = {
        key: value
        for key, value in resolved.get("data", {}).items()
        if key not in ("path", "address")
    }
    kept = {key: value for key, value in resolved.items() if key not in ("storage", "budget")}
    kept |= {"data": data}
    return _without_safeguards(kept)


def _without_safeguards(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_safeguards(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _SAFEGUARDS
    }


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old → new` for each leaf of two resolved configs that differs."""
    rows: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            rows += differences(before, after, f"{name}.")
        elif before != after:
            rows.append(f"{name}: {before} → {after}")
    return rows
