"""What was computed and what it cost, kept on disk: a bench that is killed goes on where it was.

An answer from the cache is charged what it took when it was computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipelines.config import deciding
from pipelines.storage.hashes import json_hash


class Cache:
    """An append-only file of `[key, value]` lines.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, Any] = {}
        if path.exists():
            # A line that a kill cut short is no answer.
            found = path.read_bytes()
            whole = found[: found.rfind(b"\n") + 1]
            if len(whole) < len(found):
                os.truncate(path, len(whole))
            for line in whole.splitlines():
                key, value = json.loads(line)
                self._rows[key] = value
        self._file = path.open("a", encoding="utf-8")

    def get(self, *key: Any) -> Any:
        """The value under a key of JSON types, None where there is none."""
        return self._rows.get(json.dumps(key))

    def items(self) -> Iterable[tuple[str, Any]]:
        """Keys, as JSON, with their values."""
        return self._rows.items()

    def put(self, value: Any, *key: Any) -> Any:
        """Keeps a value of JSON types; gives it back."""
        text = json.dumps(key)
        self._file.write(json.dumps([text, value]) + "\n")
        self._file.flush()
        self._rows[text] = value
        return value

    def once(self, compute: Callable[[], Any], *key: Any) -> Any:
        """The value under a key, computed where there is none."""
        found = self.get(*key)
        return self.put(compute(), *key) if found is None else found


def identity(config: Any, questions: Iterable[str], splits: Any, device: str, *models: str) -> str:
    """Hash of all that decides the answer to a question, the bytes of the data included.

    Args:
        config: of the bench.
        questions: its settings that are what is asked, and not what the answer would be.
        splits: of the data's manifest.
        device: where the models run.
        models: hashes of those that are given.
    """
    asked = set(questions)
    values = deciding(config.model_dump(mode="json"))
    resolved = {key: value for key, value in values.items() if key not in asked}
    data = {name: split.sha256 for name, split in splits.items()}
    return json_hash([resolved, data, device.split(":")[0], *models])
