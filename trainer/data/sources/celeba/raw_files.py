"""Find and read CelebA's raw files, in any of the layouts in which they are distributed, zipped or not."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.data.sources.celeba.annotations import ATTRIBUTES_STEM, IMAGES_STEM, PARTITION_STEM
from trainer.errors import UserError
from trainer.files import MAX_TEXT_BYTES, read_bytes

AnyPath = Path | zipfile.Path
"""A path on the disk or inside a zip."""

MAX_IMAGE_BYTES = 1 << 20
"""Larger than any aligned face; limits what a zip's member may unpack to."""


class UnreadableError(Exception):
    """An image whose bytes cannot be read; its argument says why."""


@dataclass(frozen=True)
class RawFiles:
    """The parts of CelebA.

    Attributes:
        attributes: list_attr_celeba.txt or .csv.
        partition: list_eval_partition.txt or .csv.
        images: the folder of the aligned images.
    """

    attributes: AnyPath
    partition: AnyPath
    images: AnyPath


def find_celeba(root: Path) -> RawFiles:
    """Find the raw files in a folder, or in a zip that contains them all.

    Supported layouts are the official one (Anno/, Eval/, Img/), torchvision's (celeba/) and Kaggle's (CSV files, and a
    folder img_align_celeba in another of that name). The images may be in img_align_celeba.zip.

    Raises:
        UserError: a part is missing, or a zip cannot be read.
    """
    base = _open_zip(root) if root.is_file() else root
    tops = (base, base / "celeba")

    def text(stem: str, subfolder: str) -> AnyPath:
        names = [f"{folder}{stem}{suffix}" for folder in ("", f"{subfolder}/") for suffix in (".txt", ".csv")]
        return _first(root, names, [top / name for top in tops for name in names])

    folders = [f"{parent}{IMAGES_STEM}{deeper}" for parent in ("", "Img/") for deeper in (f"/{IMAGES_STEM}", "")]
    zips = [f"{parent}{IMAGES_STEM}.zip" for parent in ("", "Img/")]
    packed = [_open_zip(top / name) / IMAGES_STEM for top in tops for name in zips if _is_file(top / name)]
    return RawFiles(
        attributes=text(ATTRIBUTES_STEM, "Anno"),
        partition=text(PARTITION_STEM, "Eval"),
        images=_first(root, [*folders, *zips], [*(top / name for top in tops for name in folders), *packed]),
    )


def read_whole(path: AnyPath) -> bytes:
    """Return the content of one of the text files.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if isinstance(path, Path):
            return read_bytes(path)
        if path.root.getinfo(path.at).file_size > MAX_TEXT_BYTES:
            raise UserError(f"{path} unpacks to more than {MAX_TEXT_BYTES:,} bytes.")
        return path.read_bytes()
    except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def list_images(folder: AnyPath) -> tuple[set[str], Callable[[str], bytes]]:
    """List the JPEG files of a folder.

    Returns:
        Their names, and a function that reads one of them or raises UnreadableError.

    Raises:
        UserError: it is not a folder, or cannot be read.
    """
    if isinstance(folder, Path):
        directory = folder
        try:
            with os.scandir(directory) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(".jpg") and entry.is_file()}
        except OSError as error:
            raise UserError(f"{directory} cannot be read: {error.strerror}.") from None
        return names, lambda name: _read(f"{directory}/{name}")
    archive, prefix = folder.root, folder.at
    members = {
        member.filename.removeprefix(prefix): member
        for member in archive.infolist()
        if member.filename.startswith(prefix) and member.filename.endswith(".jpg")
    }
    return set(members), lambda name: _unpack(archive, members[name])


def _first(root: Path, names: Iterable[str], candidates: Iterable[AnyPath]) -> AnyPath:
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"{root} has none of {', '.join(names)}.\n"
        f"Point --root at CelebA as it was downloaded: the folder with {ATTRIBUTES_STEM}.txt, {PARTITION_STEM}.txt and "
        f"{IMAGES_STEM} (unpacked, or {IMAGES_STEM}.zip)."
    )


def _is_file(path: AnyPath) -> bool:
    return isinstance(path, Path) and path.is_file()


def _open_zip(path: AnyPath) -> zipfile.Path:
    try:
        return zipfile.Path(str(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a zip: {error}.\nThe download may be damaged, or another file: fetch it again."
        ) from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # making a Path would take longer than reading the file
            return file.read()
    except OSError as error:
        raise UnreadableError(str(error)) from None


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MAX_IMAGE_BYTES:
        raise UnreadableError(f"unpacks to {member.file_size:,} bytes")
    try:
        return archive.read(member)
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableError(str(error)) from None  # RuntimeError: encrypted
