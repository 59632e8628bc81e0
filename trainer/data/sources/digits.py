"""Make a small MultiMNIST of the handwritten digits in scikit-learn, without a download.

Shapes: K original digits, N pairs, H rows, W columns.
"""

from pathlib import Path

import cv2
import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.reading.order import epoch_order, hash64
from trainer.data.sources.pairs import SIDE, Pairs, make_pairs, write_pairs
from trainer.errors import UserError

TEST_FRACTION = 0.2
"""Fraction of the originals in the test split."""

BOX = 20
"""MNIST's digits fill a box of 20 x 20 of their 28 x 28 pixels. So do ours: pairs of larger ones are unreadable."""


def write_digits(out: Path, *, seed: int = 0, train_samples: int = 20_000, test_samples: int = 4_000) -> Manifest:
    """Write shards of digit pairs; no original is in both train and test pairs.

    The originals are the 1,797 digits of 8 x 8 pixels of the UCI Optical Recognition of Handwritten Digits data.

    Args:
        out: the data folder to write.
        seed: determines the split of the originals, and the pairs.
        train_samples: number of pairs for training.
        test_samples: number of pairs for testing.

    Raises:
        UserError: a count is below 1; or as `write_shards`.
    """
    if min(train_samples, test_samples) < 1:
        raise UserError(f"Expected at least 1 sample per split, found train {train_samples} and test {test_samples}.")
    images_KHW, labels_K = load_originals()
    train_ids, test_ids = split_originals(len(images_KHW), seed)
    return write_pairs(
        out,
        name="digits",
        made_by={
            "source": "digits",
            "seed": seed,
            "train_samples": train_samples,
            "test_samples": test_samples,
            "originals": {"train": len(train_ids), "test": len(test_ids)},
        },
        splits={
            "train": _draw(images_KHW, labels_K, train_ids, train_samples, seed, 1),
            "test": _draw(images_KHW, labels_K, test_ids, test_samples, seed, 3),
        },
    )


def load_originals() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits in MNIST's geometry.

    Returns:
        uint8 images, shape (K, 28, 28), and their classes, shape (K,).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    margin = (SIDE - BOX) // 2
    images_KHW = np.zeros((len(bunch.images), SIDE, SIDE), np.uint8)
    for slot_HW, small_HW in zip(images_KHW, bunch.images, strict=True):
        large_HW = cv2.resize(small_HW * (255 / 16), (BOX, BOX), interpolation=cv2.INTER_CUBIC)
        slot_HW[margin:-margin, margin:-margin] = np.clip(np.rint(large_HW), 0, 255)
    return images_KHW, bunch.target


def split_originals(num_originals: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the originals at random into disjoint ids for train and test."""
    order_K = epoch_order(num_originals, seed=seed, epoch=0)
    num_test = round(num_originals * TEST_FRACTION)
    return order_K[num_test:], order_K[:num_test]


def _draw(
    images_KHW: np.ndarray, labels_K: np.ndarray, ids: np.ndarray, num_samples: int, seed: int, stream: int
) -> Pairs:
    left_N, right_N = (
        ids[hash64(seed, stream + side, np.arange(num_samples)) % np.uint64(len(ids))] for side in (0, 1)
    )
    return make_pairs(images_KHW, labels_K, left_N, right_N)
