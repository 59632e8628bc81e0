"""One file from a server that does everything that servers do."""

import hashlib
import resource
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from io import BufferedRandom, BytesIO
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_server import Server, serving
from trainer.data.format.manifest import FileSpec
from trainer.data.remote import transfer
from trainer.data.remote.transfer import _Redirects, _RefusedError, check_file, fetch_bytes, fetch_file
from trainer.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
NAME = "train-000000.tar"
GOOD = FileSpec(file=NAME, bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / NAME).write_bytes(CONTENT)
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[BufferedRandom]:
    with (tmp_path / "copy").open("a+b") as stream:
        yield stream


def held(stream: BufferedRandom) -> bytes:
    stream.seek(0)
    return stream.read()


def refusal(server: Server, stream: BufferedRandom, expected: FileSpec = GOOD) -> str:
    with pytest.raises(UserError) as error:
        fetch_file(f"{server.url}/{NAME}", expected, stream)
    return str(error.value).replace(server.url, "URL")


# Transfers that end well


def test_a_whole_file(server: Server, stream: BufferedRandom) -> None:
    fetch_file(f"{server.url}/{NAME}", GOOD, stream)
    assert held(stream) == CONTENT
    server.faults[NAME] = [("cut", 1000)]
    assert fetch_bytes(f"{server.url}/{NAME}", max_bytes=len(CONTENT)) == CONTENT


@pytest.mark.long
@pytest.mark.parametrize("fault", [("cut", 1_000_000), ("stall", 1_000_000), ("length", 5), 503, 429])
def test_what_a_second_attempt_can_mend(
    server: Server, stream: BufferedRandom, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(fault, tuple) and fault[0] == "stall":
        monkeypatch.setattr(transfer, "STALL_SECONDS", 1.0)
    server.faults[NAME] = [fault]
    fetch_file(f"{server.url}/{NAME}", GOOD, stream)
    assert held(stream) == CONTENT
    if isinstance(fault, tuple) and fault[0] != "length":
        assert server.asked_for(NAME) == [0, 1_000_000], "what had arrived was fetched again"


def test_a_server_without_ranges_sends_all_again(server: Server, stream: BufferedRandom) -> None:
    server.honours_range = False
    server.faults[NAME] = [("cut", 1_000_000)]
    fetch_file(f"{server.url}/{NAME}", GOOD, stream)
    assert held(stream) == CONTENT


def test_a_file_is_looked_for_without_being_transferred(server: Server) -> None:
    check_file(f"{server.url}/{NAME}", GOOD)
    with pytest.raises(UserError, match="the server says 3000000"):
        check_file(f"{server.url}/{NAME}", GOOD.model_copy(update={"bytes": 5}))
    with pytest.raises(UserError, match="404 Not Found"):
        check_file(f"{server.url}/nothing", GOOD)


@pytest.mark.parametrize("before", [CONTENT[:777], CONTENT, bytes(777), bytes(len(CONTENT)), CONTENT + b"more"])
def test_what_an_earlier_process_left_is_continued_where_it_is_right(
    server: Server, stream: BufferedRandom, before: bytes
) -> None:
    stream.write(before)
    fetch_file(f"{server.url}/{NAME}", GOOD, stream)
    assert held(stream) == CONTENT
    expected = {777: [777], len(CONTENT): []}.get(len(before), [0]) if before == CONTENT[: len(before)] else None
    assert expected is None or server.asked_for(NAME) == expected


def test_a_start_that_is_longer_than_the_servers_file(server: Server, stream: BufferedRandom) -> None:
    """As when the first try met another version: the server has no byte to continue with."""
    (server.folder / NAME).write_bytes(CONTENT[:1000])
    stream.write(bytes(2000))
    said = refusal(server, stream)
    assert f"expected {len(CONTENT)} bytes, the server says 1000" in said
    server.says_length = False
    assert f"the transfer ended after 1000 of {len(CONTENT)} bytes" in refusal(server, stream)


# Transfers that end in one error


def test_a_missing_file_is_not_waited_for(server: Server, stream: BufferedRandom) -> None:
    (server.folder / NAME).unlink()
    assert f"URL/{NAME} cannot be used: the server answered 404 Not Found." in refusal(server, stream)
    assert len(server.requests) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "the server answered 503 Service Unavailable"),
        (("stall", 0), "no byte for 1 s"),
        (("cut", 0), f"the transfer ended {len(CONTENT)} bytes early"),
    ],
)
def test_a_server_that_stays_broken(
    server: Server, stream: BufferedRandom, fault: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 1.0)
    server.faults[NAME] = [fault] * 9
    found = refusal(server, stream)
    assert found.startswith(f"URL/{NAME} cannot be fetched: {said}. Tried 3 times in ")
    assert "What has arrived is kept: type the same command again when the server answers." in found
    assert len(server.requests) == 3


