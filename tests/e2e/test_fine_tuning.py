"""A run starts from another one's encoder, trains its heads alone, and goes on where the other is gone."""

import json
import shutil
from pathlib import Path

import torch

from tests.support.runs import checkpoint
from trainer.cli import main
from trainer.files import sha256


def test_a_linear_probe_of_another_runs_encoder_goes_on_without_that_run(config: Path, run_dir: Path) -> None:
    short = ["train.steps=1", "train.eval_every_steps=9", "checkpoint.every_steps=1"]
    assert main(["train", str(config), *short]) == 0
    source = run_dir / "checkpoints" / "step_00000001" / "manifest.json"
    encoder = {name: value for name, value in checkpoint(run_dir)[0].items() if name.startswith("encoder.")}
    recorded = {"path": str(source.parent), "sha256": {"manifest.json": sha256(source)}}
    probe = [
        *("name=probe", "seed=5", f"model.encoder.weights={run_dir}", "model.freeze=[encoder.*]"),
        *("model.head.name=linear", "model.head.options={}", "balance.normalise=loss+"),
    ]
    assert main(["train", str(config), *short, *probe]) == 0
    folder = run_dir.with_name("probe")
    first, state, _ = checkpoint(folder)
    shutil.rmtree(run_dir)
    assert main(["train", str(config), *short, *probe, "train.steps=2"]) == 0
    second, _, _ = checkpoint(folder)
    for found in (first, second):
        assert all(torch.equal(found[name], value) for name, value in encoder.items())
    assert not torch.equal(first["heads.first.weight_TCD"], second["heads.first.weight_TCD"])
    assert {name.partition("/")[0] for name in state["optimizer"]} == {"heads.first.weight_TCD", "heads.first.bias_TC"}
    found = json.loads((folder / "run.json").read_text())["encoder_weights"]
    assert {key: found[key] for key in recorded} == recorded
    assert "left out there: heads (4)" in (folder / "log.txt").read_text()
