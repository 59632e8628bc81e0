"""What `paretrain check` says of the batch and of memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.command import Command
from trainer.cli import main


def said(shown: str) -> str:
    return " ".join(shown.replace("│", " ").split())


def test_the_batch_is_told_as_its_factors(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(config), "--processes", "2"]
    assert main(command) == 0
    assert "40 samples per step = 2 processes x 20 " in said(capsys.readouterr().out)
    assert main([*command, "train.accumulation.steps=4", "optimizer.ema_decay=0.9"]) == 0
    shown = said(capsys.readouterr().out)
    assert "40 samples per step = 2 processes x 4 micro-batches x 5 " in shown
    assert "Offloaded" not in shown


def test_a_run_for_a_larger_machine_is_tried_within_this_one(
    config: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.commands.check.num_cores", lambda: 1)
    options = ["--processes", "20", "data.workers=1024", "parallel.threads=1024"]
    assert main(["check", str(config), *options]) == 0
    assert "40 samples per step = 20 processes x 2 " in said(capsys.readouterr().out)
    assert not run_dir.parent.exists()


def test_what_a_user_should_know_of_the_network_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder of two maps with a lazy layer and one that is not used; some of it frozen, the rest in groups."""
    own = [
        "model.encoder={name: tests.support.encoders.LazyScales}",
        "model.head={name: tests.support.encoders.OfAllScales}",
    ]
    rates = ["model.freeze=[encoder.fine.*]", "optimizer.groups=[{match: encoder.*, learning_rate_scale: 0.1}]"]
    assert main(["check", str(config), *own, *rates]) == 0
    shown = said(capsys.readouterr().out)
    assert "40 entries of 2 parameters are frozen" in shown
    assert "no task's output depends on 2 parameters: encoder.spare.weight, encoder.spare.bias" in shown
    assert "entries of 4 parameters at 0.1 x the learning rate" in shown
    assert main(["check", str(config), "--processes", "2", *own]) == 2
    assert "model.freeze=[encoder.spare.*]" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_offloaded_stands_beside_the_estimate(config: Path, paretrain: Command) -> None:
    done = paretrain("check", config, "--strategy", "zero2", "parallel.offload.optimizer=cpu")
    assert done.returncode == 0, done.stderr
    assert "Offloaded to the host: " in said(done.stdout)


def test_without_a_gpu_all_but_the_gpu_is_checked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    cuda = ["parallel.device=cuda", "parallel.precision=bf16"]
    assert main(["check", str(config), *cuda]) == 0
    said = capsys.readouterr().out
    assert "no GPU here: all else is checked, on the CPU" in said
    assert "ready to train" in said
    assert main(["check", str(config), *cuda, "data.tasks=[lift]"]) == 2


def test_a_batch_that_cannot_be_used_is_refused_as_in_training(
    config: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taller = tmp_path / "taller"
    shutil.copytree(digits, taller)
    manifest = json.loads((taller / "manifest.json").read_text())
    manifest["input"]["height"] += 1
    (taller / "manifest.json").write_text(json.dumps(manifest))
    assert main(["check", str(config), f"data.path={taller}"]) == 2
    assert "40 of 400 train samples cannot be used (decode 40)" in capsys.readouterr().err
