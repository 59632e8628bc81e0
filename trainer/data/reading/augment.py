"""Augment training images with random flips, crops and colours.

The random numbers depend on (seed, epoch, position) only, so they do not change with the number of ranks or workers, or
after a resume. Augmentation runs on the device, on whole batches.

Shapes: B samples, H rows, W columns, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainer.config.sections.data import AugmentConfig
from trainer.data.format.specs import DenseRegressionSpec, ImageSpec, InputSpec, TaskSpec
from trainer.data.reading.order import Purpose, hash64
from trainer.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), as in JPEG."""


@dataclass(frozen=True)
class Draws:
    """Random numbers for each slot of a batch; None for augmentations that are off.

    Attributes:
        flip_B: bool, whether to mirror left to right.
        offset_B2: int64, rows and columns by which the crop is shifted.
        factors_B3: float32, factors of brightness, contrast and saturation.
    """

    flip_B: Tensor | None = None
    offset_B2: Tensor | None = None
    factors_B3: Tensor | None = None


NOTHING = Draws()
"""Draws of a batch that is not augmented."""


def check_augment(config: AugmentConfig, spec: InputSpec, tasks: Sequence[TaskSpec]) -> None:
    """Refuse augmentations that do not fit the input or the tasks' targets.

    Raises:
        UserError: a setting does not fit; the message names it.
    """
    settings = ", ".join(f"data.augment.{name}" for name, value in config.model_dump().items() if value)
    if settings and not isinstance(spec, ImageSpec):
        raise UserError(f"{settings}: this data has no images, but rows of {spec.kind}. Leave it out.")
    if isinstance(spec, ImageSpec) and config.crop_padding >= min(spec.height, spec.width):
        raise UserError(
            f"data.augment.crop_padding={config.crop_padding}: the images have {spec.height} x {spec.width} pixels, so "
            "a crop may contain nothing but padding. Type fewer pixels than the smaller side has."
        )
    if config.saturation and isinstance(spec, ImageSpec) and spec.channels == 1:
        raise UserError(f"data.augment.saturation={config.saturation} has no effect on grey images. Leave it out.")
    directional = [task.name for task in tasks if isinstance(task, DenseRegressionSpec)]
    if config.flip and directional:
        raise UserError(
            f"data.augment.flip=true: a mirrored image needs mirrored targets, but it is unknown whether the values of "
            f"{', '.join(directional)} depend on left and right. Type data.augment.flip=false"
        )


def draw(config: AugmentConfig, *, seed: int, epoch: int, positions_B: np.ndarray) -> Draws:
    """Draw random numbers for the samples at these positions of the epoch; a pure function of its arguments."""

    def uniform(purpose: Purpose) -> np.ndarray:
        # The upper 24 bits: a float32 between 0 and 1 cannot distinguish more.
        return (hash64(seed, epoch, positions_B, purpose) >> np.uint64(40)).astype(np.float32) / 2**24

    flip = offset = factors = None
    if config.flip:
        flip = torch.from_numpy(uniform(Purpose.FLIP) < 0.5)
    if config.crop_padding:
        num_offsets = 2 * config.crop_padding + 1
        drawn = [uniform(purpose) * np.float32(num_offsets) for purpose in (Purpose.ROW, Purpose.COLUMN)]
        # Just below 1 the product rounds up to `num_offsets` itself where that is large.
        offset_B2 = np.stack(drawn, axis=1).astype(np.int64).clip(max=num_offsets - 1) - config.crop_padding
        offset = torch.from_numpy(offset_B2)
    strengths = {
        Purpose.BRIGHTNESS: config.brightness,
        Purpose.CONTRAST: config.contrast,
        Purpose.SATURATION: config.saturation,
    }
    if any(strengths.values()):
        columns = [1 + strength * (2 * uniform(purpose) - 1) for purpose, strength in strengths.items()]
        factors = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    return Draws(flip, offset, factors)


