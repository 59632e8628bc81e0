"""Convert the preprocessed NYUv2 and Cityscapes of MTAN (Liu et al. 2019, arXiv 1803.10704), which most papers use.

Both are a folder with `train` and `val`, each with a folder of `0.npy`, `1.npy`, ... for the images and for every task.

Shapes: H rows and W columns of the images, C values a pixel.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.format.decode import encode
from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import UNLABELLED, DenseRegressionSpec, ImageSpec, SegmentationSpec
from trainer.errors import UserError

SPLITS = {"train": "train", "test": "val"}
"""Our split -> the folder. All papers report `val`, and have no third split."""
IMAGE = "image"
SAMPLES_PER_SHARD = 250


@dataclass(frozen=True)
class Layout:
    """The content of a data set's folder.

    Attributes:
        labels: folder of the classes of the pixels, (H, W); -1 is no label. The files do not name the classes.
        num_classes: of them.
        values: folder of other tasks -> values a pixel, and their unit. All zero is no label.
    """

    labels: str
    num_classes: int
    values: Mapping[str, tuple[int, str | None]]


LAYOUTS = {
    "nyuv2": Layout("label", 13, {"depth": (1, "m"), "normal": (3, None)}),
    "cityscapes2": Layout("label_7", 7, {"depth": (1, None)}),
}
"""Depth in `cityscapes2` is inverse and normalised, so it has no unit."""


def write_mtan(name: str, root: Path, out: Path) -> Manifest:
    """Write shards with the task `semantic`, and one for each other folder.

    Values keep their scale, as in the papers, whose losses are the plain mean absolute errors.

    Args:
        name: a key of LAYOUTS.
        root: folder with `train` and `val`.
        out: the data folder to write.

    Raises:
        UserError: a file is missing or not as expected; or as `write_shards`.
    """
    layout = LAYOUTS[name]
    files = {split: _files(root / folder, layout) for split, folder in SPLITS.items()}
    values = [DenseRegressionSpec(name=task, channels=c, unit=unit) for task, (c, unit) in layout.values.items()]
    return write_shards(
        out,
        name=name,
        made_by={"source": name},
        inputs=_measured(root / "train", files["train"]),
        tasks=[SegmentationSpec(name="semantic", classes=tuple(map(str, range(layout.num_classes)))), *values],
        splits={split: _samples(root / folder, files[split], layout) for split, folder in SPLITS.items()},
        samples_per_shard=SAMPLES_PER_SHARD,
    )


def class_numbers(labels_HW: np.ndarray, num_classes: int, path: Path) -> np.ndarray:
    """Return class numbers, uint8 (H, W), with UNLABELLED for -1.

    Raises:
        UserError: other numbers are among them.
    """
    if not (np.isin(labels_HW, np.arange(-1, num_classes))).all():
        odd = np.setdiff1d(labels_HW, np.arange(-1, num_classes))[:3].tolist()
        raise UserError(f"{path}: expected the classes 0 to {num_classes - 1}, and -1 for none, found {odd}")
    return np.where(labels_HW < 0, UNLABELLED, labels_HW).astype(np.uint8)


def known(values_HWC: np.ndarray) -> np.ndarray:
    """Return values as float16, with NaN for the pixels whose values are all zero."""
    return np.where((values_HWC != 0).any(axis=-1, keepdims=True), values_HWC, np.nan).astype(np.float16)


def _files(folder: Path, layout: Layout) -> list[str]:
    """Return the names of the images' files, all of which each task has too."""
    names = sorted((path.name for path in (folder / IMAGE).glob("*.npy")), key=lambda name: (len(name), name))
    if not names:
        raise UserError(
            f"{folder} has no {IMAGE}/*.npy.\n"
            "Point --root at the folder of the preprocessed data that holds train and val"
        )
    for task in (layout.labels, *layout.values):
        if missing := [name for name in names if not (folder / task / name).is_file()]:
            raise UserError(f"{folder / task}: {len(missing)} files of {len(names)} are missing, such as {missing[0]}")
    return names


def _samples(folder: Path, names: list[str], layout: Layout) -> Iterator[Sample]:
    for name in names:
        path = folder / layout.labels / name
        maps = {"semantic": encode(class_numbers(_read(path, 2), layout.num_classes, path)[..., None], "png")}
        for task, (channels, _) in layout.values.items():
            maps[task] = write_npy(known(_read(folder / task / name, 3, channels)))
        image = folder / IMAGE / name
        yield Sample(encode(_pixels(image), "png"), {}, maps, name=str(image))


def _measured(folder: Path, names: list[str]) -> ImageSpec:
    moments = PixelMoments(3)
    for name in names:
        moments.add(_pixels(folder / IMAGE / name))
    height, width, _ = _pixels(folder / IMAGE / names[0]).shape
    return moments.fill(unmeasured(height, width, 3, "png"), folder)


def _pixels(path: Path) -> np.ndarray:
    """Return an image, uint8 (H, W, 3); the files hold fractions of 255."""
    values_HWC = _read(path, 3, 3)
    if not ((values_HWC >= 0) & (values_HWC <= 1)).all():
        raise UserError(f"{path}: expected colours from 0 to 1, found {values_HWC.min():g} to {values_HWC.max():g}")
    return np.rint(255 * values_HWC).astype(np.uint8)


def _read(path: Path, dimensions: int, channels: int | None = None) -> np.ndarray:
    """Return the numbers of a file, whose last dimension is `channels`.

    Raises:
        UserError: it cannot be read, or has another shape.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no .npy file of numbers ({error}). Fetch it again") from None
    if found.dtype.kind not in "iuf" or found.ndim != dimensions or (channels and found.shape[-1] != channels):
        expected = "(H, W)" if channels is None else f"(H, W, {channels})"
        raise UserError(f"{path}: expected numbers of shape {expected}, found {found.dtype} of shape {found.shape}")
    return found
