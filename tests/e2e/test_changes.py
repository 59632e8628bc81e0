"""A run goes on with another learning rate where its user allows that by name, and the change is recorded."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.runs import checkpoint, numbers
from trainer.cli import main


def test_an_allowed_change_goes_on_and_is_recorded(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cosine = "optimizer.schedule=cosine"
    assert main(["train", str(config), cosine]) == 0
    longer = ["train", str(config), cosine, "train.steps=9", "optimizer.learning_rate=0.01"]
    assert main(longer) == 2
    said = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.05 -> 0.01" in said
    assert "add --allow-change optimizer.learning_rate --allow-change train.steps." in said

    assert main([*longer, "--allow-change", "optimizer.learning_rate", "--allow-change", "train.steps"]) == 0
    assert "step 6: optimizer.learning_rate: 0.05 -> 0.01, as --allow-change allows" in capsys.readouterr().out
    rates = {record["step"]: record["learning_rate"] for record in numbers(run_dir) if record["kind"] == "train"}
    assert rates[7] == pytest.approx(0.01 / 4), "cosine, at two thirds of the new length"
    about = json.loads((run_dir / "run.json").read_text())
    assert about["user_git"] == about["git"], "the tests run in the checkout"
    changes = about["changes"]
    assert [(change["step"], change["key"]) for change in changes] == [
        (6, "optimizer.learning_rate"),
        (6, "train.steps"),
    ]

    # LATEST is set back to a checkpoint from before the change, which is on record.
    (run_dir / "checkpoints" / "LATEST").write_text("step_00000006")
    assert main(longer) == 0, capsys.readouterr().err
    assert len(json.loads((run_dir / "run.json").read_text())["changes"]) == 2


@pytest.mark.parametrize("key", ["seed", "model", "data", "data.path", "optimizer_", "trai"])
def test_what_the_checkpoint_depends_on_may_not_change(
    key: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--allow-change", key]) == 2
    assert f"--allow-change {key}: a run can go on after changes of optimizer, train" in capsys.readouterr().err


def test_a_run_starts_from_the_weights_of_another(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.steps=3"]) == 0
    new, still = run_dir.with_name("new"), "optimizer.learning_rate=1e-30"
    assert main(["train", str(config), "--from", str(run_dir), "name=new", still]) == 0
    assert f"step 0: starts from {run_dir}/checkpoints/step_00000003, with its weights" in capsys.readouterr().out
    # A learning rate too small to move them: the weights of the new run are those of the old one.
    for name, tensor in checkpoint(run_dir)[0].items():
        torch.testing.assert_close(checkpoint(new)[0][name], tensor, rtol=0, atol=0)
    assert main(["train", str(config), "--from", str(new), "name=new"]) == 2
    assert "add --allow-change" in capsys.readouterr().err
    assert main(["train", str(config), "--from", str(run_dir.parent), "name=newer"]) == 2
    assert "is not a run's folder" in capsys.readouterr().err
    assert main(["check", str(config), f"train.start_from={run_dir.parent}", "name=newer"]) == 2
    assert "is not a run's folder" in capsys.readouterr().err


@pytest.mark.slow
def test_heads_of_another_run_are_found_by_the_names_of_their_tasks(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another order, and of some tasks alone; never by their place."""
    assert main(["train", str(config), "train.steps=3", "data.tasks=[left]"]) == 0
    other = ["--from", str(run_dir), "optimizer.learning_rate=1e-30", "train.steps=3"]
    assert main(["train", str(config), *other, "name=both"]) == 2
    said = capsys.readouterr().err
    assert f"{run_dir} has no heads for 1: right; it has 1: left" in said
    assert f"model.encoder.weights={run_dir}" in said
    assert main(["train", str(config), "train.steps=3", "name=both"]) == 0
    other[1] = str(run_dir.with_name("both"))
    assert main(["train", str(config), *other, "name=turned", "data.tasks=[right,left]"]) == 0
    assert main(["train", str(config), *other, "name=one", "data.tasks=[right]"]) == 0
    both, turned, one = (checkpoint(run_dir.with_name(name))[0] for name in ("both", "turned", "one"))
    for name, tensor in both.items():
        of_tasks = name.startswith("heads.")
        torch.testing.assert_close(turned[name], tensor.flip(0) if of_tasks else tensor, rtol=0, atol=0)
        torch.testing.assert_close(one[name], tensor[1:] if of_tasks else tensor, rtol=0, atol=0)
    everything = [*other, "train.start_with=everything", "train.steps=4", "name=fork", "data.tasks=[right,left]"]
    assert main(["train", str(config), *everything]) == 2
    assert "goes on with the tasks of" in capsys.readouterr().err


def test_a_run_goes_on_from_everything_of_another_as_that_one_would_have(config: Path, run_dir: Path) -> None:
    everything = ["train.start_with=everything", "name=fork", "--from", str(run_dir)]
    assert main(["train", str(config), "train.steps=3"]) == 0
    assert main(["train", str(config), *everything, "train.steps=3"]) == 2
    assert main(["train", str(config), *everything]) == 0
    assert main(["train", str(config)]) == 0
    fork = run_dir.with_name("fork")
    for found, expected in zip(checkpoint(fork), checkpoint(run_dir), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
