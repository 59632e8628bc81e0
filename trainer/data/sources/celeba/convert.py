"""Convert CelebA: 40 attributes of 202,599 aligned faces, one task each (Sener & Koltun 2018, section 5.2).

Samples keep the order of the attributes file. Shuffling them is unnecessary: an epoch's order is a random permutation
anyway, and each sample is read with one `pread`. The fixed order makes it easy to find the file of a sample.

Shapes: N images, T = 40 attributes, H rows, W columns, C = 3 channels.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.data.format.decode import check_header, decode_into, encode, image_shape
from trainer.data.format.manifest import Manifest
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.png import BadImageError
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, ImageSpec
from trainer.data.sources.celeba.annotations import (
    ATTRIBUTES,
    HEIGHT,
    OFFICIAL_SIZES,
    SPLITS,
    WIDTH,
    read_attributes,
    read_partition,
)
from trainer.data.sources.celeba.raw_files import RawFiles, UnreadableError, find_celeba, list_images, read_whole
from trainer.errors import UserError

logger = logging.getLogger(__name__)

NUM_MEASURED = 2000
"""Evenly spaced images of the train split on which mean and std are measured."""

NUM_SHOWN = 5
"""Names shown for each kind of fault."""

_ALIGNED = unmeasured(HEIGHT, WIDTH, 3, "jpg")
_ANY_SIZE = unmeasured(HEIGHT, WIDTH, 3, "jpg", "any")

Read = Callable[[str], bytes]
"""Returns the bytes of an image, given its name."""


def write_celeba(
    root: Path,
    out: Path,
    *,
    size: int = 64,
    store: Literal["resized", "jpeg"] = "resized",
    skip_missing: bool = False,
) -> Manifest:
    """Write CelebA as shards with the splits train, val and test of its partition file.

    Args:
        root: the raw files, in a layout that `find_celeba` supports.
        out: the data folder to write.
        size: height and width of the images for training.
        store: "resized": store decoded pixels of that size. "jpeg": store the files unchanged; they are decoded and
            resized whenever they are read.
        skip_missing: leave out samples without image, attributes or split, and damaged images; accept attributes of
            fewer images than their first line says.

    Raises:
        UserError: files are missing, wrong, or do not fit each other; or as `write_shards`.
    """
    files = find_celeba(root)
    found, read = list_images(files.images)
    labels, partition = _read_texts(files, partial=skip_missing)
    faults = _misfits(found, labels.keys(), partition.keys())
    whole = [name for name in labels if name in found and name in partition]
    damage, others = _damage(whole, read)
    if others:
        name, (height, width) = next(iter(others.items()))
        logger.warning(
            "%s: %d images are not %d x %d, such as %s, of %d x %d. They are resized like the others.",
            *(root, len(others), WIDTH, HEIGHT, name, width, height),
        )
    faults["damaged images"] = [f"{name} ({reason})" for name, reason in damage.items()]
    _report(root, faults, skip=skip_missing)

    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in whole:
        if name not in damage:
            splits[SPLITS[partition[name]]].append(name)
    sizes = {split: len(names) for split, names in splits.items()}
    if sizes != OFFICIAL_SIZES:
        logger.warning("%s: not the whole CelebA, found %s. The shards are made from these images.", root, sizes)
    if not splits["train"] or not splits["test"]:
        raise UserError(f"{root}: expected images of the train and the test split, found {sizes}.")
    if not splits["val"]:
        del splits["val"]

    inputs = unmeasured(size, size, 3, "jpg", "any") if store == "jpeg" else unmeasured(size, size, 3, "npy")

    def load(name: str) -> bytes:
        return read(name) if store == "jpeg" else _resized(read(name), size)

    def samples(names: Sequence[str]) -> Iterator[Sample]:
        for name in names:
            with _naming(name):
                data = load(name)
            yield Sample(data, dict(zip(ATTRIBUTES, labels[name], strict=True)), name=name)

    measured = splits["train"][:: -(-len(splits["train"]) // NUM_MEASURED)]
    inputs = _measured(measured, load, inputs, root)

    return write_shards(
        out,
        name="celeba",
        made_by={
            "source": "celeba",
            "size": size,
            "store": store,
            "left_out": {what: len(names) for what, names in faults.items() if names},
            "sha256": {
                path.name: hashlib.sha256(read_whole(path)).hexdigest() for path in (files.attributes, files.partition)
            },
        },
        inputs=inputs,
        tasks=[ClassificationSpec(name=name, classes=("no", "yes")) for name in ATTRIBUTES],
        splits={split: samples(names) for split, names in splits.items()},
    )


def _read_texts(files: RawFiles, *, partial: bool) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return image name -> attributes, and image name -> index in SPLITS."""
    names, attributes_NT = read_attributes(read_whole(files.attributes), Path(str(files.attributes)), partial=partial)
    partition = read_partition(read_whole(files.partition), Path(str(files.partition)))
    return dict(zip(names, attributes_NT.tolist(), strict=True)), partition


