"""The origin file, which the cache writes into a copy of remote data: the address that it was copied from."""

import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.data.format.address import is_url
from trainer.errors import UserError
from trainer.files import read_bytes

ORIGIN_NAME = "origin.json"
MAX_ORIGIN_BYTES = 1 << 16


class _Origin(BaseModel):
    # Files of earlier versions also contain a bound of the cache, which is ignored: the configuration sets it.
    model_config = ConfigDict(strict=True, extra="ignore")

    url: str


def origin(folder: Path) -> str | None:
    """Return the address in a folder's origin file; None if it has no valid one.

    The file is valid only in a folder with the name that the cache gives to a copy of that address. It does not prove
    who made the folder: only `copy_at`, which also knows the configured cache, decides what is a copy.
    """
    try:
        url = _Origin.model_validate_json(read_bytes(folder / ORIGIN_NAME, MAX_ORIGIN_BYTES)).url
        is_sound = is_url(url) and os.path.basename(os.path.realpath(folder)) == copy_name(url)
    except (FileNotFoundError, UserError, ValidationError):
        return None
    return url if is_sound else None


def origin_content(url: str) -> bytes:
    """Return the content of the origin file of a copy of `url`."""
    return json.dumps({"url": url}).encode()


def copy_name(url: str) -> str:
    """Return the name of the folder of a copy of `url`, an address without a trailing slash."""
    # The hash distinguishes addresses that end in the same name: .../train/shards and .../test/shards.
    return f"{url.rpartition('/')[2][:50]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
