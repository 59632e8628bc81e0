"""Check that all processes of a run have the same configuration, data, code and packages.

Each process collects facts, as names and values. One small message compares the facts of all processes; they are
exchanged in full only if they differ.
"""

import hashlib
import json
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.config.schema import Experiment
from trainer.errors import UserError
from trainer.files import sha256
from trainer.plain import shortened
from trainer.user_code import OURS, is_user_code, python_files

PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "torchjd",
    "transformers",
    "timm",
)
"""Packages whose versions are compared."""
MISSING = "missing"
MAX_DIFFERENCES = 12
"""Differences in a message at most."""
MAX_CHARACTERS = 43
"""Characters of a value in a message at most."""

Facts = Mapping[str, str]


def facts_of(experiment: Experiment) -> dict[str, str]:
    """Return the facts of this process, except those of its data, which may not be here yet."""
    fields = _fields(experiment.model_dump(mode="json"))
    return {**fields, **_versions(), **_code(_own_files()), **_code(_users_files(experiment))}


def facts_of_data(manifest: Path, source: str = "") -> dict[str, str]:
    """Return the facts of a data folder; its manifest has the checksums of all its other files.

    Args:
        manifest: its path.
        source: name of the folder among data.sources; empty for the only one.
    """
    return {f"data: {f'{source} ' if source else ''}{manifest.name}": sha256(manifest)}


def refuse_differences(mine: Facts, world_size: int) -> None:
    """Compare the facts of all processes. Collective.

    Raises:
        UserError: they differ; every rank raises the same message.
    """
    if world_size == 1:
        return
    digest = hashlib.sha256(json.dumps(sorted(mine.items())).encode()).hexdigest()
    if len(set(_gathered(digest, world_size))) > 1:
        of_ranks = _gathered(dict(mine), world_size)
        raise UserError(difference(of_ranks, _gathered(socket.gethostname(), world_size)))


def difference(of_ranks: Sequence[Facts], hosts: Sequence[str]) -> str:
    """Return a message about the facts that differ, and where.

    Args:
        of_ranks: the facts of all ranks.
        hosts: the hosts of all ranks.
    """
    lines = []
    for name in dict.fromkeys(name for facts in of_ranks for name in facts):
        values = [facts.get(name, MISSING) for facts in of_ranks]
        usual = Counter(values).most_common(1)[0][0]
        lines += [
            f"{name}: {shortened(value, MAX_CHARACTERS)} on {_hosts_of(value, values, hosts)}, "
            f"{shortened(usual, MAX_CHARACTERS)} on {_hosts_of(usual, values, hosts)}"
            for value in dict.fromkeys(values)
            if value != usual
        ]
    more = [f"and {len(lines) - MAX_DIFFERENCES} more"] if len(lines) > MAX_DIFFERENCES else []
    return "\n  ".join(
        [
            "the processes of this run differ, so they would not train one model:",
            *lines[:MAX_DIFFERENCES],
            *more,
            "Give all of them the same configuration, data, code and packages",
        ]
    )


def _gathered(value: Any, world_size: int) -> list[Any]:
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def _hosts_of(value: str, values: Sequence[str], hosts: Sequence[str]) -> str:
    """Return the hosts that have a value, with the first rank on each."""
    ranks = [rank for rank, found in enumerate(values) if found == value]
    first = {hosts[rank]: rank for rank in reversed(ranks)}
    named = [f"{host} (rank {rank})" for host, rank in sorted(first.items(), key=lambda item: item[1])]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more hosts" if len(named) > 3 else "")


def _fields(values: Any, path: str = "") -> dict[str, str]:
    """Return the leaves of a nested mapping by their dotted names."""
    if isinstance(values, dict) and values:
        fields: dict[str, str] = {}
        for key, value in values.items():
            fields |= _fields(value, f"{path}.{key}" if path else str(key))
        return fields
    return {path: json.dumps(values)}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def names_of_code(experiment: Experiment) -> list[str]:
    """Return the names in a configuration that lead to the user's own code; see `trainer.user_code`."""
    heads = [head.name for head in (experiment.model.head, experiment.model.tower) if head is not None]
    losses = [section.loss for section in experiment.tasks.values() if section.loss is not None]
    names = [experiment.model.encoder.name, *heads, *losses, experiment.balance.weighting, experiment.optimizer.name]
    return [name for name in dict.fromkeys(names) if is_user_code(name)]


def _code(files: Iterable[tuple[str, Path]]) -> dict[str, str]:
    return {f"code: {name}": sha256(path) for name, path in files}


def _own_files() -> Iterator[tuple[str, Path]]:
    """Yield the Python files of this project's packages, which lie beside one another."""
    root = Path(__file__).parents[2]
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path


def _users_files(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Yield the Python files behind the names in a configuration, except packages whose versions are compared."""
    for name in names_of_code(experiment):
        if ":" in name or name.partition(".")[0] not in PACKAGES:
            yield from python_files(name)