def _misfits(images: Iterable[str], labelled: Iterable[str], parted: Iterable[str]) -> dict[str, list[str]]:
    """Return kind of fault -> names that one of the three parts has and another lacks."""
    images, labelled, parted = set(images), set(labelled), set(parted)
    return {
        "images that are missing": sorted((labelled | parted) - images),
        "images without attributes": sorted((images | parted) - labelled),
        "images without a split": sorted((images | labelled) - parted),
    }


def _damage(names: Sequence[str], read: Read) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Check the start and end of every image, to report faults before anything is written.

    Returns:
        name -> fault, for the damaged images; and name -> height and width, for those of another size than CelebA's.
    """
    damage, others = {}, {}
    for name in _shown(names, "checking images"):
        try:
            data = read(name)
            height, width, channels = image_shape(data, "jpg")
            if channels != 3:
                check_header(data, _ALIGNED)
            check_header(data, _ANY_SIZE)
            if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise BadImageError("it is truncated: it has no end marker")
            if (height, width) != (HEIGHT, WIDTH):
                others[name] = height, width
        except (BadImageError, UnreadableError) as error:
            damage[name] = str(error)
    return damage, others


def _report(root: Path, faults: Mapping[str, Sequence[str]], *, skip: bool) -> None:
    lines = [
        f"  {len(names):,} {what}: {', '.join(names[:NUM_SHOWN])}{', ...' if len(names) > NUM_SHOWN else ''}"
        for what, names in faults.items()
        if names
    ]
    if lines and not skip:
        raise UserError(
            f"{root} is not complete:\n" + "\n".join(lines) + "\nComplete it, or leave these out with --skip-missing."
        )
    for line in lines:
        logger.warning("Left out:%s", line[1:])


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the file in the error about a damaged image. Damage in the middle is found only by decoding."""
    try:
        yield
    except (BadImageError, UnreadableError) as error:
        raise UserError(f"{name} is damaged: {error}.\nFetch it again, or delete it and add --skip-missing.") from None


def _resized(data: bytes, size: int) -> bytes:
    """Decode at full size and average areas: slower than a loader's JPEG scaling, but better."""
    height, width, _ = image_shape(data, "jpg")
    full_HWC = np.empty((height, width, 3), np.uint8)
    decode_into(full_HWC, data, unmeasured(height, width, 3, "jpg"))
    return encode(cv2.resize(full_HWC, (size, size), interpolation=cv2.INTER_AREA), "npy")


def _measured(names: Iterable[str], load: Read, spec: ImageSpec, root: Path) -> ImageSpec:
    moments, pixels_HWC = PixelMoments(spec.channels), np.empty(spec.shape, np.uint8)
    for name in names:
        with _naming(name):
            decode_into(pixels_HWC, load(name), spec)
        moments.add(pixels_HWC)
    return moments.fill(spec, root)


def _shown(names: Sequence[str], what: str) -> Iterable[str]:
    return track(names, what, console=Console(stderr=True), disable=not sys.stderr.isatty())
