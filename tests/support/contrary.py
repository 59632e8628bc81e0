"""Data whose val labels are a part of what is learnt: the best evaluation is neither the first nor the last one."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from models.encoders.mlp import MLP
from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, FeaturesSpec, RegressionSpec

FEATURES = FeaturesSpec(names=("a", "b", "c", "d"), mean=(0.0,) * 4, std=(1.0,) * 4)
TASKS = (ClassificationSpec(name="sign", classes=("minus", "plus")), RegressionSpec(name="sum", mean=0.0, std=2.0))
DIES_AT = "PARETRAIN_TEST_DIES_AT"
"""Environment variable: the training forward, from 1, in which `Mortal` kills its process."""


def write_contrary(out: Path, *, val: int = 40, test: int = 30) -> Manifest:
    def samples(count: int, seed: int, part: float) -> list[Sample]:
        rows = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
        labels = [{"sign": int(row.sum() > 0), "sum": float(part * row.sum())} for row in rows]
        return [Sample(write_npy(row), label) for row, label in zip(rows, labels, strict=True)]

    splits = {"train": samples(80, 0, 1), "test": samples(test, 1, 1)} | ({"val": samples(val, 2, 0.3)} if val else {})
    return write_shards(out, name="contrary", made_by={}, inputs=FEATURES, tasks=TASKS, splits=splits)


def contrary_config(folder: Path, **train: Any) -> Path:
    """A configuration of a run on this data into `folder`/runs, evaluated every 2 steps and saved every 5."""
    write_contrary(folder / "data")
    values = {
        "name": "run",
        "output": str(folder / "runs"),
        "data": {"path": str(folder / "data")},
        "model": {"encoder": {"name": "tests.support.contrary.Mortal"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 20, "global_batch": 20, "log_every_steps": 1, "eval_every_steps": 2} | train,
        "checkpoint": {"every_steps": 5},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Mortal(MLP):
    """An encoder that kills its process in the training forward that the environment names."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape, hidden=(8,))
        self.num_forwards = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_forwards += self.training
        if self.num_forwards == int(os.environ.get(DIES_AT, -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
