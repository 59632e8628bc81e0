"""Encoders, heads and tasks. This package imports torch and einops only; it knows no processes, files or training."""

from models.activation_checkpointing import checkpoint_activations
from models.build import build_encoder, build_model
from models.heads.towers import Tower, training_losses
from models.multitask import MultiTaskModel
from models.tasks import (
    Classification,
    DenseRegression,
    Regression,
    Segmentation,
    Task,
    ratios,
    task_losses,
    task_measures,
)

__all__ = [
    "Classification",
    "DenseRegression",
    "MultiTaskModel",
    "Regression",
    "Segmentation",
    "Task",
    "Tower",
    "build_encoder",
    "build_model",
    "checkpoint_activations",
    "ratios",
    "task_losses",
    "task_measures",
    "training_losses",
]