def test_no_server_at_all(stream: BufferedRandom) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched: \[Errno 111\] Connection refused. Tried 3 times in 0 s"):
        fetch_file("http://127.0.0.1:9/x", GOOD, stream)


def test_another_file_of_the_same_length(server: Server, stream: BufferedRandom) -> None:
    (server.folder / NAME).write_bytes(bytes(len(CONTENT)))
    said = refusal(server, stream)
    assert f"cannot be used: expected {len(CONTENT)} bytes of sha256 {GOOD.sha256}, found sha256 " in said
    assert held(stream) == b"", "a later attempt would go on from the wrong bytes"
    assert len(server.requests) == 1


def test_a_longer_file_is_not_read_to_its_end(server: Server, stream: BufferedRandom) -> None:
    (server.folder / NAME).write_bytes(CONTENT * 3)
    said = f"cannot be fetched: expected {len(CONTENT)} bytes, the server says {3 * len(CONTENT)}. Tried 3 times"
    assert said in refusal(server, stream)
    server.says_length = False
    assert f"cannot be used: expected {len(CONTENT)} bytes, found more" in refusal(server, stream)
    assert held(stream) == b""
    with pytest.raises(UserError, match="it is longer than 1000 bytes"):
        fetch_bytes(f"{server.url}/{NAME}", max_bytes=1000)


def test_a_full_disk_is_no_reason_to_try_again(server: Server, tmp_path: Path) -> None:
    """No file may grow beyond 1 MB: the write itself fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stream = (tmp_path / "copy").open("a+b")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert refusal(server, stream).startswith(f"{stream.name} cannot be written: [Errno 27] File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        stream.close()
    assert len(server.requests) == 1


# Redirects


def test_a_redirect_is_followed_with_its_range_and_query(
    server: Server, stream: BufferedRandom, tmp_path: Path
) -> None:
    stream.write(CONTENT[:1000])
    with serving(tmp_path) as other:
        server.faults[NAME] = [("redirect", f"{other.url}/{NAME}?token=1&x=y")]
        fetch_file(f"{server.url}/{NAME}", GOOD, stream)
        assert other.requests == [(f"{NAME}?token=1&x=y", 1000)]
    assert held(stream) == CONTENT


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("ftp://127.0.0.1:1/x", "redirects from http to ftp://127.0.0.1:1/x; only http and https are followed"),
        ("file:///etc/hostname", "file:///etc/hostname"),
        ("data:text/plain,x", "data:text/plain,x"),
        ("http://127.0.0.1:99999/x", "Port out of range"),
        ("http://[::1/x", "malformed address"),
        ("http://me:secret@127.0.0.1/x", "user names and passwords"),
        (f"/data/{NAME}", "in a loop"),
    ],
)
def test_other_redirects_are_refused_at_once(server: Server, stream: BufferedRandom, to: str, said: str) -> None:
    server.faults[NAME] = [("redirect", to)] * 99
    found = refusal(server, stream)
    assert f"URL/{NAME} cannot be used: " in found
    assert said in found
    assert len(server.requests) == (1 if said != "in a loop" else 5)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://host/x")
    with pytest.raises(_RefusedError, match="redirects from https to http://host/x"):
        _Redirects().redirect_request(request, BytesIO(), 302, "Found", HTTPMessage(), "http://host/x")


def test_the_body_of_a_redirect_is_not_read() -> None:
    request, body = urllib.request.Request("http://host/x"), BytesIO(b"x")
    assert _Redirects().redirect_request(request, body, 302, "Found", HTTPMessage(), "http://host/y") is not None
    assert body.closed


def test_what_a_server_says_cannot_write_to_the_terminal(server: Server, stream: BufferedRandom) -> None:
    server.faults[NAME] = [("reason", "No\x1b[2J\rway" + 2000 * "!")]
    found = refusal(server, stream)
    assert r"the server answered 404 No\x1b[2J\rway!!!" in found
    assert found.replace("\n", "").isprintable()
    assert len(found) < 1500


# S3


@pytest.mark.long
def test_s3_with_the_usual_variables(server: Server, stream: BufferedRandom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback server answers as an S3-compatible store does."""
    endpoint = server.url.removesuffix("/data")
    keys = {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "nowhere",
        "ENDPOINT_URL": endpoint,
    }
    for key, value in keys.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    stream.write(CONTENT[:1000])
    fetch_file(f"s3://data/{NAME}", GOOD, stream)
    assert held(stream) == CONTENT
    assert server.asked_for(NAME)[0] == 1000
    with pytest.raises(UserError, match=r"^s3://data/nothing cannot be used: S3 says: "):
        fetch_bytes("s3://data/nothing", max_bytes=9)
