"""Micro-batches, lower precision and torch.compile in real runs; these in the tests' own process."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.runs import checkpoint, numbers
from trainer.cli import main
from trainer.config.file import load_config
from trainer.observe.metrics import read_metrics
from trainer.train import train

STILL = ["model.encoder.options={dropout: 0.0}", "model.head.options={dropout: 0.0}", "train.steps=4"]


def assert_alike(config: Path, run_dir: Path, name: str, tolerance: float, *overrides: str) -> None:
    """Compare the run in `run_dir` with one called `name` that has `overrides` too."""
    assert main(["train", str(config), *STILL, f"name={name}", *overrides]) == 0
    for found, expected in zip(numbers(run_dir.with_name(name)), numbers(run_dir), strict=True):
        assert (found["kind"], found["step"]) == (expected["kind"], expected["step"])
        if found["kind"] == "train":
            for key in ("losses", "alpha", "gradient_norm"):
                assert found[key] == pytest.approx(expected[key], rel=tolerance, abs=tolerance), key
    parameters = checkpoint(run_dir)[0]
    for key, tensor in checkpoint(run_dir.with_name(name))[0].items():
        assert tensor.dtype == torch.float32
        assert tensor.sub(parameters[key]).norm() <= tolerance * parameters[key].norm(), key


def test_a_run_in_micro_batches_in_bf16_or_compiled_is_the_same_within_its_rounding(
    config: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", str(config), *STILL]) == 0
    assert_alike(config, run_dir, "windowed", 1e-5, "train.accumulation.steps=4")
    assert_alike(config, run_dir, "narrow", 0.03, "parallel.precision=bf16")
    # The graphs that a compiler gets, run as they are: making code of them takes a minute.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    assert_alike(config, run_dir, "compiled", 1e-5, "model.compile=true")
    # A run may go on in other pieces, since the window's α does not depend on them.
    assert main(["train", str(config), *STILL, "name=windowed", "train.accumulation.steps=2", "train.steps=5"]) == 0


@pytest.mark.slow
def test_a_compiled_run_in_shards_is_the_same(config: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    assert main(["train", str(config), *STILL]) == 0
    assert_alike(config, run_dir, "compiled", 1e-5, "model.compile=true", "parallel.strategy=fsdp2")


@pytest.mark.slow  # It compiles for half a minute.
def test_a_compiled_run_calls_backward_once_for_each_task(config: Path, run_dir: Path) -> None:
    of_parameters = "balance.space=parameters"
    assert main(["train", str(config), *STILL, of_parameters]) == 0
    assert_alike(config, run_dir, "compiled", 1e-4, of_parameters, "model.compile=true")


def test_an_overflow_is_skipped_and_told_and_the_scale_goes_on_after_a_resume(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(steps: int) -> None:
        overrides = ["model.encoder={name: tests.support.faulty.Overflowing}", f"train.steps={steps}"]
        experiment = load_config(config, overrides)
        # The configuration refuses fp16 on a CPU, which computes it right but slowly.
        parallel = experiment.parallel.model_copy(update={"precision": "fp16"})
        train(experiment.model_copy(update={"parallel": parallel}))

    part(3)
    # For the same reason, no reader of a run's configuration accepts it.
    for saved in (run_dir / "config.yaml", *run_dir.glob("checkpoints/*/manifest.json")):
        saved.write_text(re.sub(r'(precision"?: "?)fp16', r"\1fp32", saved.read_text()))
    part(5)
    faults = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "fault"]
    assert [(fault["step"], fault["action"]) for fault in faults] == [(2, "overflow"), (5, "overflow")]
    assert "the loss scale goes from 65536 to 32768" in faults[0]["found"]
    assert "the loss scale goes from 32768 to 16384" in faults[1]["found"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["overflow_steps"], summary["skipped_steps"], summary["broken"]) == (2, 0, {})
    assert "steps skipped for an overflow of float16 2" in capsys.readouterr().out
    parameters, state, _ = checkpoint(run_dir)
    assert state["loss_scale"]["value"] == 2.0**14
    assert all(tensor.isfinite().all() for tensor in parameters.values())
