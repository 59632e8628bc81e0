"""Our studies of images at `--scale small`, from drawn raw files to the page, with fewer steps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import raw_cityscapes, raw_mtan
from tests.support.command import Command
from trainer.cli import main
from trainer.data.sources.synthetic.generate import write_synthetic_celeba
from trainer.observe.study.page import NUMBERS, PAGE

STEPS = ("train.steps=2", "train.eval_every_steps=2", "checkpoint.every_steps=2", "train.global_batch=4")
SCENES = {split: [f"ulm/ulm_{split}_{number}" for number in range(8)] for split in ("train", "val")}

RAW: dict[str, Callable[[Path], object]] = {
    "celeba": lambda root: write_synthetic_celeba(root, samples=60),
    "cityscapes": lambda root: raw_cityscapes.write_raw(root, SCENES),
    "cityscapes2": lambda root: raw_mtan.write_raw("cityscapes2", root, {"train": 8, "val": 4}),
    "nyuv2": lambda root: raw_mtan.write_raw("nyuv2", root, {"train": 8, "val": 4}),
}
SIZES = {"celeba": ("--size", "16"), "cityscapes": ("--size", "24x48")}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "num_tasks", "num_methods"),
    [("celeba", 40, 3), ("cityscapes", 3, 2), ("cityscapes2", 2, 2), ("nyuv2", 3, 2)],
)
def test_a_study_goes_from_raw_files_to_its_page(
    name: str, num_tasks: int, num_methods: int, tmp_path: Path, paretrain: Command
) -> None:
    raw, data, out = tmp_path / "raw", tmp_path / "data", tmp_path / "study"
    RAW[name](raw)
    assert main(["data", name, "--root", str(raw), "--out", str(data), *SIZES.get(name, ())]) == 0
    command = ("study", name, "--scale", "small", "--out", out, "--parallel", "2", f"data.path={data}", *STEPS)
    checked = paretrain(*command, "--check")
    assert checked.returncode == 0, checked.stderr
    done = paretrain(*command, limit_seconds=800)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((out / NUMBERS).read_text())
    assert len(numbers["deciding"]) == num_tasks
    assert [len(method["seconds"]) for method in numbers["methods"]] == [2] * num_methods
    assert "Ranks" in (out / PAGE).read_text()
