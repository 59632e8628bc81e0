"""A page or log that cannot be written, or is no file of ours, is one sentence; nothing else is touched."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.no_files import in_time
from tests.support.run_folders import write_run
from trainer.errors import UserError
from trainer.observe.metrics import MetricsLog
from trainer.observe.report.page import write_report
from trainer.observe.tracker import saved_id


@pytest.mark.parametrize("out", ["/dev/full", "folder", "fifo", "n" * 300, "file/report.html", "nul\0"])
def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path, out: str) -> None:
    run = write_run(tmp_path / "run", ["left"], steps=0, finished=False)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with in_time(), pytest.raises(UserError, match="cannot be written"):
        write_report([run], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_fails_a_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        log.write({"kind": "note", "step": 1, "text": "x"})
    log.close()


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_a_log_is_written_to_a_regular_file_only(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    put(tmp_path / "metrics.jsonl")
    with in_time(), pytest.raises(UserError, match="cannot be written"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=None)


@pytest.mark.parametrize("content", [b"", b"../../x\n", b"\xff\xfe", b"a" * 5000, b"two\nlines"])
def test_a_damaged_id_of_wandb_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    with pytest.raises(UserError, match="wandb_id"):
        saved_id(tmp_path / "wandb_id", "wandb")
