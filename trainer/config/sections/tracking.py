"""Tracking beside the files that a run writes."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section
from trainer.config.sections.limits import MLFLOW, WANDB_NAME

WandbName = Annotated[str, Field(pattern=WANDB_NAME, max_length=200)]


class WandbConfig(Section):
    """Tracking in Weights & Biases. metrics.jsonl and report.html are always written."""

    mode: Literal["auto", "online", "offline", "off"] = "off"
    """off: no tracking. auto: online with a key, offline without. Needs pip install 'paretrain[wandb]'."""
    project: WandbName = "paretrain"
    """Name of the project."""
    group: WandbName | None = None
    """Runs that wandb shows together. The runs of a sweep are grouped by the name in its configuration."""


class TrackConfig(Section):
    """Tracking beside wandb."""

    tensorboard: bool = False
    """true: also write the curves into RUN/tensorboard. Needs pip install 'paretrain[tensorboard]'."""
    mlflow: str | None = Field(None, pattern=MLFLOW)
    """Address of an MLflow server or store that gets the curves too: http://mlflow:5000, file:///shared/mlruns. The run
    is in the experiment of wandb.project. Needs pip install 'paretrain[mlflow]'."""
