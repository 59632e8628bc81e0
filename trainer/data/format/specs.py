"""What a data set holds: the input that every sample decodes to, and the tasks with their classes or units."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_SIDE = 8192
"""Pixels a side of the largest image that is trained on."""

Encoding = Literal["png", "jpg", "npy"]


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

    @property
    def encoder_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as an encoder gets it."""
        return self.channels, self.height, self.width


class FeaturesSpec(Part):
    """The row of numbers that every sample decodes to, float32; NaN where the table had none."""

    kind: Literal["features"] = "features"
    encoding: Literal["npy"] = "npy"
    """How the member is stored; also its extension in the shard."""
    names: tuple[str, ...] = Field(min_length=1)
    """Of the columns, in order."""
    mean: tuple[float, ...]
    """Per column, measured on the train split."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
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
    name: str = Field(min_length=1)
    """Names the task in logs and configurations, and its target in each sample."""


class ClassificationSpec(_Task):
    """One class a sample: a class number in the JSON member, null or absent where there is no label."""

    kind: Literal["classification"] = "classification"
    classes: tuple[str, ...] = Field(min_length=2)
    """What the labels 0, 1, ... mean."""


class RegressionSpec(_Task):
    """One number a sample: a number in the JSON member, null or absent where there is no label."""

    kind: Literal["regression"] = "regression"
    unit: str | None = None
    """What people see the error in. null: standard deviations of the train split."""
    mean: float
    """Measured on the train split. What is learnt is (value - mean) / std."""
    std: float = Field(gt=0)
    """Measured on the train split."""


# Its name is part of an extension, which other readers of WebDataset take from the first dot on and in lower case.
_MEMBER = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")


class SegmentationSpec(_Task):
    """One class a pixel: a grey PNG of the input's height and width; no member where there is no label at all."""

    kind: Literal["segmentation"] = "segmentation"
    name: str = _MEMBER
    """As of any task; also begins the extension of its member: lower-case letters, digits, `_` and `-`."""
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
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
    channels: int = Field(ge=1)
    """Numbers a pixel; NaN where one has no label."""
    unit: str | None = None
    """What people see the error in. null: `std`s."""
    mean: float = 0.0
    """What is learnt is (value - mean) / std."""
    std: float = Field(1.0, gt=0)

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

    name: str
    made_by: dict[str, Any]
    """How it was made (source, seed, options), for people and for making it again."""
    input: InputSpec
    tasks: TaskSpecs

    @model_validator(mode="after")
    def _pixels_have_targets(self) -> "DataSpec":
        dense = [task.name for task in self.tasks if isinstance(task, DenseTaskSpec)]
        if dense and not isinstance(self.input, ImageSpec):
            raise ValueError(f"tasks with a target a pixel need images, found {self.input.kind}: {', '.join(dense)}")
        return self


def explain(error: ValidationError) -> str:
    """The first faults of what was validated, a line each."""
    faults = error.errors()
    # Of a list with one wrong item pydantic also says that it is too short.
    causes = [one for one in faults if not any(_inside(other["loc"], one["loc"]) for other in faults)]
    lines = [f"  {'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in causes]
    return "\n".join(lines[:5]) + (f"\n  ... and {len(lines) - 5} more" if len(lines) > 5 else "")


def _inside(place: tuple[int | str, ...], whole: tuple[int | str, ...]) -> bool:
    return len(place) > len(whole) and place[: len(whole)] == whole
