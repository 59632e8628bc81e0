"""Convert Cityscapes: three dense tasks, as in Sener & Koltun 2018, section 5.3, after Kendall et al. 2018.

Shapes: H rows and W columns of the written images.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trainer.data.format.decode import encode
from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import UNLABELLED, DenseRegressionSpec, ImageSpec, SegmentationSpec
from trainer.errors import UserError
from trainer.terminal import Terminal

# The 19 classes that Cityscapes evaluates, by their `labelId`. All others get no label.
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip

SPLITS = {"train": "train", "test": "val"}
"""Our split -> Cityscapes' split. Its own test split has no public labels."""

SAMPLES_PER_SHARD = 250
"""Gives shards of a few hundred megabytes at 256 x 512."""

CHANNELS = {"instance": 2, "disparity": 1}
"""Values per pixel of the regressions."""

PACKAGES = ("gtFine", "disparity")
"""The folders with targets; one is enough."""

MAX_MEASURED = 500
"""Frames of the train split whose colours, offsets and disparities are measured."""


@dataclass(frozen=True)
class Frame:
    """The files of one frame; None for those of a package that is not there."""

    image: Path
    labels: Path | None
    instances: Path | None
    disparity: Path | None


def write_cityscapes(root: Path, out: Path, *, size: tuple[int, int] = (256, 512)) -> Manifest:
    """Write shards with the tasks `semantic`, `instance` and `disparity`.

    `semantic` has 19 classes. `instance` is the offset, in rows and columns, from each pixel of a countable thing to
    the centre of its instance. `instance` and `disparity` are in pixels of the original image, as in the paper, for any
    written size; their targets are divided by the root mean square over the train split. Pixels that Cityscapes does
    not label, evaluate or measure get no label. Without gtFine or disparity the tasks are those of the other.

    Args:
        root: folder with leftImg8bit, gtFine and disparity, unpacked.
        out: the data folder to write.
        size: height and width of images and targets.

    Raises:
        UserError: a file is missing, or is not an image of the expected type; or as `write_shards`.
    """
    frames = {split: find_frames(root, folder) for split, folder in SPLITS.items()}
    image, scales = _measured(unmeasured(*size, 3, "jpg"), frames["train"], size)
    tasks: list[SegmentationSpec | DenseRegressionSpec] = []
    if frames["train"][0].labels:
        tasks.append(SegmentationSpec(name="semantic", classes=tuple(CLASSES.values())))
    tasks.extend(
        DenseRegressionSpec(name=name, channels=CHANNELS[name], unit="px", std=scale) for name, scale in scales.items()
    )
    return write_shards(
        out,
        name="cityscapes",
        made_by={"source": "cityscapes", "size": list(size)},
        inputs=image,
        tasks=tasks,
        splits={split: (_sample(frame, size) for frame in found) for split, found in frames.items()},
        samples_per_shard=SAMPLES_PER_SHARD,
    )


def find_frames(root: Path, split: str) -> list[Frame]:
    """Return the frames of a split, sorted by name; say which package of targets is not there.

    Raises:
        UserError: the images, both packages of targets, or a file are missing.
    """
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise UserError(
            f"{root} has no leftImg8bit/{split}/CITY/*_leftImg8bit.png.\n"
            "Point --root at the folder in which leftImg8bit, gtFine and disparity are unpacked."
        )
    there = [package for package in PACKAGES if (root / package).is_dir()]
    if not there:
        raise UserError(f"{root} has neither of {' and '.join(PACKAGES)}, so there is nothing to learn. Unpack one.")
    for package in PACKAGES:
        if package not in there:
            Terminal(soft_wrap=True).print(f"{split}: without the tasks of {package}, which {root} does not have")
    frames = [_frame(root, split, image, there) for image in images]
    targets = (path for frame in frames for path in (frame.labels, frame.instances, frame.disparity))
    missing = [path for path in targets if path and not path.is_file()]
    if missing:
        shown = "".join(f"\n  {path}" for path in missing[:5])
        raise UserError(
            f"{root}: {len(missing)} files that belong to the images of {split} are missing, such as:{shown}"
        )
    return frames


def class_numbers(label_ids_HW: np.ndarray) -> np.ndarray:
    """Turn Cityscapes' label ids into indices of CLASSES, and all others into UNLABELLED."""
    numbers = np.full(256, UNLABELLED, np.uint8)
    numbers[list(CLASSES)] = np.arange(len(CLASSES))
    return numbers[label_ids_HW]


