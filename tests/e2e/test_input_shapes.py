"""Sources of images of two sizes, or of images and rows: the whole way from `check` to an export loaded by its card."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.support.mixed_data import EVEN, write_rows
from tests.support.runs import checkpoint, numbers
from tests.support.tiny_data import picture, spec, write_tiny
from trainer.cli import main

LARGE = spec(height=12, width=10)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """16 samples of each step are 8 x 8 pixels with two tasks, 8 are 12 x 10 pixels with one."""
    write_tiny(tmp_path / "small", train=40, image=spec(height=8, width=8))
    write_tiny(tmp_path / "large", train=30, test=7, image=LARGE)
    values: dict[str, Any] = {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {
            "sources": {
                "a": {"path": str(tmp_path / "small"), "share": 2},
                "b": {"path": str(tmp_path / "large"), "tasks": ["even"]},
            }
        },
        "model": {"encoder": {"name": "tests.support.encoders.AnySize"}, "head": {"name": "linear"}},
        "balance": {"space": "parameters"},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 6, "global_batch": 24, "log_every_steps": 1, "eval_every_steps": 6},
        "checkpoint": {"every_steps": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_images_of_two_sizes_go_the_whole_way(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = shapes.parent / "runs" / "run", shapes.parent / "out"
    assert main(["check", str(shapes)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the encoder runs once a step for images of 8 x 8 x 1 (a), and once for images of 12 x 10 x 1 (b)" in shown
    assert main(["train", str(shapes)]) == 0
    last = [record for record in numbers(run) if record["kind"] == "eval"][-1]
    assert {name: found["samples"] for name, found in last["by_source"].items()} == {"a": 11, "b": 7}
    assert main(["predict", str(run), "--out", f"{out}.csv"]) == 0
    assert main(["export", str(run), "--out", f"{out}.safetensors"]) == 0
    rows = [row for row in csv.DictReader(Path(f"{out}.csv").read_text().splitlines()) if row["source"] == "b"]
    predicted = np.array([[float(row["even.p0"]), float(row["even.p1"])] for row in rows])
    card = Path(f"{out}.md").read_text()
    assert "Input of b: grey images of 12 x 10 pixels" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(code.replace('"out.safetensors"', f'"{out}.safetensors"'), loaded)
    logits_BC = loaded["predict"]("b", np.stack([picture(sample_id, LARGE) for sample_id in range(7)]))[0]
    np.testing.assert_allclose(logits_BC.softmax(1).numpy(), predicted, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_one_that_was_not(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shapes.parent / "runs" / "run"
    parts = ["train.accumulation.steps=2", "data.workers=1", "train.eval_every_steps=6"]
    assert main(["train", str(shapes), *parts, "name=whole"]) == 0
    for steps in (4, 6):
        assert main(["train", str(shapes), *parts, f"train.steps={steps}"]) == 0
    for found, expected in zip(checkpoint(run), checkpoint(run.parent / "whole"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    last = [record for record in numbers(run) if record["kind"] == "eval"][-1]
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by_source"] == last["by_source"]


@pytest.mark.slow
def test_conflicts_are_measured_over_images_of_two_sizes(shapes: Path) -> None:
    out = shapes.parent / "page.html"
    assert main(["conflicts", str(shapes), "--batches", "6", "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["tasks"] == ["even", "digit"]


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("{name: lenet}", r"built for images of 32 x 32 x 1 \(a\), and cannot take images of 12 x 10 x 1 \(b\)"),
        pytest.param(
            "{name: resnet18, options: {pool: null, stem: cifar}}",
            r"z of images of 32 x 32 x 1 \(a\) has the shape",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_encoder_that_takes_one_size_only_is_refused_before_the_first_step(
    shapes: Path, encoder: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(shapes.parent / "larger", train=24, image=spec(height=32, width=32))
    larger = f"data.sources.a.path={shapes.parent / 'larger'}"
    assert main(["train", str(shapes), larger, f"model.encoder={encoder}"]) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))


def test_each_micro_batch_needs_a_sample_of_each_input(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(shapes), "train.accumulation.steps=12"]) == 2
    assert "has 8 samples a step of images of 12 x 10 x 1 (b)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_images_and_rows_share_an_encoder_that_takes_both(shapes: Path) -> None:
    write_rows(shapes.parent / "rows", 0, (EVEN,), train=20)
    rows = [
        f"data.sources.b={{path: {shapes.parent / 'rows'}}}",
        "model.encoder.name=tests.support.encoders.ImagesAndRows",
    ]
    for space in ("parameters", "representation"):
        assert main(["train", str(shapes), *rows, f"balance.space={space}", f"name={space}"]) == 0
        last = [record for record in numbers(shapes.parent / "runs" / space) if record["kind"] == "eval"][-1]
        assert last["by_source"]["b"]["samples"] == 6
