"""Put two digits into one picture: the common part of MultiMNIST and the digits of scikit-learn.

Shapes: N pairs, K original digits, H = W = 28.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.format.decode import encode
from trainer.data.format.manifest import Manifest
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, Encoding

SIDE = 28
SHIFT = 6
CANVAS = 36
ENCODING: Encoding = "npy"
"""At this size a quarter larger than PNG, but decoded three times as fast."""

DIGITS = tuple("0123456789")
CHUNK = 50_000
"""Pictures composed at once: on their way they take several times their memory."""


@dataclass(frozen=True)
class Pairs:
    """Pictures with their labels; iterating encodes them one by one.

    Attributes:
        images_NHW: uint8, 28 x 28.
        left_N: class of the upper left digit.
        right_N: class of the lower right digit.
    """

    images_NHW: np.ndarray
    left_N: np.ndarray
    right_N: np.ndarray

    def __len__(self) -> int:
        return len(self.images_NHW)

    def __iter__(self) -> Iterator[Sample]:
        for image_HW, left, right in zip(self.images_NHW, self.left_N.tolist(), self.right_N.tolist(), strict=True):
            yield Sample(encode(image_HW[:, :, None], ENCODING), {"left": left, "right": right})


def compose(left_NHW: np.ndarray, right_NHW: np.ndarray) -> np.ndarray:
    """Put two digits into one picture (Sener & Koltun 2018, arXiv 1810.04650, section 5.1, after Sabour et al. 2017).

    The left digit takes the upper left of a 36 x 36 canvas, the right one starts 6 pixels further down and right. The
    brighter pixel is kept where they overlap, and the canvas is resized to 28 x 28 by nearest neighbour.

    Args:
        left_NHW: uint8, 28 x 28.
        right_NHW: uint8, 28 x 28.

    Returns:
        uint8, 28 x 28, shape (N, H, W).
    """
    canvas_NHW = np.zeros((len(left_NHW), CANVAS, CANVAS), np.uint8)
    canvas_NHW[:, :SIDE, :SIDE] = left_NHW
    shifted_NHW = canvas_NHW[:, SHIFT : SHIFT + SIDE, SHIFT : SHIFT + SIDE]
    np.maximum(shifted_NHW, right_NHW, out=shifted_NHW)
    # The authors' scipy.misc.imresize took the source pixel under the target pixel's centre, as Pillow does; cv2's
    # INTER_NEAREST takes another.
    nearest = ((np.arange(SIDE) + 0.5) * CANVAS / SIDE).astype(int)
    return canvas_NHW[:, nearest[:, None], nearest]


def make_pairs(images_KHW: np.ndarray, labels_K: np.ndarray, left_ids_N: np.ndarray, right_ids_N: np.ndarray) -> Pairs:
    """Compose pairs of originals, given by their rows."""
    chunks = [slice(start, start + CHUNK) for start in range(0, len(left_ids_N), CHUNK)]
    images = [compose(images_KHW[left_ids_N[chunk]], images_KHW[right_ids_N[chunk]]) for chunk in chunks]
    return Pairs(np.concatenate(images), labels_K[left_ids_N], labels_K[right_ids_N])


def write_pairs(out: Path, *, name: str, made_by: dict[str, Any], splits: Mapping[str, Pairs]) -> Manifest:
    """Write pairs as a data folder with the tasks `left` and `right`.

    Raises:
        UserError: as `write_shards`.
    """
    moments = PixelMoments(1)
    moments.add(splits["train"].images_NHW)
    image = unmeasured(SIDE, SIDE, 1, ENCODING)
    return write_shards(
        out,
        name=name,
        made_by=made_by,
        inputs=moments.fill(image, name),
        tasks=[ClassificationSpec(name=side, classes=DIGITS) for side in ("left", "right")],
        splits=splits,
    )
