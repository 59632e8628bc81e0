"""Checkpoints hold plain values only, and a forged one is used or refused in a sentence."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.runtimes import ALONE
from tests.support.small_checkpoints import SGD
from trainer.errors import UserError
from trainer.files import sha256
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.checkpoints.values import read_values, to_bytes
from trainer.training.optimizer.settings import Setting
from trainer.training.restore import check_optimizer, load_model, read_state

PLAIN = {"a": [1, 2.5, float("inf"), None, True, "x"], 3: (torch.arange(3), {"b": ()}), "empty": {}}


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(to_bytes(PLAIN))
    found = read_values(tmp_path / "a")
    assert torch.equal(found[3][0], torch.arange(3))
    assert found["a"] == PLAIN["a"]
    assert (list(found), found[3][1]) == (["a", 3, "empty"], {"b": ()})


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", 1j, torch.float32, torch.eye(2).to_sparse(), torch.zeros(1, dtype=torch.complex128)]
)
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^\['a'\] is a "):
        to_bytes({"a": value})


VALUES = (None, True, -1, 0, 10**30, 2**63, 1e308, float("nan"), "", "../x", [], {}, [[1]], {"a": 1}, 3.5)


def mutate(tree: Any, draw: random.Random) -> Any:
    """Set or remove one value somewhere in a JSON tree."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(tree)
    node, key = draw.choice(places)
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(VALUES)
    return tree


def sign(file: Path) -> None:
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


def forge_manifest(path: Path, draw: random.Random) -> None:
    manifest = mutate(json.loads((path / "manifest.json").read_text()), draw)
    (path / "manifest.json").write_text(json.dumps(manifest))


def forge_metadata(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.glob("*.safetensors")))
    with safe_open(file, framework="pt") as opened:
        ((key, text),) = opened.metadata().items()
    save_file(load_file(file), file, {key: json.dumps(mutate(json.loads(text), draw))})
    sign(file)


def forge_tensor(path: Path, draw: random.Random) -> None:
    file = draw.choice([file for file in sorted(path.glob("*.safetensors")) if file.name[:5] != "state"])
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    others = [tensors[name].double(), tensors[name][:-1], tensors[name][None], tensors[name].bool(), torch.zeros(9999)]
    tensors[name] = draw.choice(others).clone()
    save_file(tensors, file, metadata)
    sign(file)


def forge_bytes(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    content[draw.randrange(100)] = draw.randrange(256)
    file.write_bytes(content[: draw.choice((None, 0, 5, -1))])
    sign(file)


def forge_kind(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.iterdir()))
    file.unlink()
    make: Callable[[Path], None] = draw.choice((os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)))
    make(file)


FORGERIES = (forge_manifest, forge_metadata, forge_tensor, forge_bytes, forge_kind)


@pytest.mark.long
@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_checkpoint_is_used_or_refused_in_a_sentence(forge: Any, two: Path) -> None:
    path, sound = two / "step_00000020", two / "sound"
    path.rename(sound)
    refusals = []
    for seed in range(40):
        shutil.copytree(sound, path)
        forge(path, random.Random(seed))
        try:
            use(path)
        except UserError as error:
            refusals.append(str(error))
        shutil.rmtree(path)
    assert len(refusals) > 10
    for said in refusals:
        assert "step_00000020" in said
        assert len(said) < 3000


def use(path: Path) -> None:
    """All that a run does with a checkpoint."""
    network = nn.Linear(3, 2)
    snapshot = load(path, ALONE)
    read_state(snapshot)
    load_model(network, snapshot, ALONE)
    check_optimizer(network, snapshot, SGD, {name: Setting(1.0, 0.0) for name, _ in network.named_parameters()})
    snapshot.restore_generators()
