"""What a data set holds: the input that every sample decodes to, and the tasks with their classes or units."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import UserError
from trainer.plain import one_line

MAX_SIDE = 8192
"""Pixels a side of the largest image that is trained on."""

Encoding = Literal["png", "jpg", "npy"]

MAX_NAME = 200
"""Characters of a name of a task, a class, a unit, a column or a data set."""

SMALLEST_STD = 1e-6
"""Of an image's pixels / 255: they are measured to six digits, so no other that is not 0 is smaller."""

LARGEST = 1e30
"""Of labels, means and standard deviations; and 1 / LARGEST is the smallest standard deviation. Beyond that float32,
which ends at 3e38, has no differences and squares of them."""

MOST_STDS = 1e6
"""How far a value may be from its mean, in standard deviations. That of n values is at most sqrt(n) away, so it takes
a mean or a standard deviation of other data to be further."""

MAX_BYTES = 256 << 20
"""No part of a sample is larger, as it is stored."""


def check_name(name: str) -> str:
    """Return a name as it is, or refuse what cannot be kept safely in tables, logs and file formats.

    Brackets, quotes, letters of any script and blanks are fine; whoever shows a name escapes it.

    Raises:
        ValueError: it is empty, too long, or has line breaks, control characters, characters that turn the direction
            of the text, or halves of characters.
    """
    if not name.strip() or len(name) > MAX_NAME:
        raise ValueError(f"a name has from 1 to {MAX_NAME} characters and more than blanks, found {len(name)}")
    for letter in name:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS:
            raise ValueError(f"a name has no line breaks and no control characters, found {letter!r} in {name[:40]!r}")
    return name


_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

Name = Annotated[str, AfterValidator(check_name)]
"""Of a task, a class, a unit, a column or a data set."""


def check_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names as they are, or refuse one that is there twice.

    Raises:
        ValueError: naming those.
    """
    if doubles := doubled(names):
        raise ValueError(f"names must be different, found twice: {', '.join(map(repr, doubles[:5]))}")
    return names


Names = Annotated[tuple[Name, ...], AfterValidator(check_different)]

Mean = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Std = Annotated[float, Field(ge=1 / LARGEST, le=LARGEST)]


class Part(BaseModel):
    """A part of a manifest, or of what becomes one."""

    # JSON knows no NaN: what was written could not be read again.
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
    """any: the stored images may have other sizes, and are resized to height x width while they are decoded."""
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    """Per channel, of pixels / 255, measured on the train split."""
    std: tuple[Annotated[float, Field(le=1)], ...]
    """Per channel, of pixels / 255, measured on the train split: at most 0.5; 1 leaves them as they are."""

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> "ImageSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, one per channel")
        if min(self.std) < SMALLEST_STD:
            raise ValueError(
                f"std must be positive, at least {SMALLEST_STD:g}: the train images hold one single colour"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels, as a decoded image has them."""
        return self.height, self.width, self.channels

    @property
    def encoder_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as an encoder gets it."""
        return self.channels, self.height, self.width


class FeaturesSpec(Part):
    """The row of numbers that every sample decodes to, float32; NaN where the table had none."""

    kind: Literal["features"] = "features"
    encoding: Literal["npy"] = "npy"
    """How the member is stored; also its extension in the shard."""
    names: Names = Field(min_length=1)
    """Of the columns, in order."""
    mean: tuple[Mean, ...]
    """Per column, measured on the train split."""
    std: tuple[Std, ...]
    """Per column, measured on the train split; 1 for a column of one single value."""

    @model_validator(mode="after")
    def _one_number_per_column(self) -> "FeaturesSpec":
        if not len(self.names) == len(self.mean) == len(self.std):
            raise ValueError(
                f"names, mean and std need as many entries, found {len(self.names)}, {len(self.mean)} and "
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
    """Names the task in logs and configurations, and its target in each sample."""


class ClassificationSpec(_Task):
    """One class a sample: a class number in the JSON member, null or absent where there is no label."""

    kind: Literal["classification"] = "classification"
    classes: Names = Field(min_length=2)
    """What the labels 0, 1, ... mean."""


class RegressionSpec(_Task):
    """One number a sample: a number in the JSON member, null or absent where there is no label."""

    kind: Literal["regression"] = "regression"
    unit: Name | None = None
    """What people see the error in. null: standard deviations of the train split."""
    mean: Mean
    """Measured on the train split. What is learnt is (value - mean) / std."""
    std: Std
    """Measured on the train split."""


# Its name is part of an extension, which other readers of WebDataset take from the first dot on and in lower case.
_MEMBER = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")


class SegmentationSpec(_Task):
    """One class a pixel: a grey PNG of the input's height and width; no member where there is no label at all."""

    kind: Literal["segmentation"] = "segmentation"
    name: str = _MEMBER
    """As of any task; also begins the extension of its member: lower-case letters, digits, `_` and `-`."""
    classes: Names = Field(min_length=2, max_length=255)
    """What the values 0, 1, ... mean; 255 is a pixel without a label."""

    @property
    def extension(self) -> str:
        """Of the member that holds the target."""
        return f"{self.name}.png"


