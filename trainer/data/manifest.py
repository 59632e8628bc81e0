"""What a data folder holds: the one file that makes a pile of shards a data set.

The manifest is written last, so a folder that has one is whole. It names every file with its size and checksum, the
tasks with their classes, and the image that every sample decodes to. A trainer needs the folder alone.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from trainer.errors import UserError

MANIFEST_NAME = "manifest.json"
PARTIAL_NAME = ".partial"
"""Subfolder in which a conversion works until everything in it is whole."""
FORMAT_VERSION: Literal[1] = 1

Encoding = Literal["png", "jpg", "npy"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageSpec(_Part):
    """The image that every sample decodes to."""

    height: PositiveInt
    width: PositiveInt
    channels: Literal[1, 3]
    """Grey or RGB."""
    encoding: Encoding
    """How the image member is stored; also its extension in the shard."""
    mean: tuple[float, ...]
    """Per channel, of pixels / 255, measured on the train split."""
    std: tuple[float, ...]
    """Per channel, of pixels / 255, measured on the train split."""

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> "ImageSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, one per channel")
        if min(self.std) <= 0:
            raise ValueError("std must be positive: the train images hold one single colour")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels, as a decoded image has them."""
        return self.height, self.width, self.channels


class TaskSpec(_Part):
    """One thing to learn about every sample."""

    name: str = Field(min_length=1)
    """Key of its label in each sample's JSON member, and its name in logs and configs."""
    kind: Literal["classification"] = "classification"
    """Decides the loss and the metric."""
    classes: tuple[str, ...] = Field(min_length=2)
    """What the labels 0, 1, ... mean."""


class FileSpec(_Part):
    """A file of the folder, as it was written."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name inside the folder."""
    bytes: PositiveInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardSpec(FileSpec):
    """A WebDataset tar."""

    samples: PositiveInt


class SplitSpec(_Part):
    """One split: its shards in order, where each sample lies in them, and every label in one table."""

    shards: tuple[ShardSpec, ...] = Field(min_length=1)
    """Sample ids count through the shards in this order."""
    index: FileSpec
    """`.npy` of `trainer.data.index.INDEX_DTYPE`, one row a sample."""
    labels: FileSpec
    """`.npy` of integers, samples x tasks, in the order of the manifest's tasks."""

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """All files of the split."""
        return (*self.shards, self.index, self.labels)

    @property
    def num_samples(self) -> int:
        """Samples in all its shards."""
        return sum(shard.samples for shard in self.shards)


class Manifest(_Part):
    """A data folder: what it is, what its samples hold and which files make it up."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    made_by: dict[str, Any]
    """How it was made (source, seed, options), for people and for making it again."""
    image: ImageSpec
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    splits: dict[str, SplitSpec] = Field(min_length=1)
    """By name, usually `train` and `test`."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Manifest":
        files = [spec.file for split in self.splits.values() for spec in split.files]
        for kind, names in {"task": [task.name for task in self.tasks], "file": files}.items():
            doubles = [name for name, count in Counter(names).items() if count > 1]
            if doubles:
                raise ValueError(f"{kind} names must be unique, found twice: {', '.join(doubles)}")
        return self

    def split(self, name: str) -> SplitSpec:
        """The split of that name; UserError when the data has no such split."""
        if name not in self.splits:
            raise UserError(
                f"Data {self.name!r} has no split {name!r}{did_you_mean(name, self.splits)}\n"
                f"Its splits: {', '.join(self.splits)}."
            )
        return self.splits[name]

    def num_samples(self, split: str) -> int:
        """Samples in a split."""
        return self.split(split).num_samples

    def select_tasks(self, names: Iterable[str]) -> tuple[TaskSpec, ...]:
        """The tasks of those names, in that order.

        Raises:
            UserError: a name that the data does not have, a name given twice, or no name at all.
        """
        known = {task.name: task for task in self.tasks}
        wanted = tuple(names)
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"Data {self.name!r} has no task {name!r}{did_you_mean(name, known)}\n"
                    f"Its tasks: {', '.join(known)}."
                )
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"Expected one or more different tasks, found {list(wanted)}.")
        return tuple(known[name] for name in wanted)

    def fingerprint(self, split: str) -> str:
        """SHA-256 over all that decides a split's samples: image, tasks, and the checksums of its files."""
        parts = {
            "image": self.image.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in self.tasks],
            "split": self.split(split).model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown name: `; did you mean 'left'?` or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates a data folder's manifest.

    Args:
        folder: what `paretrain data ... --out` wrote.

    Raises:
        UserError: no such folder, no manifest in it, or one that cannot be understood.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"No data folder {folder}.\nMake one, for instance with: paretrain data digits --out {folder}")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if (folder / PARTIAL_NAME).exists():
            raise UserError(f"{folder} holds an unfinished conversion.\nRun its `paretrain data ...` command again.")
        raise UserError(
            f"{folder} has no {MANIFEST_NAME}, so it is no data folder.\n"
            f"Make one, for instance with: paretrain data digits --out DIR"
        )
    again = "Make the data again with `paretrain data ...` into a new folder."
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.\n{again}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}; this paretrain reads version {FORMAT_VERSION}.\n"
            f"{again} Or use the paretrain that wrote it."
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()]
        shown = "\n".join(faults[:5]) + (f"\n  ... and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{path} is not a valid manifest:\n{shown}\n{again}") from None
