"""Patterns over the names of parameters, as model.freeze and optimizer.groups have them."""

import difflib
from collections.abc import Collection
from fnmatch import fnmatchcase

from trainer.errors import UserError

MAX_SHOWN = 5


def matching(pattern: str, names: Collection[str], key: str) -> set[str]:
    """Return the names that match a pattern of the shell, such as `encoder.blocks.*`. A `*` matches dots too.

    Args:
        pattern: to match.
        names: of the network.
        key: of the configuration, for the error.

    Raises:
        UserError: there is none. The message has the nearest names.
    """
    found = {name for name in names if fnmatchcase(name, pattern)}
    if not found:
        raise UserError(f"{key}: no parameter's name matches '{pattern}'. {_nearest(pattern, names)}")
    return found


def _nearest(pattern: str, names: Collection[str]) -> str:
    """Return what to type: a pattern for a module that was meant, or the names that come near."""
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    if pattern in parts:
        return f"Type '{pattern}.*' for all of {pattern}"
    patterns = sorted(f"{part}.*" for part in parts)
    near = difflib.get_close_matches(pattern, [*names, *patterns], n=MAX_SHOWN, cutoff=0.5)
    if near:
        return f"Near it: {', '.join(near)}"
    return f"There are, for example: {', '.join(patterns[:MAX_SHOWN])}"
