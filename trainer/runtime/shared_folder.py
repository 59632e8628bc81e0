"""Check that all hosts of a run see the same run folder."""

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError
from trainer.files import SEEN_WITHIN_SECONDS, read_bytes, write_durably
from trainer.runtime.collectives import Runtime


def check_shared(folder: Path, runtime: Runtime) -> None:
    """Make sure that every rank sees what rank 0 writes into `folder`, and leave nothing behind. Collective.

    Raises:
        UserError: rank 0 cannot write there, or another host sees another folder under the same path.
    """
    if runtime.world_size == 1:
        return
    token, made = runtime.on_main(lambda: _write_token(folder))
    try:
        blind = None if _sees(token, folder) else socket.gethostname()
        hosts = runtime.gather((socket.gethostname(), blind))
    finally:
        if runtime.is_main:
            _remove(token, made)
    blind_hosts = sorted({host for _, host in hosts if host})
    if blind_hosts:
        raise UserError(
            f"the run's folder {folder} is not shared: what {hosts[0][0]} writes there is not seen on "
            f"{', '.join(blind_hosts)}. Expected one folder that every host sees under this path. "
            "Type output=FOLDER_ON_A_SHARED_FILE_SYSTEM"
        )


def _write_token(folder: Path) -> tuple[Path, list[Path]]:
    """Write a file with a unique name. Return its path, and the folders that were made for it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    token = folder / f".shared-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(token, token.name.encode())
    except OSError as error:
        raise UserError(f"the run's folder {folder} cannot be written: {error}") from None
    return token, made


def _sees(token: Path, folder: Path) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while True:
        with suppress(OSError, UserError):
            os.listdir(folder)  # Makes a network file system refresh its cache.
            if read_bytes(token) == token.name.encode():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _remove(token: Path, made: list[Path]) -> None:
    with suppress(OSError):
        token.unlink()
        for path in made:
            path.rmdir()
