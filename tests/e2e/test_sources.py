"""Several data folders in one run: the whole way from `check` to `eval`, and the same bits after a stop or a kill."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.command import run_command
from tests.support.contrary import DIES_AT
from tests.support.mixed_data import EVEN, THIRD, weight, write_rows
from tests.support.pages import Page
from tests.support.runs import checkpoint, numbers
from trainer.cli import main


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """32 samples of `b` with two tasks and 12 of `a` with two others; a step has 8 and 4, so `a` repeats after 3."""
    write_rows(tmp_path / "rows", 1, (EVEN, weight()), train=32)
    write_rows(tmp_path / "others", 2, (THIRD, EVEN), train=12)
    values: dict[str, Any] = {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {
            "sources": {
                "b": {"path": str(tmp_path / "rows"), "share": 2},
                "a": {"path": str(tmp_path / "others")},
            }
        },
        "model": {"encoder": {"name": "mlp", "options": {"dropout": 0.2}}, "head": {"name": "linear"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 8, "global_batch": 12, "log_every_steps": 1, "eval_every_steps": 4},
        "checkpoint": {"every_steps": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assert_same(run: Path, whole: Path) -> None:
    assert numbers(run) == numbers(whole)
    for found, expected in zip(checkpoint(run), checkpoint(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_one_that_was_not(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = mixed.parent / "runs"
    options = ["train.eval_every_steps=8"]  # Each last step is evaluated, also that of a part.
    assert main(["train", str(mixed), *options, "name=whole"]) == 0
    assert "of sources: a 4 of 12, b 8 of 32" in capsys.readouterr().out
    for steps in (4, 8):  # In the second epoch of `a`, at the end of one of `b`.
        assert main(["train", str(mixed), *options, f"train.steps={steps}"]) == 0
    for found, expected in zip(checkpoint(runs / "run"), checkpoint(runs / "whole"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    epochs = [record["epochs"] for record in numbers(runs / "whole") if record["kind"] == "train"]
    assert epochs[2:4] == [{"a": 1, "b": 0}, {"a": 1, "b": 1}]
    capsys.readouterr()
    for changed, said in {
        "data.sources.b.share=3": "data.sources.b.share: 2.0 -> 3.0",
        f"data.sources.b.path={mixed.parent / 'others'}": "was trained on other data",
    }.items():
        assert main(["train", str(mixed), *options, "train.steps=9", changed]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_that_was_not(mixed: Path) -> None:
    runs = mixed.parent / "runs"
    own = ["model.encoder={name: tests.support.contrary.Mortal}", "data.workers=1"]
    assert main(["train", str(mixed), *own, "name=whole"]) == 0
    # One forward before the first step: in step 7. The checkpoint of step 4 is published before that of step 6 begins.
    killed = run_command("train", mixed, *own, env_too={DIES_AT: "8"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(["train", str(mixed), *own]) == 0
    assert_same(runs / "run", runs / "whole")


def test_each_source_is_checked_evaluated_and_shown(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(mixed)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a: 4 samples a step, 2.7 epochs of 3 steps, repeats after step 3" in shown
    assert "b: 8 samples a step, 2.0 epochs of 4 steps, repeats after step 4" in shown
    assert main(["check", str(mixed), "--processes", "3"]) == 2
    assert "Type data.multiple_of=3" in capsys.readouterr().err

    run = mixed.parent / "runs" / "run"
    assert main(["train", str(mixed)]) == 0
    last = [record for record in numbers(run) if record["kind"] == "eval"][-1]
    assert {name: list(found["errors"]) for name, found in last["by_source"].items()} == {
        "a": ["third", "even"],
        "b": ["even", "weight"],
    }
    assert last["samples"] == sum(found["samples"] for found in last["by_source"].values()) == 12
    even = {name: found["errors"]["even"] for name, found in last["by_source"].items()}
    assert last["errors"]["even"] == pytest.approx((even["a"] + even["b"]) / 2), "6 samples of each"
    assert last["errors"]["third"] == last["by_source"]["a"]["errors"]["third"]
    assert json.loads((run / "summary.json").read_text())["by_source"] == {"test": last["by_source"]}
    assert "of source a" in Page(run / "report.html").text
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by_source"] == last["by_source"]
    assert main(["eval", str(run)]) == 0
    assert "split of source b, 6 samples" in " ".join(capsys.readouterr().out.split())
    assert main(["export", str(run), "--out", str(mixed.parent / "out.safetensors")]) == 0
    assert main(["predict", str(run), "--out", str(mixed.parent / "out.csv")]) == 0
    rows = list(csv.DictReader((mixed.parent / "out.csv").read_text().splitlines()))
    assert [(row["source"], row["sample"]) for row in rows] == [(name, str(i)) for name in "ab" for i in range(6)]
    assert [row["third"] for row in rows] == [*"012012", *[""] * 6]
    assert [row["weight"] for row in rows] == [*[""] * 6, *(str(i / 10) for i in range(6))]
    assert [row["even"] for row in rows] == [*"101010"] * 2
    assert main(["refit", str(run), "--out", str(mixed.parent / "new")]) == 2
    assert "this one has sources: a, b" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_more_processes_find_the_same_weights(mixed: Path, processes: int) -> None:
    runs, plain = mixed.parent / "runs", "model.encoder.options={}"
    assert main(["train", str(mixed), plain, "name=alone"]) == 0
    done = run_command("train", mixed, "--processes", processes, plain, "data.workers=1")
    assert done.returncode == 0, done.stderr
    found, expected = numbers(runs / "run"), numbers(runs / "alone")
    for ours, theirs in zip(found, expected, strict=True):
        if ours["kind"] == "train":
            for field in ("losses", "alpha", "epochs"):
                assert ours[field] == pytest.approx(theirs[field], rel=1e-4, abs=1e-5)
