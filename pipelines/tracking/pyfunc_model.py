"""The registered form of a model: raw images in, logits out. MLflow runs this file by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

import tokenpool as tp


class PooledClassifier(PythonModel):
    """`predict(images uint8 [B, H, W, 3]) → logits float32 [B, classes]`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the saved model and how images are normalised."""
        folder = Path(context.artifacts["model"])
        facts = json.loads((folder / "preprocessing.json").read_text())
        self._mean = torch.tensor(facts["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(facts["std"]).view(1, 3, 1, 1)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = tp.load(folder).to(self._device)

    # MLflow warns of other type hints than this; the signature says what goes in.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Logits float32 `[B, classes]` of uint8 RGB images `[B, H, W, 3]` of the trained size."""
        images = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2)
        inputs = (images.float() / 255 - self._mean) / self._std
        with torch.no_grad():
            logits: np.ndarray = self._model(inputs.to(self._device)).float().cpu().numpy()
        return logits


mlflow.models.set_model(PooledClassifier())
