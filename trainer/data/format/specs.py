"""Specs of a data set: the input that every sample decodes to, and the tasks with their classes or units."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_serializer, model_validator

from trainer.errors import UserError, did_you_mean

# models/tasks.py has the same two: models must not import the trainer, and this module must not load torch.
MISSING = -1
"""Class index of a sample without a label; a missing value is NaN."""

UNLABELLED = 255
"""Class index of a pixel without a label."""

MAX_SIDE = 8192
"""Largest height and width of an image, in pixels."""

Encoding = Literal["png", "jpg", "npy"]

MAX_NAME = 200
"""Longest name of a task, a class, a unit, a column or a data set, in characters."""

SMALLEST_STD = 1e-6
"""Smallest std of pixels / 255. They are rounded to six digits, so no smaller positive value exists."""

LARGEST = 1e30
"""Bound of labels, means and standard deviations; 1 / LARGEST is the smallest standard deviation. Beyond it,
differences and squares could overflow float32, which ends at 3e38."""

MOST_STDS = 1e6
"""Largest distance of a value from the mean, in standard deviations. None of n values is further than sqrt(n) from
their own mean, so a larger distance means that mean or std belongs to other data."""

MAX_BYTES = 256 << 20
"""Size limit of a stored member."""


def check_name(name: str) -> str:
    """Return a name unchanged, or refuse one that is unsafe in tables, logs and file formats.

    Brackets, quotes, letters of any script and spaces are allowed; code that displays a name escapes it.

    Raises:
        ValueError: the name is empty or too long, or contains line breaks, control characters, characters that change
            the direction of text, or surrogates.
    """
    if not name.strip() or len(name) > MAX_NAME:
        raise ValueError(f"a name has from 1 to {MAX_NAME} characters that are not all spaces, found {len(name)}")
    for letter in name:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS:
            raise ValueError(f"a name has no line breaks and no control characters, found {letter!r} in {name[:40]!r}")
    return name


_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

Name = Annotated[str, AfterValidator(check_name)]
"""Name of a task, a class, a unit, a column or a data set."""


def check_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names unchanged, or refuse duplicates.

    Raises:
        ValueError: a name appears twice.
    """
    if doubles := doubled(names):
        raise ValueError(f"names must be different, found twice: {', '.join(map(repr, doubles[:5]))}")
    return names


Names = Annotated[tuple[Name, ...], AfterValidator(check_different)]

Mean = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Std = Annotated[float, Field(ge=1 / LARGEST, le=LARGEST)]