def joined(parts: Sequence[Draws]) -> Draws:
    """Join the draws of the parts of a batch, which have the same augmentations."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.flip_B, part.offset_B2, part.factors_B3) for part in parts), strict=True)
    flip, offset, factors = (
        torch.cat(known) if (known := [part for part in column if part is not None]) else None for column in columns
    )
    return Draws(flip, offset, factors)


def cut(draws: Draws, sizes: Sequence[int]) -> list[Draws]:
    """Cut the draws of a batch into those of its parts."""
    columns = [
        [None] * len(sizes) if drawn is None else drawn.split(sizes)
        for drawn in (draws.flip_B, draws.offset_B2, draws.factors_B3)
    ]
    return [Draws(*parts) for parts in zip(*columns, strict=True)]


def move(values: Tensor, draws: Draws, fill: float) -> Tensor:
    """Mirror and crop images, or targets with a value per pixel.

    Args:
        values: shape (B, H, W) or (B, H, W, C), on any device.
        draws: the batch's draws.
        fill: value of pixels outside of the image.

    Returns:
        A tensor of the same shape; `values` itself if there is nothing to do.
    """
    flip_B, offset_B2 = draws.flip_B, draws.offset_B2
    if flip_B is None and offset_B2 is None:
        return values
    device, (num_samples, height, width) = values.device, values.shape[:3]
    rows_BH = torch.arange(height, device=device).expand(num_samples, -1)
    columns_BW = torch.arange(width, device=device).expand(num_samples, -1)
    if flip_B is not None:
        columns_BW = torch.where(flip_B.to(device)[:, None], width - 1 - columns_BW, columns_BW)
    if offset_B2 is not None:
        offset_B2 = offset_B2.to(device)
        rows_BH, columns_BW = rows_BH + offset_B2[:, :1], columns_BW + offset_B2[:, 1:]
    samples_B = torch.arange(num_samples, device=device)
    pixels_BHW = ((samples_B[:, None] * height + rows_BH) * width)[:, :, None] + columns_BW[:, None, :]
    inside_BHW = _within(rows_BH, height)[:, :, None] & _within(columns_BW, width)[:, None, :]
    # With one pixel of `fill` at the end: selecting from a flat list takes a fifth of the time of indexing.
    flat = torch.cat([values.flatten(0, 2), values.new_full((1, *values.shape[3:]), fill)])
    pixels_BHW.masked_fill_(~inside_BHW, len(flat) - 1)
    return flat.index_select(0, pixels_BHW.flatten()).view(values.shape)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def recolour(pixels_BCHW: Tensor, draws: Draws) -> Tensor:
    """Change brightness, then contrast, then saturation of pixels between 0 and 1, and clamp them to that range.

    The factors scale the distance to black, to the image's mean grey value, and to each pixel's own grey value.
    """
    if draws.factors_B3 is None:
        return pixels_BCHW
    brightness, contrast, saturation = draws.factors_B3.to(pixels_BCHW.device).T[:, :, None, None, None]
    pixels_BCHW = (pixels_BCHW * brightness).clamp_(0, 1)
    pixels_BCHW = torch.lerp(_grey(pixels_BCHW).mean((2, 3), keepdim=True), pixels_BCHW, contrast).clamp_(0, 1)
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    return torch.lerp(_grey(pixels_BCHW), pixels_BCHW, saturation).clamp_(0, 1)


def _grey(pixels_BCHW: Tensor) -> Tensor:
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    return (pixels_BCHW.permute(0, 2, 3, 1) @ constant(LUMA, pixels_BCHW.device))[:, None]


@lru_cache(maxsize=64)
def constant(numbers: tuple[float, ...], device: torch.device | str) -> Tensor:
    """Return numbers on the device, (N,). Kept, since a copy to a GPU would wait for it in every step."""
    return torch.tensor(numbers, device=device)
