import io
import tarfile

import pytest

from trainer.data.format.tar import walk_tar
from trainer.errors import UserError

CONTENTS = {"a.json": b"{}", "a.png": b"x" * 512, "b.json": b"", "b.png": b"y" * 1300}


def make_tar(kind: bytes = tarfile.REGTYPE, **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in CONTENTS.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def refusal(tar: bytes) -> str:
    with pytest.raises(UserError) as error:
        list(walk_tar(tar, "x.tar"))
    return str(error.value)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_the_standard_library_finds_them(format: int) -> None:
    content = make_tar(format=format)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [tuple(member) for member in walk_tar(content, "x.tar")] == expected


# In an archive of these contents, the second header stands at byte 1024 and the last content ends at byte 4608.
@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, 1500, 3000, 4608, 4608 + 512])
def test_a_tar_cut_anywhere_is_refused(cut: int) -> None:
    assert "x.tar" in refusal(make_tar()[:cut])


def test_a_flipped_bit_in_any_header_is_refused() -> None:
    whole = make_tar()
    for header in (0, 1024):
        for byte in (0, 99, 124, 150, 156, 257, 500):
            damaged = bytearray(whole)
            damaged[header + byte] ^= 1
            assert f"byte {header}: expected a tar header" in refusal(bytes(damaged))


def test_zeros_in_the_middle_are_not_taken_for_the_end() -> None:
    damaged = bytearray(make_tar())
    damaged[1024:2048] = bytes(1024)
    assert "byte 1024: empty blocks that are not the archive's end" in refusal(bytes(damaged))


@pytest.mark.parametrize("content", [b"<html>404</html>" * 64, b"\x1f\x9d" + b"q" * 2000])
def test_other_files_are_refused(content: bytes) -> None:
    assert "Not a tar, or damaged" in refusal(content)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_only_regular_files_are_members(kind: bytes) -> None:
    assert "is no regular file" in refusal(make_tar(kind=kind))
