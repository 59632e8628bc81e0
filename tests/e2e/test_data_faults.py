"""Data that goes bad while a run reads it: rare samples are counted, all else ends every rank with one line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.command import Command
from trainer.cli import main
from trainer.data.format.manifest import read_manifest
from trainer.data.format.tables import load_index
from trainer.observe.metrics import read_metrics


@pytest.fixture
def bad_data(digits: Path, tmp_path: Path) -> Path:
    """Change the bytes of 2 of the 400 train samples."""
    folder = Path(shutil.copytree(digits, tmp_path / "bad"))
    manifest = read_manifest(folder)
    index_NM, _ = load_index(folder, manifest, "train")
    path = folder / manifest.split("train").shards[0].file
    content = bytearray(path.read_bytes())
    for offset in index_NM["offset"][[7, 8], 0].tolist():
        content[offset + 200] ^= 1
    path.write_bytes(content)
    return folder


def test_a_disk_that_goes_away_on_one_rank_ends_all_with_the_same_line(
    config: Path, run_dir: Path, paretrain: Command
) -> None:
    encoder = "model.encoder={name: tests.support.faulty_disk.DiskGoneOnRank1}"
    done = paretrain("train", config, "--processes", 2, encoder, "checkpoint.every_steps=1")
    assert done.returncode == 2
    said = re.sub(r"\s+", " ", done.stderr)
    assert "paretrain: error: stopped at step 3: " in said
    assert "cannot be read: Input/output error. The disk" in said
    assert "(on rank 1 only)" in said
    assert done.stderr.count("paretrain: error:") == 1
    assert "Traceback" not in done.stderr
    assert (run_dir / "checkpoints" / "LATEST").read_text() == "step_00000002"


def test_too_many_bad_samples_end_the_run_and_few_are_told_and_counted(
    config: Path, run_dir: Path, bad_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"data.path={bad_data}", "data.verify=size", "train.steps=10"]
    assert main(["train", str(config), *overrides]) == 2
    said = capsys.readouterr().err
    assert re.search(r"[12] of 400 train samples cannot be used \(crc32 [12]\).*\nThe first is sample [78] \(", said)
    assert "data.max_bad_fraction=0.001 allows 0" in said
    bearing = [*overrides, "data.max_bad_fraction=0.005"]
    assert main(["train", str(config), *bearing, "train.steps=9"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["bad_samples"] == {"crc32": 2}
    assert main(["train", str(config), *bearing]) == 0, "and a run that goes on counts on"
    shown = capsys.readouterr().out
    for sample_id in (7, 8):
        line = rf"step \d+: bad sample {sample_id} \({bad_data}/train-000000.tar, byte \d+\): its bytes have changed"
        assert len(re.findall(line, shown)) == 1
    assert json.loads((run_dir / "summary.json").read_text())["bad_samples"] == {"crc32": 2}
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert records[-1]["bad_samples"] == {"crc32": 2}
    assert re.search(r"step 10/10 .*  bad samples 2\n", shown)
    assert re.search(r"test error: .*; bad samples: crc32 2\n", shown)
    assert "<dt>Bad samples</dt><dd>2<small>crc32 2</small>" in (run_dir / "report.html").read_text()


def test_a_run_goes_on_with_another_global_batch_and_says_where(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.steps=3"]) == 0
    assert main(["train", str(config), "train.global_batch=70"]) == 0
    shown = capsys.readouterr().out
    said = "goes on after step 3, where a step had 40 samples; epoch 0 goes on at its sample 120, none lost or repeated"
    assert said in shown
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["samples"] for record in records] == [40, 80, 120, 190, 260, 330]
    assert json.loads((run_dir / "summary.json").read_text())["samples"] == 330
