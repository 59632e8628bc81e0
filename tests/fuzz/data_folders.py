"""Mutated data folders: manifest, index, labels, shards, origin."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import files, folders, mutate
from tests.fuzz.case import Change, Target
from trainer.files import sha256

DATA = Path("data")
MANIFEST = DATA / "manifest.json"


def make() -> None:
    """Make a data folder, a configuration for it, and the data folder of somebody else."""
    folders.write_data(DATA)
    folders.write_config(Path("config.yaml"))
    folders.write_neighbour(Path("neighbour"))


def change(draw: Random, command: Sequence[str]) -> tuple[Change, Sequence[str]]:
    """Change the manifest or another file, which the manifest then may or may not sign."""
    way = draw.choice(("manifest", "manifest", "swap", "damage", "damage", "forged", "forged", "origin"))
    path = draw.choice(sorted(DATA.iterdir()))
    if way == "manifest" and "data.verify=size" not in command:
        return files.edit_json(draw, MANIFEST, somebody_could_have_meant), command
    if way == "origin":
        return _add_origin(draw), command
    if way == "swap":
        return files.swap(draw, path), command
    found = files.damage(draw, path)
    by_size = "data.verify=size" in command and path.suffix == ".tar"
    if way == "forged" and path != MANIFEST and path.stat().st_size:
        _sign(path)
        # Nothing tells forged values of a table from right ones, but the shards, where they are compared.
        compared = command[0] == "check" and "data.verify=size" not in command
        found = Change(f"{found.what}, signed", (*found.names, *_sentences(path)), may_differ=not compared)
    elif path == MANIFEST:
        found = Change(found.what, found.names, may_differ=_is_sound(found))
    return Change(found.what, (*found.names, *_sentences(path)), found.may_differ or by_size), command


def somebody_could_have_meant(where: mutate.Path, old: Any, new: Any) -> bool:
    """Whether a changed value of a manifest is as good as the one before, for all that anybody can tell."""
    if where[0] == "made_by":
        return True
    if where[0] == "name" or (where[0] == "tasks" and {"name", "unit", "classes"} & set(where)):
        return isinstance(new, type(old)) or old is None or new is None
    if where[-1] in ("mean", "std") or (len(where) > 1 and where[-2] in ("mean", "std")):
        return isinstance(new, int | float | list) and not (isinstance(new, float) and not math.isfinite(new))
    if where[0] == "foreign":
        return False
    return old == new or new is files.GONE or where[-1] == "stored_sizes"


def _is_sound(found: Change) -> bool:
    """Whether a manifest whose bytes were damaged still is JSON: a letter of a name may have become another."""
    try:
        json.loads(MANIFEST.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _sentences(path: Path) -> tuple[str, ...]:
    """Name the folder for a table and a sample for a shard, which is where their faults lie."""
    return (path.name.split(".")[0].split("-")[0],)


def _sign(path: Path) -> None:
    manifest = json.loads(MANIFEST.read_text())
    for split in manifest["splits"].values():
        for spec in (*split["shards"], split["index"], split["labels"]):
            if spec["file"] == path.name:
                spec |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    MANIFEST.write_text(json.dumps(manifest))


def _add_origin(draw: Random) -> Change:
    """Make the folder say that it is a copy, as folders of others may."""
    origin = {"url": draw.choice(("http://localhost:1/x", "file:///etc", "ftp://h/x", "", 7)), "max_bytes": 1}
    if draw.random() < 0.5:
        _, origin = mutate.tree(draw, origin)
    (DATA / "origin.json").write_text(json.dumps(origin))
    if draw.random() < 0.5:
        draw.choice(sorted(DATA.glob("*.tar"))).unlink()
    return Change(f"origin {origin!r:.100}", ("origin.json", "data", "localhost"))


TARGET = Target(
    "data folders",
    make,
    change,
    commands=(("check", "config.yaml"), ("data", "check", "data"), ("check", "config.yaml", "data.verify=size")),
    draws=(6, 1, 3),
    writes=(r"data/contact_sheet\.png", r"data/\.?contact_sheet.*", "data", r"runs.*"),
)
