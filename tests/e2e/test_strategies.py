"""A run through the real command that moves to another strategy and number of processes ends where one process does."""

from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.runs import checkpoint, numbers


@pytest.mark.slow
def test_a_run_goes_on_under_another_strategy(config: Path, run_dir: Path, paretrain: Command) -> None:
    arguments = ["train", config, "model.encoder.options={dropout: 0.0}", "model.head.options={dropout: 0.0}"]
    alone = paretrain(*arguments, "name=alone", "parallel.strategy=single")
    assert alone.returncode == 0, alone.stderr

    for strategy, processes, steps in (("zero3", 2, 3), ("fsdp2", 1, 6)):
        done = paretrain(*arguments, "--processes", processes, f"parallel.strategy={strategy}", f"train.steps={steps}")
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    assert "goes on after step 3" in done.stdout

    expected = {(record["kind"], record["step"]): record for record in numbers(run_dir.with_name("alone"))}
    for record in numbers(run_dir):
        same = expected[record["kind"], record["step"]]
        if record["kind"] == "train":
            assert record["alpha"] == pytest.approx(same["alpha"], abs=1e-5)
            assert record["gradient_norm"] == pytest.approx(same["gradient_norm"], rel=1e-4)
        if record["kind"] == "eval":
            assert (record["errors"], record["samples"]) == (same["errors"], same["samples"])
    found = checkpoint(run_dir)[0]
    for name, tensor in checkpoint(run_dir.with_name("alone"))[0].items():
        assert found[name].sub(tensor).norm() <= 1e-5 * tensor.norm(), name
