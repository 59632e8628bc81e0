"""Bring the state of a checkpoint of an older format to today's; docs/formats.md says what each format was."""

from collections.abc import Mapping
from typing import Any

from trainer.runtime.checkpoints.manifest import FORMAT, OLDEST


def in_todays_format(values: Mapping[str, Any], written_in: int) -> dict[str, Any]:
    """Return the values of `TrainState` from those of an older format.

    Args:
        values: as the checkpoint has them.
        written_in: the format of the checkpoint, from OLDEST to FORMAT.
    """
    assert OLDEST <= written_in <= FORMAT, "read_manifest refuses others"
    found = dict(values)
    version = found.get("version", 1)
    if written_in > 4 or not isinstance(version, int) or version not in (1, 2):
        return found
    # The state had a version of its own: the first one, or none, had the place in one source of data only.
    found.pop("version", None)
    if version == 1:
        found["sources"] = {"": {name: found.pop(name) for name in ("cursor", "bad_samples") if name in found}}
    return found
