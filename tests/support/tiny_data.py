"""Small data folders whose every pixel and label is known from the sample's id."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data.format.decode import encode
from trainer.data.format.manifest import MANIFEST_NAME, Manifest
from trainer.data.format.shards import Sample, describe_file, write_shards
from trainer.data.format.specs import ClassificationSpec, Encoding, ImageSpec

TASKS = (
    ClassificationSpec(name="even", classes=("no", "yes")),
    ClassificationSpec(name="digit", classes=tuple("0123456789")),
)


def spec(encoding: Encoding = "npy", *, height: int = 3, width: int = 4, channels: int = 1) -> ImageSpec:
    return ImageSpec(
        height=height, width=width, channels=channels, encoding=encoding, mean=(0.5,) * channels, std=(0.25,) * channels
    )


def picture(sample_id: int, image: ImageSpec) -> np.ndarray:
    return np.random.default_rng(sample_id).integers(0, 256, image.shape, np.uint8)


def labels(sample_id: int) -> dict[str, int | None]:
    # Every fifth sample has no digit: said by null, or by saying nothing.
    if sample_id % 5 == 0:
        return {"even": 1 - sample_id % 2, "digit": None} if sample_id % 2 else {"even": 1 - sample_id % 2}
    return {"even": 1 - sample_id % 2, "digit": sample_id % 10}


def expected_digits(sample_ids: Sequence[int]) -> list[int]:
    return [-1 if sample_id < 0 or sample_id % 5 == 0 else sample_id % 10 for sample_id in sample_ids]


def sign(folder: Path) -> None:
    """Make the manifest fit the files as they are: the work of an attacker who can."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    for split in content["splits"].values():
        for file in (*split["shards"], split["index"], split["labels"]):
            file |= describe_file(folder / file["file"])
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def write_tiny(
    out: Path, *, train: int = 23, test: int = 11, samples_per_shard: int = 5, image: ImageSpec | None = None
) -> Manifest:
    image = image or spec()
    return write_shards(
        out,
        name="tiny",
        made_by={"source": "tiny"},
        inputs=image,
        tasks=TASKS,
        splits={
            split: (Sample(encode(picture(i, image), image.encoding), labels(i)) for i in range(count))
            for split, count in {"train": train, "test": test}.items()
        },
        samples_per_shard=samples_per_shard,
    )
