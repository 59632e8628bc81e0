"""Measure mean and standard deviation of pixels, for the manifest.

Shapes: H rows, W columns, C channels, N pixels of all images.
"""

from typing import Literal

import numpy as np

from trainer.data.format.specs import Encoding, ImageSpec
from trainer.errors import UserError


class PixelMoments:
    """Mean and standard deviation per channel of pixels / 255, over all images added."""

    def __init__(self, channels: int) -> None:
        self._sums_2C = np.zeros((2, channels))
        self._count = 0

    def add(self, pixels_HWC: np.ndarray) -> None:
        """Add one or more uint8 images."""
        values_NC = pixels_HWC.reshape(-1, self._sums_2C.shape[1]) / 255
        self._sums_2C += values_NC.sum(0), (values_NC**2).sum(0)
        self._count += len(values_NC)

    def fill(self, spec: ImageSpec, where: object) -> ImageSpec:
        """Return `spec` with the mean and standard deviation of the added images, to six digits.

        Args:
            spec: the spec to complete; its own mean and std are ignored.
            where: origin of the images, for error messages.

        Raises:
            UserError: no image was added, or a channel is constant, which cannot be standardised.
        """
        mean_C, square_C = self._sums_2C / max(self._count, 1)
        std_C = np.sqrt(np.maximum(square_C - mean_C**2, 0)).round(6)
        if not std_C.all():
            raise UserError(f"{where}: no image of the train split can be decoded, or all have one single colour.")
        return spec.model_copy(update={"mean": tuple(mean_C.round(6).tolist()), "std": tuple(std_C.tolist())})


def unmeasured(
    height: int,
    width: int,
    channels: Literal[1, 3],
    encoding: Encoding,
    stored_sizes: Literal["exact", "any"] = "exact",
) -> ImageSpec:
    """Return a spec whose mean and standard deviation are not known yet: 0 and 1."""
    return ImageSpec(
        height=height,
        width=width,
        channels=channels,
        encoding=encoding,
        stored_sizes=stored_sizes,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
