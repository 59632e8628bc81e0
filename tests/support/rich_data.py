"""Small data folders with every kind of task, each target known from the sample's id."""

from pathlib import Path

import cv2
import numpy as np

from tests.support.tiny_data import picture, spec
from trainer.data.format.decode import encode
from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import (
    UNLABELLED,
    ClassificationSpec,
    DenseRegressionSpec,
    FeaturesSpec,
    RegressionSpec,
    SegmentationSpec,
)

SIDE = 8
IMAGE = spec("png", height=SIDE, width=SIDE, channels=3)
TASKS = (
    SegmentationSpec(name="parts", classes=("left", "right", "dark")),
    ClassificationSpec(name="even", classes=("no", "yes")),
    DenseRegressionSpec(name="depth", channels=2, unit="m", mean=1.0, std=4.0),
    RegressionSpec(name="weight", unit="kg", mean=10.0, std=5.0),
)
FEATURES = FeaturesSpec(names=("a", "b", "c"), mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))


def parts(sample_id: int) -> np.ndarray:
    map_HW = np.random.default_rng(sample_id).integers(0, 3, (SIDE, SIDE), np.uint8)
    map_HW[0, sample_id % SIDE] = UNLABELLED
    return map_HW


def depth(sample_id: int) -> np.ndarray:
    map_HWC = np.random.default_rng(sample_id).normal(1, 4, (SIDE, SIDE, 2)).astype(np.float32)
    map_HWC[1, sample_id % SIDE] = np.nan
    return map_HWC


def sample(sample_id: int) -> Sample:
    """Every third sample has no depth, every fourth no weight."""
    labels = {"even": 1 - sample_id % 2, "weight": None if sample_id % 4 == 0 else 0.5 * sample_id}
    maps = {"parts": cv2.imencode(".png", parts(sample_id))[1].tobytes()}
    if sample_id % 3:
        maps["depth"] = write_npy(depth(sample_id))
    return Sample(encode(picture(sample_id, IMAGE), "png"), labels, maps)


def write_rich(out: Path, *, train: int = 12, test: int = 5) -> Manifest:
    splits = {split: map(sample, range(count)) for split, count in {"train": train, "test": test}.items()}
    return write_shards(out, name="rich", made_by={}, inputs=IMAGE, tasks=TASKS, splits=splits, samples_per_shard=5)


def row(sample_id: int) -> np.ndarray:
    features_F = np.random.default_rng(sample_id).normal(2, 3, 3).astype(np.float32)
    features_F[sample_id % 3] = np.nan if sample_id % 2 else features_F[sample_id % 3]
    return features_F


def write_table(out: Path, *, train: int = 12, test: int = 5, num_targets: int = 3) -> Manifest:
    tasks = [RegressionSpec(name=f"t{t}", mean=float(t), std=t + 1.0, unit="cm") for t in range(num_targets)]
    splits = {
        split: (
            Sample(write_npy(row(i)), {f"t{t}": float(i * t) if (i + t) % 5 else None for t in range(num_targets)})
            for i in range(count)
        )
        for split, count in {"train": train, "test": test}.items()
    }
    return write_shards(out, name="table", made_by={}, inputs=FEATURES, tasks=tasks, splits=splits)
