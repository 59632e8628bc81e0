"""Fetch a file from a server, complete and verified, or raise one clear error within a bounded time.

http and https use the standard library, which needs no event loop and survives a fork; s3 uses fsspec. No other scheme
is supported: a `pipe:` address would run a command.
"""

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from io import BufferedRandom
from typing import IO, NamedTuple, TypeVar

from trainer.data.format.address import address_fault
from trainer.data.format.manifest import FileSpec
from trainer.errors import UserError
from trainer.plain import cut_line

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
"""Wait between the first two attempts; each later one is twice as long: 31 s in total."""
STALL_SECONDS = 30.0
"""A transfer without a byte for this long has failed."""
CHUNK_BYTES = 1 << 16
"""Bytes read and written at a time."""
S3_BLOCK_BYTES = 8 << 20
"""Bytes per request: s3 files are read in ranges."""

Value = TypeVar("Value")


class _Opened(NamedTuple):
    """A file on a server.

    Attributes:
        start: the first byte of the answer: the requested one, or 0 if the server does not support that.
        size: size of the whole file, if the server says it.
        read: returns up to that many bytes, as soon as there are any; none at the end.
    """

    start: int
    size: int | None
    read: Callable[[int], bytes]


class _RefusedError(Exception):
    """A failure that another attempt would not change."""


