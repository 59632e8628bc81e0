"""Make MultiMNIST of the standard MNIST files.

Shapes: N images, H rows, W columns.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.reading.order import hash64
from trainer.data.sources.idx import read_idx
from trainer.data.sources.pairs import SIDE, make_pairs, write_pairs
from trainer.errors import UserError

logger = logging.getLogger(__name__)

_FILES = {"train": "train", "test": "t10k"}
VAL_STREAM = 2
"""Stream of the random numbers that choose the split val; the streams before it choose the right digits."""

ORIGINAL_SHA256 = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Checksums of the uncompressed files of the original MNIST."""


def write_multimnist(mnist: Path, out: Path, *, seed: int = 0, val: float = 0.0, pairs_per_image: int = 1) -> Manifest:
    """Write MultiMNIST shards: every image once as the left digit, with a random right one of the same split.

    The construction is the paper's (Sener & Koltun 2018, arXiv 1810.04650, section 5.1), which has one pair an image. A
    LeNet memorises many of these 60,000 pairs, and learns more from more pairs of the same digits.

    Files with MNIST's names but other content, such as Fashion-MNIST or a subset, are accepted; a warning and the
    manifest say so.

    Args:
        mnist: folder with the four IDX files, gzipped or not.
        out: the data folder to write.
        seed: determines the right digits, and the split `val`.
        val: fraction of the train images that make a split `val` of their own; 0: there is none.
        pairs_per_image: how often each image of train is the left digit, with another right one; of the other splits,
            each image is once.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others, or a split would be empty; or as
            `write_shards`.
    """
    splits, sha256 = {}, {}
    for stream, (split, prefix) in enumerate(_FILES.items()):
        images_file, images_NHW = read_idx(mnist, prefix, "images", axes=3)
        labels_file, labels_N = read_idx(mnist, prefix, "labels", axes=1)
        _check(images_NHW, labels_N, f"{mnist}, {prefix}")
        sha256[f"{prefix}-images"] = hashlib.sha256(images_file).hexdigest()
        sha256[f"{prefix}-labels"] = hashlib.sha256(labels_file).hexdigest()
        of_splits = {split: np.arange(len(images_NHW))}
        if split == "train" and val:
            of_splits = _hold_out(of_splits[split], val, seed)
        for name, rows_N in of_splits.items():
            repeats = pairs_per_image if name == "train" else 1
            words_N = np.concatenate([hash64(seed, stream, rows_N + k * len(images_NHW)) for k in range(repeats)])
            partners_N = rows_N[words_N % np.uint64(len(rows_N))]
            splits[name] = make_pairs(images_NHW, labels_N, np.tile(rows_N, repeats), partners_N)
    original = sha256 == ORIGINAL_SHA256
    if not original:
        others = ", ".join(name for name, found in sha256.items() if found != ORIGINAL_SHA256[name])
        logger.warning("%s: not the original MNIST (%s differ). The shards are made from these files.", mnist, others)
    return write_pairs(
        out,
        name="multimnist",
        made_by={"source": "multimnist", "seed": seed, "original_mnist": original, "sha256": sha256}
        | ({"val": val} if val else {})
        | ({"pairs_per_image": pairs_per_image} if pairs_per_image > 1 else {}),
        splits=splits,
    )


def _hold_out(rows_N: np.ndarray, val: float, seed: int) -> dict[str, np.ndarray]:
    """Return the rows of train and val, which share no image."""
    held_out_N = hash64(seed, VAL_STREAM, rows_N) < np.uint64(val * 2**64)
    if held_out_N.all() or not held_out_N.any():
        raise UserError(f"--val {val:g} of {len(rows_N)} images leaves train or val empty: expected another fraction.")
    return {"train": rows_N[~held_out_N], "val": rows_N[held_out_N]}


def _check(images_NHW: np.ndarray, labels_N: np.ndarray, where: str) -> None:
    if images_NHW.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{where}: expected images of {SIDE} x {SIDE} pixels, found {images_NHW.shape[1:]}.")
    if len(images_NHW) != len(labels_N):
        raise UserError(f"{where}: expected as many labels as images, found {len(labels_N)} and {len(images_NHW)}.")
    if len(labels_N) == 0 or labels_N.max() > 9:
        raise UserError(f"{where}: expected labels from 0 to 9, found {np.unique(labels_N)[-3:].tolist()}.")
