"""The careful reader and writer: anything but a regular file of a sane size is one sentence."""

import os
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.files import parse_json, read_bytes, read_json, read_text, replace, write_durably


def test_a_file_comes_back(tmp_path: Path) -> None:
    replace(tmp_path / "a.json", b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_missing_file_is_the_callers_to_judge(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "no")


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(UserError, match="regular file"):
            read_bytes(path)
        with pytest.raises(UserError, match="not a regular file"):
            replace(path, b"")
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(Path("a\0b"))


def test_a_file_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(UserError, match="5 bytes; expected at most 4"):
        read_bytes(tmp_path / "a", max_bytes=4)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5_000, "\0"])
def test_what_is_not_json_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^here is n"):
        parse_json(text, "here")


def test_what_is_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="byte 2 is 0xff"):
        read_text(tmp_path / "a")


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    write_durably(tmp_path / "ours", b"new")
    assert (tmp_path / "theirs").read_text() == "precious"
    assert (tmp_path / "ours").read_bytes() == b"new"


def test_where_it_cannot_be_written_the_old_file_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        replace(tmp_path / "no" / "a", b"")
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        replace(tmp_path / ("a" * 300), b"")
