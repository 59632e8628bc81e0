"""The samples: where they are, how they are read and changed."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from trainer.config.section import Section


class AugmentConfig(Section):
    """Random changes of the training images, drawn from the seed, the epoch and the position alone. Off by default."""

    flip: bool = False
    """Mirror half of the images left to right, and their dense targets with them."""
    crop_padding: int = Field(0, ge=0)
    """Shift images by up to this many pixels in each direction. Pixels that enter are black; in dense targets they
    have no label."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Multiply all pixels by a factor from 1 - x to 1 + x."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Multiply each pixel's difference from the image's mean grey value by a factor from 1 - x to 1 + x."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Multiply each pixel's difference from its own grey value by a factor from 1 - x to 1 + x."""


class CacheConfig(Section):
    """Copies of remote data on this machine's disk, shared by all its processes and runs."""

    dir: Path = Path("~/.cache/paretrain")
    """Folder of the copies, best on a local disk."""
    max_gib: float = Field(100.0, gt=0, le=2**30)
    """Upper bound of all copies together, in GiB. The least recently used shards are removed first; files that are not
    copies neither count nor are removed. Data that does not fit is fetched while training; a small disk needs a
    smaller `data.shuffle_samples`."""

    @property
    def max_bytes(self) -> int:
        """Return the bound in bytes."""
        return int(self.max_gib * 2**30)


class DataConfig(Section):
    """The samples to train on."""

    path: str = Field(min_length=1)
    """Folder of WebDataset shards with a manifest.json, as `paretrain data` writes it, or its address (http(s)://,
    s3://). Remote data is fetched into the cache."""
    cache: CacheConfig = CacheConfig()
    tasks: tuple[str, ...] | None = None
    """Names of the tasks to train. null: all tasks of the manifest."""
    workers: int = Field(0, ge=0, le=1024)
    """Data worker processes per rank. 0: decode in the training process; remote data still takes one worker, so that
    the training process can report a slow server. The number does not change which samples a step trains on."""
    verify: Literal["checksum", "size"] = "checksum"
    """What is compared with the manifest before step 1: the SHA-256 of every shard, or only its size."""
    augment: AugmentConfig = AugmentConfig()
    shuffle_samples: int = Field(2**22, gt=0, le=2**40)
    """Number of samples that are shuffled together, in whole shards; a smaller split is permuted as a whole. Remote
    data may need fewer: two such groups and the test split must fit the cache together."""
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Fraction of the training samples that may be unreadable in an epoch before the run stops. Unreadable samples have
    no effect on the training."""
