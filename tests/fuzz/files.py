"""Changes of files: what happens to any file, and mutations of those that hold JSON."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutate
from tests.fuzz.case import Change


def swap(draw: Random, path: Path) -> Change:
    """Put something else in a file's place."""
    ways: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "a FIFO": lambda: os.mkfifo(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to /dev/full": lambda: path.symlink_to("/dev/full"),
        "a terabyte of nothing": lambda: os.truncate(_empty(path), 1 << 40),
    }
    way = draw.choice(sorted(ways))
    path.unlink()
    ways[way]()
    return Change(f"{path} is {way}", _names(path))


def damage(draw: Random, path: Path) -> Change:
    """Damage a file's bytes."""
    what, content = mutate.content(draw, path.read_bytes())
    path.write_bytes(content)
    return Change(f"{path}: {what}", _names(path))


def edit_json(draw: Random, path: Path, may_differ: Callable[[mutate.Path, Any, Any], bool]) -> Change:
    """Change one value of a JSON file. `may_differ` is told where, the old value and the new document's there."""
    old = json.loads(path.read_text())
    where, new = mutate.tree(draw, old)
    path.write_text(json.dumps(new))
    return changed_value(path, where, old, new, may_differ)


def edit_json_line(draw: Random, path: Path, may_differ: Callable[[mutate.Path, Any, Any], bool]) -> Change:
    """Change one value in one line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    old = json.loads(lines[number])
    where, new = mutate.tree(draw, old)
    lines[number] = json.dumps(new)
    path.write_text("\n".join(lines) + "\n")
    return changed_value(path, where, old, new, may_differ)


def changed_value(
    path: Path, where: mutate.Path, old: Any, new: Any, may_differ: Callable[[mutate.Path, Any, Any], bool]
) -> Change:
    """Describe a change of one value of a document."""
    before, after = mutate.at(old, where), _at(new, where)
    fields = [part for part in where if isinstance(part, str)]
    meant = may_differ(where, before, after)
    return Change(f"{path}: {where} = {after!r:.80}", (*_names(path), *fields), meant)


GONE = object()


def _at(value: Any, path: mutate.Path) -> Any:
    try:
        return mutate.at(value, path)
    except (KeyError, IndexError, TypeError):
        return GONE


def _names(path: Path) -> tuple[str, ...]:
    return (path.name,)


def _empty(path: Path) -> Path:
    path.touch()
    return path