class Part(BaseModel):
    """Base of the models that make up a manifest."""

    # JSON has no NaN: a manifest with one could not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSpec(Part):
    """The image that every sample decodes to, uint8."""

    kind: Literal["image"] = "image"
    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
    channels: Literal[1, 3]
    """Grey or RGB."""
    encoding: Encoding
    """How the image member is stored; also its extension in the shard."""
    stored_sizes: Literal["exact", "any"] = "exact"
    """any: stored images may have other sizes, and are resized to height x width while they are decoded."""
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    """Per channel, of pixels / 255, measured on the train split."""
    std: tuple[Annotated[float, Field(le=1)], ...]
    """Per channel, of pixels / 255, measured on the train split: at most 0.5; 1 leaves them unchanged."""

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> "ImageSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, one per channel")
        if min(self.std) < SMALLEST_STD:
            raise ValueError(
                f"std must be positive, at least {SMALLEST_STD:g}: the train images have one single colour"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a decoded image."""
        return self.height, self.width, self.channels

    @property
    def encoder_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an encoder's input."""
        return self.channels, self.height, self.width


class FeaturesSpec(Part):
    """The row of numbers that every sample decodes to, float32; NaN if a value is missing."""

    kind: Literal["features"] = "features"
    encoding: Literal["npy"] = "npy"
    """How the member is stored; also its extension in the shard."""
    names: Names = Field(min_length=1)
    """Names of the columns, in order."""
    mean: tuple[Mean, ...]
    """Per column, measured on the train split."""
    std: tuple[Std, ...]
    """Per column, measured on the train split; 1 for a constant column."""

    @model_validator(mode="after")
    def _one_number_per_column(self) -> "FeaturesSpec":
        if not len(self.names) == len(self.mean) == len(self.std):
            raise ValueError(
                f"names, mean and std need the same number of entries, found {len(self.names)}, {len(self.mean)} and "
                f"{len(self.std)}"
            )
        return self

    @property
    def shape(self) -> tuple[int]:
        """The number of columns."""
        return (len(self.names),)

    @property
    def encoder_shape(self) -> tuple[int]:
        """The number of columns."""
        return self.shape


InputSpec = Annotated[ImageSpec | FeaturesSpec, Field(discriminator="kind")]


class _Task(Part):
    name: Name
    """Identifies the task in logs and configurations, and its target in each sample."""


class ClassificationSpec(_Task):
    """One class per sample: its index in the JSON member; null or absent without a label."""

    kind: Literal["classification"] = "classification"
    classes: Names = Field(min_length=2)
    """What the labels 0, 1, ... mean."""


class RegressionSpec(_Task):
    """One value per sample: a number in the JSON member; null or absent without a label."""

    kind: Literal["regression"] = "regression"
    unit: Name | None = None
    """Unit in which errors are shown. null: standard deviations of the train split."""
    mean: Mean
    """Measured on the train split. The target is (value - mean) / std."""
    std: Std
    """Measured on the train split."""


# The name is part of an extension, which other WebDataset readers take from the first dot on, in lower case.
_MEMBER = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")


class _DenseTask(_Task):
    name: str = _MEMBER
    """Also the first part of the member's extension: lower-case letters, digits, `_` and `-`."""
    stored_sizes: Literal["exact", "any"] = "exact"
    """any: stored targets may have other sizes than the input, and are resized to its height and width by nearest
    neighbour."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Manifests and fingerprints of exact targets stay as earlier versions wrote them.
        return {key: value for key, value in dump(self).items() if (key, value) != ("stored_sizes", "exact")}


class SegmentationSpec(_DenseTask):
    """One class per pixel: a PNG of class numbers, grey or a palette's; no member if the sample has no labels."""

    kind: Literal["segmentation"] = "segmentation"
    classes: Names = Field(min_length=2, max_length=255)
    """What the values 0, 1, ... mean; 255 marks a pixel without a label."""

    @property
    def extension(self) -> str:
        """Extension of the target's member."""
        return f"{self.name}.png"


class DenseRegressionSpec(_DenseTask):
    """Values per pixel: float16 or float32, height x width x channels, or height x width for one channel; no member if
    the sample has no labels."""

    kind: Literal["dense_regression"] = "dense_regression"
    channels: int = Field(ge=1, le=MAX_BYTES)
    """Values per pixel; NaN marks one without a label."""
    unit: Name | None = None
    """Unit in which errors are shown. null: multiples of `std`."""
    mean: Mean = 0.0
    """The target is (value - mean) / std."""
    std: Std = 1.0

    @property
    def extension(self) -> str:
        """Extension of the target's member."""
        return f"{self.name}.npy"


ScalarTaskSpec = ClassificationSpec | RegressionSpec
"""A task with one label per sample, in the labels table."""

DenseTaskSpec = SegmentationSpec | DenseRegressionSpec
"""A task with labels for every pixel, in a member of its own."""

TaskSpec = Annotated[ScalarTaskSpec | DenseTaskSpec, Field(discriminator="kind")]
"""One task of a data set."""


def doubled(names: Iterable[str]) -> list[str]:
    """Return the names that appear more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _different(tasks: tuple[_Task, ...]) -> tuple[_Task, ...]:
    if doubles := doubled(task.name for task in tasks):
        raise ValueError(f"task names must be unique, found twice: {', '.join(doubles)}")
    return tasks


TaskSpecs = Annotated[tuple[TaskSpec, ...], Field(min_length=1), AfterValidator(_different)]


class DataSpec(Part):
    """The description of a data folder, without its files."""

    name: Name
    made_by: dict[str, Any]
    """How the data was made (source, seed, options), for people and to make it again."""
    input: InputSpec
    tasks: TaskSpecs

    @model_validator(mode="after")
    def _pixels_have_targets(self) -> "DataSpec":
        dense = [task.name for task in self.tasks if isinstance(task, DenseTaskSpec)]
        if dense and not isinstance(self.input, ImageSpec):
            raise ValueError(f"tasks with a target per pixel need images, found {self.input.kind}: {', '.join(dense)}")
        for task in self.tasks:
            if isinstance(self.input, ImageSpec) and isinstance(task, DenseRegressionSpec):
                size = 2 * self.input.height * self.input.width * task.channels  # of float16
                if size > MAX_BYTES:
                    raise ValueError(
                        f"a target of task {task.name!r} has {size:,} bytes, expected at most {MAX_BYTES:,}"
                    )
        return self

    def select_tasks(self, names: Iterable[str]) -> tuple[TaskSpec, ...]:
        """Return the tasks of these names, in this order.

        Raises:
            UserError: a name is unknown or given twice, or there is no name at all.
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
