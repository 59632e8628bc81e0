"""Make a data folder of images in a folder and a CSV file of their labels.

Shapes: H rows, W columns, C channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data.format.decode import BadImageError, decode_into, image_shape
from trainer.data.format.manifest import Manifest
from trainer.data.format.pixels import PixelMoments, unmeasured
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import MAX_BYTES, MAX_NAME, Encoding, ImageSpec, ScalarTaskSpec
from trainer.data.sources.columns import build_tasks, label_reader, survey
from trainer.data.sources.csv_file import CsvFile, Row
from trainer.errors import UserError
from trainer.files import read_bytes

ENCODINGS: Mapping[str, Encoding] = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}

MAX_MEASURED = 2000
"""Images of the train split whose pixels are measured. The error of the mean is then about a thousandth."""


def write_image_folder(
    images: Path,
    csv: Path,
    out: Path,
    *,
    targets: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    split_column: str | None = None,
    size: tuple[int, int] | None = None,
) -> Manifest:
    """Write shards of images, whose bytes are not changed.

    Args:
        images: the folder of the images.
        csv: a file with a header; the first column names each image's file in the folder.
        out: the data folder to write.
        targets: names of the columns to predict; `*` matches anything. None: all but the first and `split_column`.
        kinds: column -> `classification` or `regression`, to override what its cells suggest.
        units: column of a regression -> unit of its error.
        split_column: the column that names each row's split; None: a fifth is `test`, chosen by a hash of the row.
        size: height and width that images are resized to while they are decoded. None: all must have the same size.

    Raises:
        UserError: a file, a column, a cell or an image is faulty; or as `write_shards`.
    """
    file = CsvFile(csv, split_column)
    others = {0, *file.find([split_column] if split_column else [])}
    chosen = [column for column in range(len(file.columns)) if column not in others]
    if targets is not None:
        chosen = [column for column in file.find(targets) if column not in others]
    if not chosen:
        raise UserError(f"{csv} has no column to predict: its columns are {', '.join(file.columns)}.")
    found, splits = survey(file, [], chosen, kinds or {})
    tasks = build_tasks(file, {column: found[column] for column in chosen}, kinds or {}, units or {})
    spec = _measured(file, images, _spec(file, images, size))
    return write_shards(
        out,
        name=csv.stem,
        made_by={"source": "folder", "images": images.name, "file": csv.name, "split_column": split_column},
        inputs=spec,
        tasks=tasks,
        splits={split: _samples(file, split, images, dict(zip(chosen, tasks, strict=True))) for split in splits},
    )


def _samples(file: CsvFile, split: str, images: Path, tasks: Mapping[int, ScalarTaskSpec]) -> Iterator[Sample]:
    targets = [(column, task.name, label_reader(task)) for column, task in tasks.items()]
    for row in file.of_split(split):
        labels = {name: read(row.cells[column]) for column, name, read in targets}
        yield Sample(_read(file, images, row), labels, name=row.cells[0])


def _spec(file: CsvFile, images: Path, size: tuple[int, int] | None) -> ImageSpec:
    """Return the spec that fits the headers of all images."""
    encoding: Encoding | None = None
    shapes: dict[tuple[int, int, int], str] = {}
    for row in file:
        name = row.cells[0]
        own = ENCODINGS.get(Path(name).suffix.lower())
        encoding = encoding or own
        if own is None or own != encoding:
            raise UserError(
                f"{file.path}:{row.line}: expected the name of a {encoding or 'jpg or png'} file, "
                f"found {name!r}.\nConvert the images to one format, and name their files in the first column."
            )
        try:
            shapes.setdefault(image_shape(_read(file, images, row), encoding), name)
        except BadImageError as error:
            raise UserError(f"{file.path}:{row.line}: {images / name}: {error}.") from None
    sizes = {shape[:2]: name for shape, name in shapes.items()}
    if len(sizes) > 1 and size is None:
        shown = ", ".join(f"{height} x {width} ({name})" for (height, width), name in list(sizes.items())[:3])
        raise UserError(
            f"{images} has images of {len(sizes)} sizes, height x width: {shown}.\n"
            "Choose the size that they are resized to when they are read, such as --size 224x224."
        )
    height, width = size or next(iter(sizes))
    channels = max(shape[2] for shape in shapes)
    assert encoding is not None, "a file without rows is refused"
    exact = set(shapes) == {(height, width, channels)}
    return unmeasured(height, width, 3 if channels == 3 else 1, encoding, "exact" if exact else "any")


def _measured(file: CsvFile, images: Path, spec: ImageSpec) -> ImageSpec:
    """Return the spec with mean and standard deviation of the train split's pixels."""
    count = sum(1 for _ in file.of_split("train"))
    stride = -(-count // MAX_MEASURED)
    moments, slot_HWC = PixelMoments(spec.channels), np.empty(spec.shape, np.uint8)
    for number, row in enumerate(file.of_split("train")):
        if number % stride:
            continue
        try:
            decode_into(slot_HWC, _read(file, images, row), spec)
        except BadImageError as error:
            raise UserError(f"{file.path}:{row.line}: {images / row.cells[0]}: {error}.") from None
        moments.add(slot_HWC)
    return moments.fill(spec, images)


def _read(file: CsvFile, images: Path, row: Row) -> bytes:
    try:
        return read_bytes(images / row.cells[0], MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{file.path}:{row.line}: image {row.cells[0][:MAX_NAME]!r} is not in {images}.") from None
    except UserError as error:
        raise UserError(f"{file.path}:{row.line}: {error}") from None
