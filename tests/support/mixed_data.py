"""Small data folders to train on together: rows of two numbers, the sample id and the number of the folder."""

from pathlib import Path

import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, FeaturesSpec, RegressionSpec, TaskSpec

EVEN = ClassificationSpec(name="even", classes=("no", "yes"))
THIRD = ClassificationSpec(name="third", classes=("0", "1", "2"))


def weight(mean: float = 0.0, std: float = 1.0, unit: str = "kg") -> RegressionSpec:
    return RegressionSpec(name="weight", unit=unit, mean=mean, std=std)


def labels(sample_id: int) -> dict[str, float]:
    return {"even": 1 - sample_id % 2, "third": sample_id % 3, "weight": sample_id / 10}


def write_rows(
    out: Path,
    number: int,
    tasks: tuple[TaskSpec, ...] = (EVEN,),
    *,
    train: int = 12,
    test: int = 6,
    columns: tuple[str, ...] = ("id", "folder"),
    mean: float = 0.0,
    samples_per_shard: int = 5000,
) -> Manifest:
    """Write a folder whose every row ends with its number."""
    names = [task.name for task in tasks]

    def sample(sample_id: int) -> Sample:
        row = np.array([sample_id, number], np.float32)
        return Sample(write_npy(row), {name: labels(sample_id)[name] for name in names})

    return write_shards(
        out,
        name=out.name,
        made_by={},
        inputs=FeaturesSpec(names=columns, mean=(mean, mean), std=(10.0, 10.0)),
        tasks=tasks,
        splits={split: map(sample, range(count)) for split, count in {"train": train, "test": test}.items()},
        samples_per_shard=samples_per_shard,
    )
