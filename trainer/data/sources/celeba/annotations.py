"""CelebA's annotations: its names and sizes, and the two text files that label 202,599 aligned faces.

The data set is Liu et al. 2015, "Deep Learning Face Attributes in the Wild". Its text files exist in several variants:
with or without a count line, as CSV, with 0 for -1, with a byte order mark or Windows line ends. All of these are
accepted; any other fault in a row is an error that names its line.

Shapes: N images, T = 40 attributes.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_NAMES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
    Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
    Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
    Wearing_Necktie Young
"""

ATTRIBUTES = tuple(_NAMES.split())
"""In the order of list_attr_celeba.txt."""

SPLITS = ("train", "val", "test")
"""For the codes 0, 1 and 2 of list_eval_partition.txt."""

OFFICIAL_SIZES = {"train": 162_770, "val": 19_867, "test": 19_962}

WIDTH, HEIGHT = 178, 218
"""Size of the aligned images."""

ATTRIBUTES_STEM, PARTITION_STEM, IMAGES_STEM = "list_attr_celeba", "list_eval_partition", "img_align_celeba"

_VALUES = {"-1": 0, "0": 0, "1": 1}

Row = tuple[int, list[str]]
"""A line's number and its fields."""


def read_attributes(content: bytes, path: Path, *, partial: bool = False) -> tuple[list[str], np.ndarray]:
    """Read list_attr_celeba.txt or .csv.

    Args:
        content: content of the file.
        path: its path, for error messages; the suffix says whether it is CSV.
        partial: whether fewer rows than the first line says are accepted, with a warning.

    Returns:
        The images' names, and their attributes as uint8 0 or 1, shape (N, T), in the order of ATTRIBUTES.

    Raises:
        UserError: a line is wrong; the message names it.
    """
    rows = list(_rows(content, path))
    promised = rows.pop(0)[1] if _is_count(rows[0][1]) else None
    if not rows:
        raise UserError(f"{path} contains a count and nothing else.\n{_fetch_again(path)}")
    columns_T = _columns(*rows.pop(0), path)
    if promised is not None and promised[0].lstrip("0") != str(len(rows)):
        if not partial or int(promised[0][:20]) < len(rows):
            raise UserError(
                f"{path}:1: says {promised[0][:20]} images, found {len(rows)} rows.\n{_fetch_again(path)}\n"
                "If it is a part of CelebA that you want, add --skip-missing."
            )
        logger.warning("%s:1: says %s images, found %d rows, which are used.", path, promised[0][:20], len(rows))
    names, values, texts = [], bytearray(), set[str]()
    for line, fields in rows:
        if len(fields) != 1 + len(ATTRIBUTES):
            raise UserError(
                f"{path}:{line}: expected a name and {len(ATTRIBUTES)} values, found {len(fields) - 1} values."
            )
        names.append(fields[0])
        texts.update(fields[1:])
        try:
            values.extend([_VALUES[text] for text in fields[1:]])
        except KeyError as error:
            raise UserError(f"{path}:{line}: values should be -1 or 1 (or 0 or 1), found {error}.") from None
    if {"-1", "0"} <= texts:
        raise UserError(f"{path} contains both -1 and 0, so it is unclear which means no. Replace one of them.")
    _refuse_doubles(names, rows, path)
    return names, np.frombuffer(bytes(values), np.uint8).reshape(-1, len(ATTRIBUTES))[:, columns_T]


def read_partition(content: bytes, path: Path) -> dict[str, int]:
    """Read list_eval_partition.txt or .csv.

    Args:
        content: content of the file.
        path: its path, for error messages; the suffix says whether it is CSV.

    Returns:
        Image name -> index in SPLITS.

    Raises:
        UserError: a line is wrong; the message names it.
    """
    rows = list(_rows(content, path))
    if rows[0][1][0] == "image_id":
        rows.pop(0)
    codes = {str(code): code for code in range(len(SPLITS))}
    partition = {}
    for line, fields in rows:
        if len(fields) != 2 or fields[1] not in codes:
            raise UserError(
                f"{path}:{line}: expected a name and 0 (train), 1 (validation) or 2 (test), found {' '.join(fields)!r}."
            )
        partition[fields[0]] = codes[fields[1]]
    if len(partition) < len(rows):
        _refuse_doubles([fields[0] for _, fields in rows], rows, path)
    return partition


def write_attributes(path: Path, names: Sequence[str], attributes_NT: np.ndarray) -> None:
    """Write list_attr_celeba.txt exactly like CelebA, including the space after the last name."""
    texts = np.where(attributes_NT, " 1", "-1")
    with path.open("w", newline="\n") as file:
        file.write(f"{len(names)}\n{' '.join(ATTRIBUTES)} \n")
        file.writelines(f"{name} {' '.join(row)}\n" for name, row in zip(names, texts.tolist(), strict=True))


def write_partition(path: Path, names: Sequence[str], codes: Sequence[int]) -> None:
    """Write list_eval_partition.txt exactly like CelebA."""
    with path.open("w", newline="\n") as file:
        file.writelines(f"{name} {code}\n" for name, code in zip(names, codes, strict=True))


def _rows(content: bytes, path: Path) -> Iterator[Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error}.\n{_fetch_again(path)}") from None
    if not text.strip():
        raise UserError(f"{path} is empty.\n{_fetch_again(path)}")
    if text.lstrip().startswith("<"):
        raise UserError(f"{path} is a web page: the download has failed.\n{_fetch_again(path)}")
    lines = text.splitlines()
    table = csv.reader(lines, skipinitialspace=True) if path.suffix == ".csv" else map(str.split, lines)
    try:
        yield from ((number, fields) for number, fields in enumerate(table, 1) if fields)
    except csv.Error as error:
        raise UserError(f"{path} is not CSV: {error}.\n{_fetch_again(path)}") from None


def _is_count(fields: list[str]) -> bool:
    return len(fields) == 1 and fields[0].isdecimal()


def _columns(line: int, fields: list[str], path: Path) -> list[int]:
    """Return the position of each attribute among the values of a row."""
    names = fields[1:] if fields[0] == "image_id" else fields
    for name in names:
        if name not in ATTRIBUTES:
            raise UserError(
                f"{path}:{line}: expected CelebA's {len(ATTRIBUTES)} attribute names, found {name!r}"
                f"{did_you_mean(name, ATTRIBUTES)}"
            )
    missing = [name for name in ATTRIBUTES if name not in names]
    if missing or len(names) > len(ATTRIBUTES):
        found = f"without {', '.join(missing[:5])}" if missing else "one of them twice"
        raise UserError(
            f"{path}:{line}: expected CelebA's {len(ATTRIBUTES)} attribute names, found {len(names)}, {found}."
        )
    return [names.index(name) for name in ATTRIBUTES]


def _refuse_doubles(names: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    first: dict[str, int] = {}
    for name, (line, _) in zip(names, rows, strict=True):
        if name in first:
            raise UserError(f"{path}:{line}: {name} appears twice, first in line {first[name]}.")
        first[name] = line


def _fetch_again(path: Path) -> str:
    return f"The download may be damaged, or another file: fetch {path.name} again."
