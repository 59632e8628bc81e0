"""What must be the same in all processes of a run: its configuration, its data, its code and the packages around it.

Facts are names and values, as text; those of two processes that train together are equal. They are compared by one
small message, and told in full only where they differ.
"""

import hashlib
import importlib.util
import json
import platform
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.config.schema import Experiment
from trainer.errors import UserError
from trainer.files import sha256

OURS = ("paretrain", "trainer", "models", "launch")
"""Packages whose files are compared."""
PACKAGES = ("torch", "accelerate", "deepspeed", "numpy", "scipy", "opencv-python-headless", "torchjd", "transformers")
"""Packages whose versions are compared."""
MISSING = "missing"
TOLD = 12
"""Differences in a message at most."""
SHOWN = 40
"""Characters of a value in a message at most."""

Facts = Mapping[str, str]


def facts_of(experiment: Experiment) -> dict[str, str]:
    """The facts of this process, those of its data apart, which may not be here yet."""
    fields = _fields(experiment.model_dump(mode="json"))
    return {**fields, **_versions(), **_code([*OURS, *_modules(experiment)])}


def facts_of_data(manifest: Path) -> dict[str, str]:
    """The facts of a data folder, whose manifest has the checksums of all its other files."""
    return {f"data: {manifest.name}": sha256(manifest)}


def refuse_differences(mine: Facts, world_size: int) -> None:
    """Compare the facts of all processes. Collective.

    Raises:
        UserError: they differ; the same on every rank.
    """
    if world_size == 1:
        return
    digest = hashlib.sha256(json.dumps(sorted(mine.items())).encode()).hexdigest()
    if len(set(_gathered(digest, world_size))) > 1:
        of_ranks = _gathered(dict(mine), world_size)
        raise UserError(difference(of_ranks, _gathered(socket.gethostname(), world_size)))


def difference(of_ranks: Sequence[Facts], hosts: Sequence[str]) -> str:
    """Say which facts differ, where, in the order of ranks."""
    lines = []
    for name in dict.fromkeys(name for facts in of_ranks for name in facts):
        values = [facts.get(name, MISSING) for facts in of_ranks]
        usual = Counter(values).most_common(1)[0][0]
        lines += [
            f"{name}: {_short(value)} on {_places(value, values, hosts)}, {_short(usual)} on "
            f"{_places(usual, values, hosts)}"
            for value in dict.fromkeys(values)
            if value != usual
        ]
    more = [f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else []
    return "\n  ".join(
        [
            "the processes of this run differ, and would train something else together than each alone:",
            *lines[:TOLD],
            *more,
            "Give all of them the same configuration, data, code and packages",
        ]
    )


def _gathered(value: Any, world_size: int) -> list[Any]:
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def _places(value: str, values: Sequence[str], hosts: Sequence[str]) -> str:
    """The hosts of a value, and the first rank on each."""
    ranks = [rank for rank, found in enumerate(values) if found == value]
    first = {hosts[rank]: rank for rank in reversed(ranks)}
    named = [f"{host} (rank {rank})" for host, rank in sorted(first.items(), key=lambda item: item[1])]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more hosts" if len(named) > 3 else "")


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."


def _fields(values: Any, path: str = "") -> dict[str, str]:
    """A nested mapping -> its leaves, by dotted names."""
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


def _modules(experiment: Experiment) -> list[str]:
    """The top-level modules of the dotted paths of a configuration."""
    heads = [head.name for head in (experiment.model.head, experiment.model.tower) if head is not None]
    paths = [experiment.model.encoder.name, *heads, experiment.balance.weighting]
    return [path.partition(".")[0] for path in paths if "." in path]


def _code(modules: Sequence[str]) -> dict[str, str]:
    """The checksums of all Python files of some top-level modules, but for those whose versions are compared."""
    own = [module for module in modules if module not in PACKAGES]
    return {f"code: {name}": sha256(path) for module in own for name, path in _files(module)}


def _files(module: str) -> Iterator[tuple[str, Path]]:
    """A module's files, by names that are the same on every host."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return  # Whoever builds the model refuses it.
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            yield f"{module}/{path.relative_to(folder).as_posix()}", path
    if not spec.submodule_search_locations and spec.has_location and spec.origin:
        yield f"{module}.py", Path(spec.origin)
