"""checkpoint.upload: a run goes on where its folder is gone."""

import shutil
from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.runs import checkpoint, numbers


@pytest.mark.slow
def test_a_run_goes_on_from_its_upload_where_its_folder_is_gone(
    config: Path, run_dir: Path, tmp_path: Path, paretrain: Command
) -> None:
    command = ("train", config, "--processes", 2, f"checkpoint.upload=file://{tmp_path}/bucket")
    assert paretrain(*command).returncode == 0
    whole = numbers(run_dir), checkpoint(run_dir)[1]["step"]
    shutil.rmtree(run_dir)
    shutil.rmtree(tmp_path / "bucket" / "run" / "step_00000006")
    (tmp_path / "bucket" / "run" / "LATEST").write_text("step_00000003")
    done = paretrain(*command)
    assert done.returncode == 0, done.stderr
    found = [record for record in numbers(run_dir) if record["kind"] != "note"]
    assert (found, checkpoint(run_dir)[1]["step"]) == whole
    assert "step_00000003 was fetched from file://" in (run_dir / "log.txt").read_text()
    assert (tmp_path / "bucket" / "run" / "LATEST").read_text() == "step_00000006"
