"""The samples: where they are, how they are read and changed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import Section

MAX_SHARE = 1e6
SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


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


class SourceConfig(Section):
    """One of several data folders that a run is trained on together."""

    path: str = Field(min_length=1, examples=["data/digits"])
    """Folder or address, as `data.path`."""
    share: float = Field(1.0, gt=0, le=MAX_SHARE)
    """How many samples of each step are of this source, in proportion to the shares of the others."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks whose labels in this source are used. null: all tasks of its manifest."""


class DataConfig(Section):
    """The samples to train on, of one folder (`path`) or of several (`sources`)."""

    path: str | None = Field(None, min_length=1, examples=["data/digits"])
    """Folder of WebDataset shards with a manifest.json, as `paretrain data` writes it, or its address (http(s)://,
    s3://). Remote data is fetched into the cache."""
    sources: dict[str, SourceConfig] = Field({})
    """Several folders in place of `path`, by names of your choice. Each step has a fixed number of samples of each."""
    temperature: float | None = Field(None, ge=0, le=1)
    """Take the samples of each step from the sources in proportion to size^temperature; size is the number of train
    samples. 0: equally many of each; 1: in proportion to the sizes. null: by `share`."""
    multiple_of: int = Field(1, ge=1, le=2**20)
    """Make the number of samples of each source in a step a multiple of this one. The number of processes must divide
    it, or the samples that there are of each source."""
    cache: CacheConfig = CacheConfig()
    tasks: tuple[str, ...] | None = None
    """Names of the tasks to train. null: all tasks of the data."""
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
    """Fraction of the training samples of a source that may be unreadable in an epoch before the run stops. Unreadable
    samples have no effect on the training."""

    @property
    def folders(self) -> Mapping[str, SourceConfig]:
        """Return the sources in the order of their names; the folder `path` as the only one, without a name."""
        if self.path is not None:
            return {"": SourceConfig(path=self.path)}
        return dict(sorted(self.sources.items()))

    @property
    def places(self) -> str:
        """Return where the data is, for messages."""
        return ", ".join(source.path for source in self.folders.values())

    @model_validator(mode="after")
    def _one_folder_or_several(self) -> Self:
        if (self.path is None) == (not self.sources):
            found, then = ("neither", "data.path=FOLDER, or name sources")
            if self.path is not None:
                found, then = ("both", "data.sources={} to use the path alone, or data.path=null")
            raise ValueError(f"expected either path or sources, found {found}. Type {then}")
        if not self.sources and (self.temperature is not None or self.multiple_of != 1):
            raise ValueError("temperature and multiple_of have an effect with sources only. Leave them out")
        for name in self.sources:
            if not re.fullmatch(SOURCE_NAME, name):
                raise ValueError(f"sources.{name[:80]}: expected a name of at most 64 letters, digits, - and _")
        return self

    @model_validator(mode="after")
    def _shares_or_a_temperature(self) -> Self:
        shares = [name for name, source in self.sources.items() if source.share != 1]
        if self.temperature is not None and shares:
            raise ValueError(
                f"temperature={self.temperature:g} and sources.{shares[0]}.share both say how many samples a step has: "
                "leave one of them out"
            )
        return self
