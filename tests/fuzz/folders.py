"""Small sound folders: data, a configuration, a trained run, a neighbour that nobody may touch."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.support.tiny_data import picture, spec
from trainer.data.format.decode import encode
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, RegressionSpec

IMAGE = spec("png", height=4, width=4, channels=3)
TASKS = (
    ClassificationSpec(name="even", classes=("no", "yes")),
    ClassificationSpec(name="third", classes=("none", "one", "two")),
    RegressionSpec(name="weight", unit="kg", mean=4.0, std=3.0),
)


def write_data(folder: Path) -> None:
    """Write a data folder of images with two classifications and a regression."""
    splits = {"train": map(_sample, range(24)), "test": map(_sample, range(24, 33))}
    write_shards(folder, name="small", made_by={}, inputs=IMAGE, tasks=TASKS, splits=splits, samples_per_shard=8)


def _sample(number: int) -> Sample:
    labels = {"even": 1 - number % 2, "third": number % 3, "weight": 0.5 * number}
    return Sample(encode(picture(number, IMAGE), "png"), labels)


def config(**changes: Any) -> dict[str, Any]:
    """Return the values of a configuration of a run of a few milliseconds."""
    return {
        "name": "run",
        "output": "runs",
        "data": {"path": "data"},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [8]}}, "head": {"name": "linear"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 2, "global_batch": 8, "log_every_steps": 1, "eval_every_steps": 1},
        "checkpoint": {"every_steps": 1},
    } | changes


def write_config(path: Path, **changes: Any) -> None:
    """Write such a configuration."""
    path.write_text(yaml.safe_dump(config(**changes), sort_keys=False))


def write_neighbour(folder: Path) -> None:
    """Write what looks like data and like a run, and is somebody else's."""
    for name in ("set/train-000000.tar", "set/train.labels.npy", "run/checkpoints/step_00000001/state.pt", "notes.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(0).bytes(1000))
