"""The text files: what is read, and the line that a refusal names."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.support.raw_celeba import NAMES, SAMPLES
from trainer.data.sources.celeba.annotations import (
    ATTRIBUTES,
    read_attributes,
    read_partition,
    write_attributes,
    write_partition,
)
from trainer.data.sources.synthetic.generate import attributes
from trainer.errors import UserError

TXT, CSV = Path("list_attr_celeba.txt"), Path("list_attr_celeba.csv")
PARTITION = Path("list_eval_partition.txt")
VALUES_NT = attributes(0, np.arange(SAMPLES))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("format") / TXT
    write_attributes(path, NAMES, VALUES_NT)
    return path.read_bytes().decode()


def reordered(content: str) -> str:
    count, names, *rows = content.splitlines()
    fields = [row.split() for row in rows]
    return "\n".join([count, " ".join(names.split()[::-1]), *(" ".join([f[0], *f[:0:-1]]) for f in fields)])


def to_csv(content: str) -> str:
    _, names, *rows = (line.split() for line in content.splitlines())
    return "".join(",".join(fields) + "\r\n" for fields in [["image_id", *names], *rows])


# What is read


def test_the_file_has_the_oddities_of_the_original(content: str) -> None:
    lines = content.split("\n")
    assert lines[0] == str(SAMPLES)
    assert lines[1].endswith("Young ")
    assert lines[2].startswith("000001.jpg ")
    assert len(lines[2]) == len("000001.jpg") + 3 * 40
    # torchvision's reading of the original: 41 names, the last of them empty, and values of -1 and 1.
    rows = list(csv.reader(lines, delimiter=" ", skipinitialspace=True))
    assert rows[1] == [*ATTRIBUTES, ""]
    assert np.array_equal(np.array([row[1:] for row in rows[2:-1]], int), np.where(VALUES_NT, 1, -1))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (TXT, lambda text: text),
        (TXT, lambda text: text.partition("\n")[2]),
        (TXT, lambda text: text.replace("\n", "\r\n")),
        (TXT, lambda text: "\ufeff" + text),
        (TXT, lambda text: text.replace("-1", " 0")),
        (TXT, lambda text: text + "\n\n"),
        (TXT, reordered),
        (CSV, to_csv),
        (CSV, lambda text: to_csv(text).replace("-1", "0")),
    ],
    ids=["original", "no count", "crlf", "bom", "zeros", "blank lines", "reordered", "csv", "csv of zeros"],
)
def test_every_known_shape_of_the_attributes_is_read(content: str, path: Path, change: object) -> None:
    names, values_NT = read_attributes(change(content).encode(), path)  # type: ignore[operator]
    assert names == NAMES
    assert np.array_equal(values_NT, VALUES_NT)


@pytest.mark.parametrize("text", ["a.jpg 0\nb.jpg 2\n", "\ufeffa.jpg  0 \r\nb.jpg 2"])
def test_the_partition_is_read(text: str) -> None:
    assert read_partition(text.encode(), PARTITION) == {"a.jpg": 0, "b.jpg": 2}
    table = "image_id,partition\n" + "".join(",".join(line.split()) + "\n" for line in ("a.jpg 0", "b.jpg 2"))
    assert read_partition(table.encode(), PARTITION.with_suffix(".csv")) == {"a.jpg": 0, "b.jpg": 2}


def test_the_partition_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_partition(tmp_path / PARTITION, ["a.jpg", "b.jpg"], [1, 2])
    assert (tmp_path / PARTITION).read_bytes() == b"a.jpg 1\nb.jpg 2\n"


# What is refused

AGAIN = "fetch list_attr_celeba.txt again."


def cut_line(text: str, number: int) -> str:
    lines = text.split("\n")
    lines[number - 1] = lines[number - 1].rpartition(" ")[0].rstrip()
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "list_attr_celeba.txt is empty."),
        (lambda text: "12\n", AGAIN),
        (
            lambda text: "<!DOCTYPE html><title>Google Drive - Quota exceeded</title>",
            "list_attr_celeba.txt is a web page",
        ),
        (
            lambda text: text.replace("12", "13", 1),
            "list_attr_celeba.txt:1: says 13 images, found 12 rows",
        ),
        (
            lambda text: cut_line(text, 5),
            "list_attr_celeba.txt:5: expected a name and 40 values, found 39 values.",
        ),
        (
            lambda text: text.replace("000004.jpg -1", "000004.jpg  2"),
            "list_attr_celeba.txt:6: values should be -1 or 1 (or 0 or 1), found '2'.",
        ),
        (
            lambda text: text.replace("000004.jpg -1", "000004.jpg  0"),
            "list_attr_celeba.txt contains both -1 and 0",
        ),
        (
            lambda text: text.replace("000004.jpg", "000002.jpg"),
            "list_attr_celeba.txt:6: 000002.jpg appears twice, first in line 4.",
        ),
        (
            lambda text: text.replace("Eyeglasses", "Eyeglases"),
            "list_attr_celeba.txt:2: expected CelebA's 40 attribute names, found 'Eyeglases'; "
            "did you mean 'Eyeglasses'?",
        ),
        (
            lambda text: text.replace("Male ", "", 1),
            "list_attr_celeba.txt:2: expected CelebA's 40 attribute names, found 39, without Male.",
        ),
        (
            lambda text: text.replace("Male ", "Male Male ", 1),
            "list_attr_celeba.txt:2: expected CelebA's 40 attribute names, found 41, one of them twice.",
        ),
        (
            lambda text: "\n".join(text.splitlines()[2:]),
            "list_attr_celeba.txt:1: expected CelebA's 40 attribute names, found '000001.jpg'.",
        ),
    ],
)
def test_attributes_that_are_wrong(content: str, change: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_attributes(change(content).encode(), TXT)  # type: ignore[operator]
    assert message in str(error.value)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(UserError, match=r"list_attr_celeba.txt is not text"):
        read_attributes(b"\xff\xd8\xff\xe0", TXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 3\n", ":1: expected a name and 0 (train), 1 (validation) or 2 (test), found 'a.jpg 3'."),
        ("a.jpg 0\nb.jpg\n", ":2: expected a name and 0 (train), 1 (validation) or 2 (test), found 'b.jpg'."),
        ("a.jpg 0\nb.jpg 1\na.jpg 2\n", ":3: a.jpg appears twice, first in line 1."),
        ("", " is empty."),
    ],
)
def test_a_partition_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_partition(text.encode(), PARTITION)
    assert f"list_eval_partition.txt{message}" in str(error.value)
