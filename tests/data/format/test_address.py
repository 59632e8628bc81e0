import re

import pytest

from trainer.data.format.address import is_url
from trainer.errors import UserError


@pytest.mark.parametrize("path", ["data/celeba", "/data/a#b", "./pipe:x", "a?b", "data/10:30/x", ""])
def test_folders_are_folders(path: str) -> None:
    assert not is_url(path)


@pytest.mark.parametrize("path", ["http://host/data", "https://host:8080/a/b/", "s3://bucket/data"])
def test_addresses_are_addresses(path: str) -> None:
    assert is_url(path)


@pytest.mark.parametrize(
    "path", ["pipe:cat /etc/passwd", "file:///etc", "gs://b/x", "ftp://h/x", "http:/h/x", "S3://b/x"]
)
def test_other_addresses_are_refused_and_nothing_is_opened(path: str) -> None:
    with pytest.raises(UserError, match=f"found '{path.partition(':')[0]}:'"):
        is_url(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://:99999/x", "names no host"),
        ("https://host:99999/x", "Port out of range"),
        ("https://host:port/x", "Port could not be cast"),
        ("https://host:0/x", "port is 0"),
        ("http://[::1/x", "Invalid IPv6 URL"),
        ("http://a..b/x", "empty part"),
        (f"http://{'a' * 64}.org/x", "more than 63"),
        ("http://host/a b", "has a space, which is typed as %20"),
        ("http://host/a\nb", "has a control character"),
        ("http://host/\x1b[31m", "has a control character"),
        ("http://host/\udcff", "has a control character"),
        ("http://me:secret@host/x", "user names and passwords"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://a b/x", "names no bucket"),
    ],
)
def test_malformed_addresses_are_refused_at_once(path: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        is_url(path)
    assert str(error.value).isprintable()


def test_an_address_with_a_query_is_refused() -> None:
    with pytest.raises(UserError, match=r"it has '\?' or '#'"):
        is_url("https://host/data?token=1")