def fetch_bytes(url: str, *, max_bytes: int) -> bytes:
    """Fetch a file of unknown size.

    Raises:
        UserError: all ATTEMPTS fail, or the file is larger than `max_bytes`.
    """

    def attempt() -> bytes:
        content = bytearray()
        with _open(url, 0) as found:
            while chunk := found.read(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise _RefusedError(f"it is longer than {max_bytes} bytes")
        return bytes(content)

    return _retry(url, attempt)


def fetch_file(url: str, expected: FileSpec, stream: BufferedRandom) -> None:
    """Fetch a file of known size and checksum, continuing an earlier transfer.

    Args:
        url: its address.
        expected: its size and SHA-256.
        stream: open for reading and appending. Its content is taken for the start of the file.

    Raises:
        UserError: all ATTEMPTS fail: the stream keeps what was received. Or the server has another file than expected:
            the stream is empty.
    """
    _retry(url, lambda: _continue(url, expected, stream))


def check_file(url: str, expected: FileSpec) -> None:
    """Check that a file exists and has the expected size, without transferring it.

    Raises:
        UserError: it does not, or the server does not answer within ATTEMPTS.
    """

    def attempt() -> None:
        with _open(url, 0) as found:
            _check_size(found, expected)

    _retry(url, attempt)


def _continue(url: str, expected: FileSpec, stream: BufferedRandom) -> None:
    received = stream.seek(0, 2)
    if received < expected.bytes:
        with _open(url, received) as found:
            _check_size(found, expected)
            stream.truncate(found.start)
            _append(found.read, stream, expected.bytes)
        received = found.start
    stream.seek(0)
    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != expected.sha256:
        stream.truncate(0)
        fault = f"expected {expected.bytes} bytes of sha256 {expected.sha256}, found sha256 {sha256}"
        # The earlier bytes may come from an older file: only a whole transfer proves that the server has another one.
        raise OSError(fault) if received else _RefusedError(fault)


def _check_size(found: _Opened, expected: FileSpec) -> None:
    if found.size not in (None, expected.bytes):
        raise OSError(f"expected {expected.bytes} bytes, the server says {found.size}")


def _append(read: Callable[[int], bytes], stream: BufferedRandom, size: int) -> None:
    position = stream.seek(0, 2)
    while chunk := read(min(CHUNK_BYTES, size + 1 - position)):
        position += len(chunk)
        if position > size:
            stream.truncate(0)
            raise _RefusedError(f"expected {size} bytes, found more")
        _write(stream, chunk)
    if position < size:
        raise OSError(f"the transfer ended after {position} of {size} bytes")


def _write(stream: BufferedRandom, chunk: bytes) -> None:
    try:
        stream.write(chunk)
        stream.flush()
    except OSError as error:  # our disk, not the server: another attempt would not help
        raise UserError(f"{stream.name} cannot be written: {error}.") from None


def _retry(url: str, attempt: Callable[[], Value]) -> Value:
    started, wait, fault = time.monotonic(), FIRST_WAIT_SECONDS, ""
    for left in reversed(range(ATTEMPTS)):
        try:
            return attempt()
        except _RefusedError as error:
            raise UserError(
                f"{url} cannot be used: {cut_line(str(error))}.\n"
                "Correct data.path, the address of a folder that `paretrain data ...` wrote, or repair that folder."
            ) from None
        except TimeoutError:
            fault = f"no byte for {STALL_SECONDS:g} s"
        except (OSError, http.client.HTTPException) as error:
            fault = cut_line(str(error)) or type(error).__name__
        if left:
            time.sleep(wait)
            wait *= 2
    raise UserError(
        f"{url} cannot be fetched: {fault}. Tried {ATTEMPTS} times in {time.monotonic() - started:.0f} s.\n"
        "What has arrived is kept: type the same command again when the server answers."
    )


@contextmanager
def _open(url: str, start: int) -> Iterator[_Opened]:
    with (_open_s3 if url.startswith("s3:") else _open_http)(url, start) as opened:
        yield opened


@contextmanager
def _open_http(url: str, start: int) -> Iterator[_Opened]:
    with _ask(url, start) as response:
        part = response.headers.get("Content-Range", "") if response.status == 206 else ""
        first = start if part.startswith(f"bytes {start}-") else 0
        size = None if response.length is None else first + response.length
        yield _Opened(first, size, partial(_read_http, response))


def _ask(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "paretrain", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(urllib.parse.quote(url, safe="%/:@[]!$&'()*+,;=~"), headers=headers)
    try:
        return _opener().open(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file ends before the byte that we asked for
            return _ask(url, 0)
        answer = f"the server answered {error.code} {error.reason}"
        if error.code < 500 and error.code not in (408, 425, 429):
            raise _RefusedError(answer) from None
        raise OSError(answer) from None
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else OSError(str(error.reason)) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only, and never from https to http."""

    inf_msg = "it redirects in a loop, or more than 10 times: "

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> http.client.HTTPResponse | None:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:  # the address is parsed before `redirect_request` sees it
            fp.close()
            raise _RefusedError(f"it redirects to a malformed address: {error}") from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        fp.close()  # otherwise its body, of any length, is read
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise _RefusedError(f"it redirects from {req.type} to {newurl}; only http and https are followed")
        if fault := address_fault(newurl):
            raise _RefusedError(f"it redirects to {newurl}: {fault}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener, which adds handlers for ftp, file and data addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read_http(response: http.client.HTTPResponse, size: int) -> bytes:
    chunk = response.read1(size)
    if not chunk and response.length:
        raise OSError(f"the transfer ended {response.length} bytes early")
    return chunk


@contextmanager
def _open_s3(url: str, start: int) -> Iterator[_Opened]:
    try:
        import fsspec
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        # Keys, region and endpoint come from the usual places: AWS_... variables and ~/.aws.
        limits = {"connect_timeout": STALL_SECONDS, "read_timeout": STALL_SECONDS, "retries": {"max_attempts": 1}}
        system = fsspec.filesystem("s3", config_kwargs=limits)
        system.retries = 1  # we retry ourselves, and report it
    except ImportError:
        raise _RefusedError("s3:// needs one more package; type: pip install 'paretrain[s3]'") from None
    try:
        with system.open(url, "rb", block_size=S3_BLOCK_BYTES) as source:
            source.seek(start)
            yield _Opened(start, source.size, source.read)
    except (FileNotFoundError, PermissionError, NoCredentialsError) as error:
        raise _RefusedError(f"S3 says: {error}") from None
    except BotoCoreError as error:
        raise OSError(str(error)) from None
