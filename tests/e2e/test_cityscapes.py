"""Driving scenes through the real commands, on two processes, by the project's own configuration but its encoder."""

from pathlib import Path

import pytest

from tests.support.command import ROOT, Command
from tests.support.raw_cityscapes import write_raw
from trainer.cli import main
from trainer.commands.eval import evaluate_run
from trainer.observe.metrics import read_metrics
from trainer.observe.predictions import read_predictions

SMALL_VIT = "{patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, global_pool: null}"
FRAMES = {"train": [f"ulm/ulm_{number}" for number in range(4)], "val": ["jena/jena_0", "jena/jena_1", "jena/jena_2"]}


def test_from_raw_files_to_the_report(tmp_path: Path, paretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    root, data = write_raw(tmp_path / "raw", FRAMES), tmp_path / "data"
    assert main(["data", "cityscapes", "--root", str(root), "--out", str(data), "--size", "24x48"]) == 0
    done = paretrain(
        "train",
        ROOT / "configs" / "cityscapes.yaml",
        f"data.path={data}",
        f"output={tmp_path}",
        f"model.encoder={{name: vit, options: {SMALL_VIT}}}",
        "model.head.options.hidden=32",
        "train={steps: 4, global_batch: 2, log_every_steps: 1, eval_every_steps: 4}",
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "cityscapes"
    (found,) = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "eval"]
    assert found["units"] == {"semantic": "% mIoU", "instance": "px", "disparity": "px"}
    line = f"semantic {found['errors']['semantic']:.2f}% mIoU"
    assert f"{line}  in " in done.stdout
    assert f"test score: {line}" in done.stdout

    # Three scenes on two processes, one of which has a slot to fill up; and on one.
    alone = evaluate_run(run, "test", None)
    assert (alone.samples, alone.by_class, found["by_class"]) == (3, found["by_class"], alone.by_class)
    assert alone.errors == pytest.approx(found["errors"], rel=1e-6)
    known = {name: percent for name, percent in alone.by_class["semantic"].items() if percent is not None}
    assert known.keys() >= {"road", "car", "sky"}
    assert alone.errors["semantic"] == pytest.approx(sum(known.values()) / len(known))
    assert "  road " in capsys.readouterr().out

    kept = read_predictions(run / "predictions.npz")
    assert (kept.step, kept.images_SHWC.shape) == (4, (1, 24, 48, 3))
    assert [maps.task for maps in kept.maps] == ["semantic", "instance", "disparity"]
    page = (run / "report.html").read_text()
    for text in ("test mIoU (%)", "test error (px)", "intersection over union of its 19 classes", "Predictions"):
        assert text in page
    assert main(["export", str(run), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert f"| {found['errors']['semantic']:.2f}% mIoU |" in (tmp_path / "model.md").read_text()
