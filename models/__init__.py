"""Encoders, heads and tasks. This package knows torch and einops only: nothing of processes, files or training."""

from models.build import build_encoder, build_model, build_task
from models.multitask import MultiTaskModel
from models.tasks import Classification, Task, task_errors, task_losses

__all__ = [
    "Classification",
    "MultiTaskModel",
    "Task",
    "build_encoder",
    "build_model",
    "build_task",
    "task_errors",
    "task_losses",
]
