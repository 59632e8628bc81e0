"""Make a data folder of images in a folder and a table of their labels.

Shapes: H rows, W columns, C channels.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.format.decode import decode_into
from trainer.data.format.manifest import Manifest
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.png import BadImageError
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.signatures import JPEG_START, PNG_START, describe
from trainer.data.format.specs import MAX_BYTES, MAX_NAME, Encoding, ImageSpec, ScalarTaskSpec
from trainer.data.sources.orientation import UPRIGHT, orientation, turn_upright, upright_shape
from trainer.data.sources.tables.options import Columns
from trainer.data.sources.tables.review import review
from trainer.data.sources.tables.roles import choose_columns, other_roles
from trainer.data.sources.tables.rows import Row, table_name
from trainer.data.sources.tables.table_file import TableFile
from trainer.data.sources.tables.tasks import build_tasks, label_reader
from trainer.errors import UserError
from trainer.files import read_bytes
from trainer.terminal import Terminal

SUFFIXES = (".jpg", ".jpeg", ".png")

MAX_MEASURED = 2000
"""Images of the train split whose pixels are measured. The error of the mean is then about a thousandth."""


def write_image_folder(
    images: Path, csv: Path, out: Path, columns: Columns, *, size: tuple[int, int] | None = None
) -> Manifest:
    """Write shards of images. Their bytes are not changed, unless EXIF says that they do not lie upright.

    Where there are JPEGs and PNGs, all are stored as PNG, since a data folder has one format.

    Byte-equal images are kept in one split, if no column names the splits.

    Args:
        images: the folder of the images.
        csv: a table in one of `rows.FORMATS`; its first column, but for pandas' index, names each image's file in the
            folder.
        out: the data folder to write.
        columns: what the other columns are for, and how the rows are split.
        size: height and width that images are resized to while they are decoded. None: all must have the same size.

    Raises:
        UserError: a file, a column, a cell or an image is faulty; or as `write_shards`.
    """
    file = TableFile(csv, columns.split, columns.missing)
    chosen = _choose(file, columns)
    spec, digests = _scan(file, images, size)
    if columns.split.column is None:
        _keep_together(file, digests)
    found, splits = review(file, columns, [], chosen)
    made = build_tasks(file, found, columns.kinds, columns.units, drop_empty=columns.drop_empty)
    made_by: dict[str, Any] = {"source": "folder", "images": images.name, **file.made_by}
    made_by |= {"dropped": made.dropped} if made.dropped else {}
    spec = _measured(file, images, spec)
    return write_shards(
        out,
        name=table_name(csv),
        made_by=made_by,
        inputs=spec,
        tasks=list(made.tasks.values()),
        splits={split: _samples(file, split, images, made.tasks, spec) for split in splits},
        reasons=made.reasons,
    )


def _choose(file: TableFile, columns: Columns) -> list[int]:
    """Return the columns to predict.

    Raises:
        UserError: there is none; or as `choose_columns`.
    """
    others = {"the column of file names": [file.names_column], **other_roles(file, columns.ignore)}
    if not file.find(["*"], without=set(itertools.chain(*others.values()))):
        raise UserError(f"{file.path} has no column to predict: its columns are {', '.join(file.columns)}.")
    return choose_columns(file, "targets", columns.targets, others)


def _samples(
    file: TableFile, split: str, images: Path, tasks: Mapping[int, ScalarTaskSpec], spec: ImageSpec
) -> Iterator[Sample]:
    targets = [(column, task.name, label_reader(task)) for column, task in tasks.items()]
    for row in file.of_split(split):
        labels = {name: read(row.cells[column]) for column, name, read in targets}
        yield Sample(_stored(file, images, row, spec), labels, name=row.cells[file.names_column])


def _scan(file: TableFile, images: Path, size: tuple[int, int] | None) -> tuple[ImageSpec, dict[str, bytes]]:
    """Read all images; return the spec that fits their headers, and a hash of the bytes of each: name -> hash."""
    encodings: Counter[Encoding] = Counter()
    shapes: dict[tuple[int, int, int], str] = {}
    digests: dict[str, bytes] = {}
    turned = repeated = 0
    for row in file:
        name = row.cells[file.names_column]
        if Path(name).suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{file.path}:{row.line}: expected the name of a JPEG or PNG file, which ends in "
                f"{', '.join(SUFFIXES)}, found {name!r}.\nConvert such images, and name the files in the first column."
            )
        data = _read(file, images, row)
        try:
            encoding = _encoding(data)
            shapes.setdefault(upright_shape(data, encoding), name)
        except BadImageError as error:
            raise _faulty(file, images, row, error) from None
        encodings[encoding] += 1
        repeated += name in digests
        digests[name] = hashlib.blake2b(data, digest_size=16).digest()
        turned += orientation(data) != UPRIGHT
    if repeated:
        Terminal(soft_wrap=True).print(f"{repeated:,} rows name a file that a row above names, too")
    if turned:
        Terminal(soft_wrap=True).print(f"{turned:,} images are turned upright, as their EXIF orientation says")
    sizes = {shape[:2]: name for shape, name in shapes.items()}
    if len(sizes) > 1 and size is None:
        shown = ", ".join(f"{height} x {width} ({name})" for (height, width), name in list(sizes.items())[:3])
        raise UserError(
            f"{images} has images of {len(sizes)} sizes, height x width: {shown}.\n"
            "Choose the size that they are resized to when they are read, such as --size 224x224."
        )
    height, width = size or next(iter(sizes))
    channels = max(shape[2] for shape in shapes)
    if len(encodings) > 1:
        Terminal(soft_wrap=True).print(
            f"{encodings['jpg']:,} JPEG images are stored as PNG, pixel for pixel: a data folder has one format, and "
            f"the other {encodings['png']:,} images are PNG"
        )
    stored: Encoding = "png" if "png" in encodings else "jpg"
    exact = set(shapes) == {(height, width, channels)}
    spec = unmeasured(height, width, 3 if channels == 3 else 1, stored, "exact" if exact else "any")
    return spec, digests


def _keep_together(file: TableFile, digests: Mapping[str, bytes]) -> None:
    """Put all rows with byte-equal images into the split of the first of them, and say how many there are."""
    first: dict[bytes, str] = {}
    together: dict[str, str] = {}
    for row in file:
        name = row.cells[file.names_column]
        split = first.setdefault(digests[name], file.split(row))
        if file.split(row) != split:
            together[name] = split
    file.assign(together)
    if equal := sum(count for count in Counter(digests.values()).values() if count > 1):
        Terminal(soft_wrap=True).print(
            f"{equal:,} images are byte for byte equal to others; equal images are kept in one split"
        )


def _measured(file: TableFile, images: Path, spec: ImageSpec) -> ImageSpec:
    """Return the spec with mean and standard deviation of the train split's pixels."""
    count = sum(1 for _ in file.of_split("train"))
    stride = -(-count // MAX_MEASURED)
    moments, slot_HWC = PixelMoments(spec.channels), np.empty(spec.shape, np.uint8)
    for number, row in enumerate(file.of_split("train")):
        if number % stride:
            continue
        try:
            decode_into(slot_HWC, _stored(file, images, row, spec), spec)
        except BadImageError as error:
            raise _faulty(file, images, row, error) from None
        moments.add(slot_HWC)
    return moments.fill(spec, images)


def _stored(file: TableFile, images: Path, row: Row, spec: ImageSpec) -> bytes:
    """Return the bytes of a row's image for the shards: upright, and in the format of the spec."""
    data = _read(file, images, row)
    try:
        return turn_upright(data, _encoding(data), spec.encoding)
    except BadImageError as error:
        raise _faulty(file, images, row, error) from None


def _encoding(data: bytes) -> Encoding:
    """Return what an image is by its first bytes, as names can be wrong.

    Raises:
        BadImageError: it is neither a JPEG nor a PNG.
    """
    if data.startswith(JPEG_START):
        return "jpg"
    if data.startswith(PNG_START):
        return "png"
    raise BadImageError(f"expected a JPEG or PNG, found {describe(data)}; convert it")


def _faulty(file: TableFile, images: Path, row: Row, error: BadImageError) -> UserError:
    return UserError(f"{file.path}:{row.line}: {images / row.cells[file.names_column]}: {error}.")


def _read(file: TableFile, images: Path, row: Row) -> bytes:
    try:
        return read_bytes(images / row.cells[file.names_column], MAX_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{file.path}:{row.line}: image {row.cells[file.names_column][:MAX_NAME]!r} is not in {images}."
        ) from None
    except UserError as error:
        raise UserError(f"{file.path}:{row.line}: {error}") from None
