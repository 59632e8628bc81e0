"""Find out which labels the samples of a split have, for messages about tasks without any."""

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.format.foreign import ForeignSpec
from trainer.data.format.index import walk_samples
from trainer.data.format.manifest import SplitSpec
from trainer.data.format.tar import open_tar
from trainer.errors import UserError

MAX_SHARDS = 20
MAX_SAMPLES = 50
"""Samples of each shard whose labels are looked at."""
MAX_NAMES = 1000
MAX_SHOWN = 12
MAX_LABEL_BYTES = 1 << 16
"""Larger members are named, and not searched for keys."""

# Of json/person/age: age, and person.age.
_SHORT_FORMS: tuple[Callable[[str], str], ...] = (
    lambda address: address.rpartition("/")[2],
    lambda address: address.partition("/")[2].replace("/", "."),
)


def find_labels(folder: Path, split: SplitSpec, foreign: ForeignSpec | None, arrays: Sequence[str]) -> list[str]:
    """Return the names of labels that some samples of a split have, sorted.

    Args:
        folder: the folder of the shards; shards that are not there, or damaged, are passed over.
        split: the split.
        foreign: how to read the shards, if another program wrote them.
        arrays: extensions of the array members, which are no labels.

    Returns:
        Keys of the JSON members; for foreign shards with their member, such as `json/age` or `cls`.
    """
    found: set[str] = set()
    for shard in split.shards[:MAX_SHARDS]:
        try:
            with open_tar(folder / shard.file) as tar:
                for _, members in islice(walk_samples(tar, shard.file, foreign is not None), MAX_SAMPLES):
                    for extension, member in members.items():
                        if extension not in arrays and len(found) < MAX_NAMES:
                            size = member.size if member.size <= MAX_LABEL_BYTES else 0
                            found.update(_addresses(extension, tar[member.offset : member.offset + size]))
        except UserError:
            continue
    if foreign:
        return sorted(found)
    return sorted(address.removeprefix("json/") for address in found if address.startswith("json/"))


def suggestion(name: str, addresses: Sequence[str]) -> str:
    """Return the end of a message about a task without labels: what was perhaps meant, and what there is."""
    short = {form(address): address for address in addresses for form in _SHORT_FORMS}
    close = difflib.get_close_matches(name, short, n=1)
    meant = f" Did you mean {short[close[0]]!r}?" if close else ""
    shown = ", ".join(map(repr, addresses[:MAX_SHOWN])) + (", ..." if len(addresses) > MAX_SHOWN else "")
    how = " Name one of them with from: MEMBER/KEY." if any("/" in address for address in addresses) else ""
    return f"{meant} Labels that samples have: {shown or 'none'}.{how}"


def _addresses(extension: str, content: bytes) -> Iterator[str]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    yield from _leaves(extension, value, depth=4)


def _leaves(address: str, value: Any, depth: int) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not depth:  # a label, or an empty list of them
        yield address
        return
    for key, inner in islice(items, MAX_NAMES):
        yield from _leaves(f"{address}/{key}", inner, depth - 1)
