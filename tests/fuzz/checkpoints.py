"""Mutated checkpoints: pointer, manifest, state, pieces; damaged by accident, and signed again by somebody."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.fuzz import files, folders, mutate
from tests.fuzz.case import Change, Target
from tests.support.runs import CLOCK
from trainer.files import sha256

RUN = Path("runs/run")
CHECKPOINTS = RUN / "checkpoints"
PARTS = "*.safetensors"
LATEST = CHECKPOINTS / "LATEST"
NEWEST = CHECKPOINTS / "step_00000002"


def make() -> None:
    """Train two steps, and keep both."""
    from trainer.cli import main

    folders.write_data(Path("data"))
    folders.write_config(Path("config.yaml"))
    folders.write_neighbour(Path("neighbour"))
    assert main(["train", "config.yaml"]) == 0


def change(draw: Random, command: Sequence[str]) -> tuple[Change, Sequence[str]]:
    """Change the pointer, the newest checkpoint, or its manifest; or forge a part of it."""
    names = (NEWEST.name, LATEST.name, "checkpoint")
    way = draw.choice(("swap", "damage", "damage", "manifest", "pointer", "state", "pieces", "config", "lose"))
    if way == "pointer":
        pointer = draw.choice(("", "step_00000001", "step_00000009", "../../..", "/", ".", "x" * 300, "\0", "step_2\n"))
        LATEST.write_text(pointer)
        return Change(f"LATEST is {pointer!r:.40}", names, may_differ=pointer == "step_00000001"), command
    if way == "lose":
        path = draw.choice((LATEST, NEWEST, CHECKPOINTS, RUN / "metrics.jsonl", CHECKPOINTS / "step_00000001"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Change(
            f"{path} is lost", (*names, path.name), may_differ=path in (CHECKPOINTS, RUN / "metrics.jsonl")
        ), command
    if way == "config":
        path = RUN / "config.yaml"
        found = draw.choice((files.swap, files.damage))(draw, path)
        return Change(
            found.what, (*found.names, *names, "configuration", "model:", "balance:"), may_differ=True
        ), command
    if way == "manifest":
        found = files.edit_json(draw, NEWEST / "manifest.json", lambda where, *_: False)
        # A run passes a damaged checkpoint over and goes on from the one before it, to the same numbers.
        return Change(found.what, (*found.names, *names), may_differ=command[0] == "train"), command
    if way == "state":
        return Change(f"forged {_forge_state(draw)}", names, may_differ=True), command
    if way == "pieces":
        return Change(f"forged {_forge_pieces(draw)}", names, may_differ=True), command
    path = draw.choice(sorted(NEWEST.iterdir()))
    found = (files.swap if way == "swap" else files.damage)(draw, path)
    return Change(found.what, (*found.names, *names), may_differ=command[0] == "train"), command


def _forge_state(draw: Random) -> str:
    """Change a value of the run's state or of its random number generators."""
    return _forge_metadata(draw, draw.choice([path for path in sorted(NEWEST.glob(PARTS)) if _is_plain(path)]), "value")


def _forge_pieces(draw: Random) -> str:
    """Change where the pieces of a tensor belong, or a tensor itself."""
    path = draw.choice([path for path in sorted(NEWEST.glob(PARTS)) if not _is_plain(path)])
    return _forge_metadata(draw, path, "pieces", change_a_tensor=draw.random() < 0.3)


def _is_plain(path: Path) -> bool:
    return path.name.startswith(("state", "generators"))


def _forge_metadata(draw: Random, path: Path, key: str, change_a_tensor: bool = False) -> str:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    where, changed = mutate.tree(draw, json.loads(metadata[key]))
    tensors: dict[str, Any] = load_file(path)
    if change_a_tensor and tensors:
        name = draw.choice(sorted(tensors))
        tensors[name] = draw.choice((tensors[name].double(), tensors[name][:-1], tensors[name].view(1, -1)))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, {**metadata, key: json.dumps(changed)})
    _sign(path)
    return f"{path.name}: {where}"


def _sign(path: Path) -> None:
    manifest = json.loads((NEWEST / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (NEWEST / "manifest.json").write_text(json.dumps(manifest))


def result(command: Sequence[str], said: str) -> str:
    """Return the numbers that a run has logged, without its clock; of another command what it printed."""
    if command[0] != "train":
        return said
    records = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: value for key, value in record.items() if key not in CLOCK} for record in records]
    return json.dumps([record for record in numbers if record["kind"] != "note"])


TARGET = Target(
    "checkpoints",
    make,
    change,
    commands=(
        ("train", "config.yaml", "train.steps=3"),
        ("eval", "runs/run"),
        ("export", "runs/run", "--out", "out.safetensors"),
    ),
    draws=(1, 4, 4),
    result=result,
    writes=(r"runs/run(/.*)?", r"out\.(safetensors|md)", r"\.?out.*"),
)
