"""Where a data folder comes from: it was made here, or it is a copy of one at an address."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError

ORIGIN_NAME = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where a copy comes from.

    Attributes:
        url: the remote data folder.
        max_bytes: of all copies in the cache together; shards on their way may come on top.
    """

    url: str
    max_bytes: int


def origin(folder: Path) -> Origin | None:
    """Where a data folder comes from; None for one that is no copy.

    Raises:
        UserError: a folder that says it comes from what is no address.
    """
    path = folder / ORIGIN_NAME
    try:
        found = Origin(**json.loads(path.read_bytes()))
        is_address = is_url(found.url)  # the folder may have been made by anybody
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} does not say where the folder comes from: {error}. Delete {folder}.") from None
    if not is_address:
        raise UserError(f"{path}: expected the address of a data folder, found {found.url!r}. Delete {folder}.")
    return found


def is_url(path: str) -> bool:
    """Whether a data path is an address, and not a folder of this machine.

    Raises:
        UserError: an address of a kind that is not read.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
    if scheme is None:
        return False
    if not re.match(r"(https?|s3)://[^/]", path):
        raise UserError(
            f"data.path={path}: expected a folder, or an address that starts with http://, https:// or s3://; "
            f"found '{scheme[1]}:'.\n"
            "Nothing else is opened, commands least of all. A folder with a colon in its name is typed as ./NAME."
        )
    if "?" in path or "#" in path:
        raise UserError(f"data.path={path}: expected the address of a data folder, without '?' and '#'.")
    return True
