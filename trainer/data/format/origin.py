"""The mark that the cache puts into a folder: which address the folder is a copy of."""

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


class _Mark(BaseModel):
    # Marks of earlier versions also held a bound of the cache. Only the configuration sets it.
    model_config = ConfigDict(strict=True, extra="ignore")

    url: str


def origin(folder: Path) -> str | None:
    """Return the address that a folder's mark names; None for a folder without a sound mark.

    A mark is sound only in a folder with the name that the cache gives to a copy of that address. It proves nothing
    about who made the folder: only `copy_at`, which also knows the configured cache, decides what is a copy.
    """
    try:
        url = _Mark.model_validate_json(read_bytes(folder / ORIGIN_NAME, MAX_ORIGIN_BYTES)).url
        is_sound = is_url(url) and os.path.basename(os.path.realpath(folder)) == copy_name(url)
    except (FileNotFoundError, UserError, ValidationError):
        return None
    return url if is_sound else None


def mark_of(url: str) -> bytes:
    """Return the content of the mark of a copy of an address."""
    return json.dumps({"url": url}).encode()


def copy_name(url: str) -> str:
    """Return the name of the cache's folder for an address without a slash at its end."""
    # The hash keeps apart what ends in the same name: .../train/shards and .../test/shards.
    return f"{url.rpartition('/')[2][:50]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
