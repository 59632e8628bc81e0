"""CelebA's raw files: names, numbers, and the two text files that label 202,599 aligned faces.

The data set is Liu et al. 2015, "Deep Learning Face Attributes in the Wild". Its text files go around in several
shapes: with a count line or without, as CSV, with 0 for -1, with a byte order mark or Windows line ends. All of these
are read; whatever else is wrong with a row is an error with its line.

Shapes: N images, T = 40 attributes.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.errors import UserError, did_you_mean

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
"""By the codes 0, 1 and 2 of list_eval_partition.txt."""

OFFICIAL_SIZES = {"train": 162_770, "val": 19_867, "test": 19_962}

WIDTH, HEIGHT = 178, 218
"""Of the aligned images."""

ATTRIBUTES_STEM, PARTITION_STEM, IMAGES_STEM = "list_attr_celeba", "list_eval_partition", "img_align_celeba"

_VALUES = {"-1": 0, "0": 0, "1": 1}

Row = tuple[int, list[str]]
"""A line's number and its fields."""


def read_attributes(content: bytes, path: Path) -> tuple[list[str], np.ndarray]:
    """Reads list_attr_celeba.txt or .csv.

    Args:
        content: of the file.
        path: its name, for errors; the suffix says whether it is CSV.

    Returns:
        The images' names, and their attributes as uint8 0 or 1, shape (N, T), in the order of ATTRIBUTES.

    Raises:
        UserError: naming the line that is wrong.
    """
    rows = list(_rows(content, path))
    promised = rows.pop(0)[1] if _is_count(rows[0][1]) else None
    if not rows:
        raise UserError(f"{path} holds a count and nothing else.\n{_fetch_again(path)}")
    columns_T = _columns(*rows.pop(0), path)
    if promised is not None and promised[0].lstrip("0") != str(len(rows)):
        raise UserError(f"{path}:1: promises {promised[0][:20]} images, found {len(rows)} rows.\n{_fetch_again(path)}")
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
        raise UserError(f"{path} holds -1 and 0 both. Which of them means no? Write one for the other.")
    _refuse_doubles(names, rows, path)
    return names, np.frombuffer(bytes(values), np.uint8).reshape(-1, len(ATTRIBUTES))[:, columns_T]


def read_partition(content: bytes, path: Path) -> dict[str, int]:
    """Reads list_eval_partition.txt or .csv.

    Args:
        content: of the file.
        path: its name, for errors; the suffix says whether it is CSV.

    Returns:
        Number in SPLITS by image name.

    Raises:
        UserError: naming the line that is wrong.
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
    """Writes list_attr_celeba.txt as CelebA has it, the blank after the last name included."""
    texts = np.where(attributes_NT, " 1", "-1")
    with path.open("w", newline="\n") as file:
        file.write(f"{len(names)}\n{' '.join(ATTRIBUTES)} \n")
        file.writelines(f"{name} {' '.join(row)}\n" for name, row in zip(names, texts.tolist(), strict=True))


def write_partition(path: Path, names: Sequence[str], codes: Sequence[int]) -> None:
    """Writes list_eval_partition.txt as CelebA has it."""
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
        raise UserError(f"{path} is no CSV: {error}.\n{_fetch_again(path)}") from None


def _is_count(fields: list[str]) -> bool:
    return len(fields) == 1 and fields[0].isdecimal()


def _columns(line: int, fields: list[str], path: Path) -> list[int]:
    """Where each attribute stands among the values of a row."""
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
            raise UserError(f"{path}:{line}: {name} stands twice, first in line {first[name]}.")
        first[name] = line


def _fetch_again(path: Path) -> str:
    return f"It may be a broken or mistaken download: fetch {path.name} again."
