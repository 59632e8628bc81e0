"""One file from a server, whole and verified, or one clear error after a stated time.

http and https are read by the standard library, which needs no event loop and survives a fork; s3 through fsspec.
Nothing else is opened: a `pipe:` address would run a command.
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
"""Between the first two attempts; each later wait is twice as long: 31 s together."""
STALL_SECONDS = 30.0
"""A transfer without a byte for so long has failed."""
CHUNK_BYTES = 1 << 16
"""Read, and written to the disk, at a time."""
S3_BLOCK_BYTES = 8 << 20
"""Of one request: s3 files are read in ranges."""

Value = TypeVar("Value")


class _Opened(NamedTuple):
    """A file on a server.

    Attributes:
        start: the byte that comes first: the one asked for, or 0 where the server cannot do that.
        size: of the whole file, where the server says it.
        read: gives up to so many bytes, as soon as there are any; none at the end.
    """

    start: int
    size: int | None
    read: Callable[[int], bytes]


class _RefusedError(Exception):
    """An answer that will be the same next time."""


def fetch_bytes(url: str, *, max_bytes: int) -> bytes:
    """The content of a file of unknown size.

    Raises:
        UserError: it cannot be had within ATTEMPTS, or is larger than `max_bytes`.
    """

    def attempt() -> bytes:
        content = bytearray()
        with _open(url, 0) as found:
            while chunk := found.read(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise _RefusedError(f"it is longer than {max_bytes} bytes")
        return bytes(content)

    return _patiently(url, attempt)


def fetch_file(url: str, expected: FileSpec, stream: BufferedRandom) -> None:
    """Fill a file until it has the expected size and checksum, going on from where an earlier transfer left it.

    Args:
        url: where it lies.
        expected: its size and SHA-256.
        stream: open for reading and appending. What it holds is taken for the start of the file.

    Raises:
        UserError: it cannot be had within ATTEMPTS, and the stream keeps what was received; or it is another file than
            expected, and the stream is empty.
    """
    _patiently(url, lambda: _go_on(url, expected, stream))


def check_file(url: str, expected: FileSpec) -> None:
    """Ask whether a file is there and has the expected size, and transfer nothing of it.

    Raises:
        UserError: it is not, or the server does not answer within ATTEMPTS.
    """

    def attempt() -> None:
        with _open(url, 0) as found:
            _check_size(found, expected)

    _patiently(url, attempt)


def _go_on(url: str, expected: FileSpec, stream: BufferedRandom) -> None:
    held = stream.seek(0, 2)
    if held < expected.bytes:
        with _open(url, held) as found:
            _check_size(found, expected)
            stream.truncate(found.start)
            _append(found.read, stream, expected.bytes)
        held = found.start
    stream.seek(0)
    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != expected.sha256:
        stream.truncate(0)
        fault = f"expected {expected.bytes} bytes of sha256 {expected.sha256}, found sha256 {sha256}"
        # What was held may come from an older file: only a whole transfer proves that the server holds another one.
        raise OSError(fault) if held else _RefusedError(fault)


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
    except OSError as error:  # ours, not the server's: trying again would not help
        raise UserError(f"{stream.name} cannot be written: {error}.") from None


def _patiently(url: str, attempt: Callable[[], Value]) -> Value:
    started, wait, fault = time.monotonic(), FIRST_WAIT_SECONDS, ""
    for left in reversed(range(ATTEMPTS)):
        try:
            return attempt()
        except _RefusedError as error:
            raise UserError(
                f"{url} cannot be used: {cut_line(str(error))}.\n"
                "Mend data.path, the address of a data folder as `paretrain data ...` writes it, or mend that folder."
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
        if error.code == 416 and start:  # its file ends before the byte that we ask for
            return _ask(url, 0)
        answer = f"the server answered {error.code} {error.reason}"
        if error.code < 500 and error.code not in (408, 425, 429):
            raise _RefusedError(answer) from None
        raise OSError(answer) from None
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else OSError(str(error.reason)) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects from http and https to these alone, and never from the encrypted one to the other."""

    inf_msg = "it redirects in a circle, or more than 10 times: "

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
        fp.close()  # else its body, of any length, is read
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise _RefusedError(f"it redirects from {req.type} to {newurl}; only http and https are followed")
        if fault := address_fault(newurl):
            raise _RefusedError(f"it redirects to {newurl}: {fault}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener, which adds handlers of ftp, file and data addresses.
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

        # Keys, region and endpoint come from where every S3 tool has them: AWS_... variables and ~/.aws.
        limits = {"connect_timeout": STALL_SECONDS, "read_timeout": STALL_SECONDS, "retries": {"max_attempts": 1}}
        system = fsspec.filesystem("s3", config_kwargs=limits)
        system.retries = 1  # ours are counted and said
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