def to_centres(instance_ids_HW: np.ndarray) -> np.ndarray:
    """Return each pixel's offset to its instance's centre of mass: float32 (H, W, 2), rows and columns; else NaN.

    An instance's id is 1000 times its label id plus a number; smaller ids are regions without instances. Instances of
    classes that are not evaluated, caravans and trailers, are left out.
    """
    _, index_HW = np.unique(instance_ids_HW, return_inverse=True)
    index_HW = index_HW.reshape(instance_ids_HW.shape)
    coordinates_HW2 = np.moveaxis(np.indices(instance_ids_HW.shape), 0, -1).astype(np.float64)
    counts = np.bincount(index_HW.ravel())
    centres_2 = [np.bincount(index_HW.ravel(), coordinates_HW2[..., axis].ravel()) / counts for axis in (0, 1)]
    offsets_HW2 = np.stack(centres_2, axis=-1)[index_HW] - coordinates_HW2
    offsets_HW2[~np.isin(instance_ids_HW // 1000, list(CLASSES))] = np.nan
    return offsets_HW2.astype(np.float32)


def disparities(stored_HW: np.ndarray) -> np.ndarray:
    """Turn Cityscapes' uint16 values into pixels, float32; NaN where not measured (README of the disparity package)."""
    return np.where(stored_HW > 0, (stored_HW.astype(np.float32) - 1) / 256, np.nan).astype(np.float32)


def _frame(root: Path, split: str, image: Path, packages: Sequence[str]) -> Frame:
    city, stem = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
    fine, disparity = root / "gtFine" / split / city, root / "disparity" / split / city
    return Frame(
        image,
        fine / f"{stem}_gtFine_labelIds.png" if "gtFine" in packages else None,
        fine / f"{stem}_gtFine_instanceIds.png" if "gtFine" in packages else None,
        disparity / f"{stem}_disparity.png" if "disparity" in packages else None,
    )


def _sample(frame: Frame, size: tuple[int, int]) -> Sample:
    maps = {name: write_npy(found.astype(np.float16)) for name, found in _regressions(frame, size).items()}
    if frame.labels:
        maps["semantic"] = encode(class_numbers(_read(frame.labels, np.uint8, size))[..., None], "png")
    return Sample(encode(_read_image(frame.image, size), "jpg"), {}, maps)


def _regressions(frame: Frame, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the targets of the regressions whose files are there, float32 (H, W, C)."""
    found = {}
    if frame.instances:
        found["instance"] = _read_offsets(frame.instances, size)
    if frame.disparity:
        found["disparity"] = disparities(_read(frame.disparity, np.uint16, size))[..., None]
    return found


def _measured(image: ImageSpec, frames: list[Frame], size: tuple[int, int]) -> tuple[ImageSpec, dict[str, float]]:
    """Measure some frames: mean and std of the colours, and the root mean square of each regression."""
    moments = PixelMoments(3)
    squares, counts = defaultdict[str, float](float), defaultdict[str, float](float)
    for frame in frames[:: -(-len(frames) // MAX_MEASURED)]:
        moments.add(_read_image(frame.image, size))
        for name, found in _regressions(frame, size).items():
            squares[name] += float(np.nansum(found.astype(np.float64) ** 2))
            counts[name] += float(np.count_nonzero(~np.isnan(found)))
    for name, total in squares.items():
        if not total:
            raise UserError(f"No pixel of the train split has a label of {name}. Are these the files of Cityscapes?")
    scales = {name: float(np.sqrt(total / counts[name])) for name, total in squares.items()}
    return moments.fill(image, frames[0].image.parent.parent), scales


def _read_offsets(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read instance ids at the written size, and return offsets in pixels of the original."""
    ids_HW = _decode(path, cv2.IMREAD_UNCHANGED, np.uint16)
    return to_centres(_resized(ids_HW, size)) * np.divide(ids_HW.shape, size, dtype=np.float32)


def _read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    pixels = _decode(path, cv2.IMREAD_COLOR_RGB, np.uint8)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)


def _read(path: Path, dtype: type, size: tuple[int, int]) -> np.ndarray:
    return _resized(_decode(path, cv2.IMREAD_UNCHANGED, dtype), size)


def _resized(map_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Classes and ids cannot be averaged, nor can disparities of which some are not measured.
    return cv2.resize(map_HW, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _decode(path: Path, flags: int, dtype: type) -> np.ndarray:
    pixels = cv2.imread(str(path), flags)
    if pixels is None or pixels.dtype != dtype:
        found = "no image" if pixels is None else str(pixels.dtype)
        raise UserError(f"{path}: expected an image of {np.dtype(dtype)}, found {found}. Fetch it again.")
    return pixels
