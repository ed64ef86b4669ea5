"""A trained model as an object: its folder, and what it is used for, with the task that it knows."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from femtune.config import Calibrate, Evaluate, Predict
from femtune.data.objects import Table
from femtune.evaluation.aggregate import Prediction
from femtune.loop import Progress
from femtune.reporting.terminal import Show
from femtune.resolve import Data
from femtune.workflows.arguments import shown_by, with_rows
from femtune.workflows.calibrate import CalibrateResult, run_calibrate
from femtune.workflows.evaluate import EvaluateResult, run_evaluate
from femtune.workflows.keywords import (
    CalibrateSettings,
    EvaluateSettings,
    PredictSettings,
    make_settings,
)
from femtune.workflows.predict import predictions

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


@dataclass(frozen=True, repr=False)
class TrainedModel(os.PathLike[str]):
    """The folder of a trained model, which takes the place of a path everywhere.

        best = train(rows, "Qwen/Qwen3-1.7B", task="judge").best
        best.calibrate(validation)
        best.predict([{"prompt": "Why?", "response": "So."}])[0]["answer"]

    Task, scale and the other settings of its prompts are those that it was trained with.
    """

    path: Path
    """Folder of the weights, for transformers and vLLM; with LoRA, of the adapter."""

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.path)!r})"

    def predict(self, data: Data | Table, **settings: Unpack[PredictSettings]) -> list[Prediction]:
        """Return an answer with its confidence for each item: see `femtune.predict`."""
        chosen = make_settings(Predict, settings)
        return list(predictions(with_rows(data), str(self), chosen))

    def evaluate(
        self,
        data: Data | Table,
        *,
        output_dir: str | Path | None = None,
        progress: Show | Progress = "auto",
        **settings: Unpack[EvaluateSettings],
    ) -> EvaluateResult:
        """Measure the model on problems that it was not trained on: see `femtune.evaluate`."""
        chosen = make_settings(Evaluate, settings)
        with shown_by(progress) as shown:
            return run_evaluate(with_rows(data), str(self), chosen, output_dir, shown)

    def calibrate(
        self,
        data: Data | Table,
        *,
        output_dir: str | Path | None = None,
        progress: Show | Progress = "auto",
        **settings: Unpack[CalibrateSettings],
    ) -> CalibrateResult:
        """Fit a map to calibrated probabilities and store it with the model: see `femtune.calibrate`."""
        chosen = make_settings(Calibrate, settings)
        with shown_by(progress) as shown:
            return run_calibrate(with_rows(data), str(self), chosen, None, output_dir, shown)
