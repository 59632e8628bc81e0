"""The settings in which runs differ, from their config.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config.yaml_file import parse_yaml
from trainer.observe.read_run import RunFolder

SAME_RUN = ("name", "output", "wandb", "track", "checkpoint", "data.cache", "data.workers", "parallel.processes")
"""Keys, with all keys in them, that do not tell methods apart; tables have the name and the processes anyway."""


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return key -> value of each run, for the keys of which the runs have several values.

    A key that a file lacks is null: versions differ in what they write. Keys are as short as tells them apart.
    """
    of_runs = [dict(leaves(parse_yaml(run.config_text, str(run.path)))) for run in runs]
    found = {}
    for key in dict.fromkeys(key for settings in of_runs for key in settings):
        values = [settings.get(key) for settings in of_runs]
        if any(value != values[0] for value in values) and not any(f"{key}.".startswith(f"{s}.") for s in SAME_RUN):
            found[key] = values
    short = {key: key.rpartition(".")[2] for key in found}
    once = [name for name in short.values() if list(short.values()).count(name) == 1]
    return {short[key] if short[key] in once else key: values for key, values in found.items()}


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings by their dotted keys, without those that are null."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif values is not None:
        yield prefix, values
