"""An exported model, loaded by the lines of its own card in a process that cannot import the trainer."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.support.command import ROOT, environment
from tests.support.rich_data import write_rich
from tests.support.runs import saved
from trainer.cli import main
from trainer.config.file import load_config
from trainer.data.format.manifest import read_manifest
from trainer.data.reading.images import to_input
from trainer.data.sources.digits import write_digits
from trainer.run_folder import read_config
from trainer.training.network.build import build_network
from trainer.training.tasks import build_tasks

SPATIAL = {"name": "resnet18", "options": {"stem": "cifar", "pool": None}}
PREDICT = """
import numpy
torch.save(predict(numpy.load("pixels.npy")), "outputs.pt")
"""


def predicted_by_the_card(folder: Path, card: str, pixels_BHWC: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
    """Run the card's lines where `models` stands alone, in a folder with a `models` of its own."""
    alone = folder.with_name("library")
    shutil.copytree(ROOT / "models", alone / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("raise AssertionError('these are not the models')")
    np.save(folder / "pixels.npy", pixels_BHWC)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (folder / "use.py").write_text(f"import sys\nsys.modules['trainer'] = None\n{code}{PREDICT}")
    environ = environment() | {"PYTHONPATH": str(alone)}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=folder, env=environ, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "outputs.pt", weights_only=True)


def evaluated(run_dir: Path, pixels_BHWC: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
    """The same by the model and the input that `paretrain eval` makes."""
    experiment = read_config(run_dir)
    manifest = read_manifest(Path(experiment.data.path))
    network = build_network(experiment, manifest, build_tasks(manifest, experiment.data.tasks, {}))
    checkpoints = run_dir / "checkpoints"
    network.load_state_dict(saved(checkpoints / (checkpoints / "LATEST").read_text(), "model"))
    with torch.no_grad():
        return network.eval()(to_input(torch.from_numpy(pixels_BHWC), manifest.input, "cpu"))


@pytest.mark.parametrize(
    "kind", [pytest.param("stacked, with towers", marks=pytest.mark.slow), "separate, of every kind"]
)
def test_the_card_loads_what_was_evaluated(
    kind: str, config: Path, digits: Path, run_dir: Path, tmp_path: Path
) -> None:
    overrides = ["model.tower={}", "train.steps=4", "train.eval_every_steps=4"]
    if kind.startswith("separate"):
        write_rich(tmp_path / "rich")
        overrides = [
            f"data.path={tmp_path / 'rich'}",
            f"model.encoder={json.dumps(SPATIAL)}",
            "model.head={name: linear}",
            "train={steps: 2, global_batch: 6, eval_every_steps: 1}",
        ]
    assert main(["train", str(config), *overrides]) == 0
    folder = tmp_path / "away"
    assert main(["export", str(run_dir), "--out", str(folder / "model.safetensors")]) == 0

    manifest = read_manifest(Path(load_config(config, overrides).data.path))
    rng = np.random.default_rng(0)
    pixels_BHWC = rng.integers(0, 256, (5, *manifest.input.shape), dtype=np.uint8)
    card = (folder / "model.md").read_text()
    found, expected = predicted_by_the_card(folder, card, pixels_BHWC), evaluated(run_dir, pixels_BHWC)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    with safe_open(folder / "model.safetensors", "pt") as file:
        about = {key: json.loads(text) for key, text in file.metadata().items()}
        assert not [name for name in file.keys() if "towers" in name or "main" in name]  # noqa: SIM118
    assert [task["data"] for task in about["tasks"]] == [spec.model_dump(mode="json") for spec in manifest.tasks]
    assert about["input"]["mean"] == list(manifest.input.mean)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert about["run"]["errors"] == [record for record in records if record["kind"] == "eval"][-1]["errors"]
    assert set(about["run"]["versions"]) >= {"torch", "python"}
    for task in manifest.tasks:
        assert f"| {task.name} |" in card
    if kind.startswith("separate"):
        assert re.search(r"\| weight \| .* is in kg \| [\d.]+ kg \|", card)
        assert "`heads.<t>.*`" in card
        assert re.search(r"- weight: `heads\.3\.\S*weight` \(1, \d+\)", card)
        assert "float32 of shape (B, 3, 8, 8): red, green, blue" in card
        assert "segmentation: cross-entropy of each labelled pixel" in card
    else:
        assert "`heads.first.weight_TCD` (2, 50, 50)" in card


def test_what_cannot_be_exported_is_refused(
    config: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"

    def refused(*arguments: object) -> str:
        assert main(["export", str(run_dir), "--out", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "is not a run's folder" in refused(out)
    assert main(["train", str(config)]) == 0
    assert "no checkpoint step_00000004; found: step_00000003, step_00000006" in refused(out, "--step", 4)
    assert "ends in .safetensors, such as --out" in refused(tmp_path / "model")
    out.with_suffix(".md").write_text("notes of my own")
    assert f"{out.with_suffix('.md')} exists already" in refused(out)
    assert out.with_suffix(".md").read_text() == "notes of my own"
    assert not out.exists()
    out.with_suffix(".md").unlink()

    assert main(["export", str(run_dir), "--out", str(tmp_path / "third.safetensors"), "--step", "3"]) == 0
    assert "for 3 steps, 120 samples" in (tmp_path / "third.md").read_text()
    assert "third.safetensors exists already" in refused(tmp_path / "third.safetensors")

    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file" / "model.safetensors")
    other = tmp_path / "other"
    write_digits(other, train_samples=20, test_samples=10)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tasks"][0]["classes"] = manifest["tasks"][1]["classes"] = list("0123456789ab")
    (other / "manifest.json").write_text(json.dumps(manifest))
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(re.sub(r"path: .*digits", f"path: {other}", text))
    assert "does not fit the data in" in refused(out)
    assert main(["eval", str(run_dir)]) == 2
    assert f"does not fit the data in {other}, which must have changed since" in capsys.readouterr().err

    (run_dir / "config.yaml").write_text(text)
    (run_dir / "run.json").unlink()
    assert "run.json is missing" in refused(out)
    for path in (run_dir / "checkpoints").iterdir():
        shutil.rmtree(path) if path.is_dir() else os.remove(path)
    assert "has no checkpoint yet; found: none" in refused(out)


def test_check_says_whether_a_run_fits(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(config), "--processes", "4", "--strategy", "fsdp2"]
    assert main([*command, "--gpu-memory", "80GiB"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "per process under fsdp2" in shown
    assert "fits a GPU of 80 GiB" in shown
    assert main([*command, "--gpu-memory", "0.0005"]) == 2
    assert "does not fit a GPU of 0.0005 GiB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--gpu-memory", "80TB"])
    assert "such as 80GiB, found '80TB'" in capsys.readouterr().err