class DenseRegressionSpec(_Task):
    """Some numbers a pixel: float16 or float32, height x width x channels; no member where there is no label at all."""

    kind: Literal["dense_regression"] = "dense_regression"
    name: str = _MEMBER
    """As of any task; also begins the extension of its member: lower-case letters, digits, `_` and `-`."""
    channels: int = Field(ge=1, le=MAX_BYTES)
    """Numbers a pixel; NaN where one has no label."""
    unit: Name | None = None
    """What people see the error in. null: `std`s."""
    mean: Mean = 0.0
    """What is learnt is (value - mean) / std."""
    std: Std = 1.0

    @property
    def extension(self) -> str:
        """Of the member that holds the target."""
        return f"{self.name}.npy"


DenseTaskSpec = SegmentationSpec | DenseRegressionSpec
"""A target for every pixel, in a member of its own."""

TaskSpec = Annotated[ClassificationSpec | RegressionSpec | DenseTaskSpec, Field(discriminator="kind")]
"""One thing to learn about every sample."""


def doubled(names: Iterable[str]) -> list[str]:
    """Names that stand there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _different(tasks: tuple[_Task, ...]) -> tuple[_Task, ...]:
    if doubles := doubled(task.name for task in tasks):
        raise ValueError(f"task names must be unique, found twice: {', '.join(doubles)}")
    return tasks


TaskSpecs = Annotated[tuple[TaskSpec, ...], Field(min_length=1), AfterValidator(_different)]


class DataSpec(Part):
    """What a data folder is, before anything is said of its files."""

    name: Name
    made_by: dict[str, Any]
    """How it was made (source, seed, options), for people and for making it again."""
    input: InputSpec
    tasks: TaskSpecs

    @model_validator(mode="after")
    def _pixels_have_targets(self) -> "DataSpec":
        dense = [task.name for task in self.tasks if isinstance(task, DenseTaskSpec)]
        if dense and not isinstance(self.input, ImageSpec):
            raise ValueError(f"tasks with a target a pixel need images, found {self.input.kind}: {', '.join(dense)}")
        for task in self.tasks:
            if isinstance(self.input, ImageSpec) and isinstance(task, DenseRegressionSpec):
                size = 2 * self.input.height * self.input.width * task.channels  # of float16
                if size > MAX_BYTES:
                    raise ValueError(
                        f"a target of task {task.name!r} has {size:,} bytes, expected at most {MAX_BYTES:,}"
                    )
        return self


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Make faults of what is specified inside errors for the user, which begin with `where`.

    Raises:
        UserError: in place of a ValidationError.
    """
    try:
        yield
    except ValidationError as error:
        raise UserError(f"{where}:\n{explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first faults of what was validated, a line each."""
    faults = error.errors()
    # Of a list with one wrong item pydantic also says that it is too short.
    causes = [one for one in faults if not any(_inside(other["loc"], one["loc"]) for other in faults)]
    lines = [f"  {_place(fault['loc'])}: {one_line(fault['msg'])}" for fault in causes]
    return "\n".join(lines[:5]) + (f"\n  ... and {len(lines) - 5} more" if len(lines) > 5 else "")


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(one_line(str(part))[:MAX_NAME] for part in loc) or "the whole"


def _inside(place: tuple[int | str, ...], whole: tuple[int | str, ...]) -> bool:
    return len(place) > len(whole) and place[: len(whole)] == whole
