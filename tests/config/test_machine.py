"""What a machine can carry."""

from pathlib import Path

import pytest

from trainer.cli import main
from trainer.commands.arguments import whole
from trainer.config.file import load_config
from trainer.config.machine import MAX_BUSY_PER_CORE, num_cores, refuse_flood, try_to_write
from trainer.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"


@pytest.mark.parametrize("override", ["data.workers", "parallel.threads", "parallel.processes"])
def test_a_flood_of_processes_is_refused_before_one_starts(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.config.machine.num_cores", lambda: 1)

    def refuse(number: int, runs: int = 1) -> None:
        experiment = load_config(CONFIG, ["train.global_batch=1024", f"{override}={number}"])
        refuse_flood(experiment.parallel, experiment.data.workers, runs)

    with pytest.raises(UserError, match=f"{override}=64.*this machine has 1 cores"):
        refuse(64)
    with pytest.raises(UserError, match="8 runs at a time x"):
        refuse(8, runs=8)
    refuse(8)


def test_train_refuses_a_flood(capsys: pytest.CaptureFixture[str]) -> None:
    many = MAX_BUSY_PER_CORE * num_cores() + 1
    assert main(["train", str(CONFIG), "--processes", str(many), f"train.global_batch={many}"]) == 2
    assert "on several machines, see launch/README.md" in capsys.readouterr().err


def test_a_folder_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    try_to_write(tmp_path / "runs" / "one")
    try_to_write(tmp_path)
    for folder in ("file", "file/x", "dangling", "dangling/x", "x" * 300, f"runs/{'é' * 200}"):
        with pytest.raises(UserError, match="cannot be written"):
            try_to_write(tmp_path / folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
@pytest.mark.parametrize("text", ["", "-1", "0", "1000001", "1.0", "1_0", "x", "٣", "9" * 5000, " 3", "nan"])
def test_a_number_on_the_command_line_is_whole_and_bounded(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert whole(1, 10)("10") == 10
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(CONFIG), "--grid", "seed=0,1", f"--parallel={text}"])
    errors = capsys.readouterr().err
    assert "argument --parallel: expected a whole number from 1 to 1000000" in errors
    assert len(errors) < 1000


@pytest.mark.parametrize("text", ["", "-1", "0", "nan", "inf", "1e308GiB", "x"])
def test_a_size_on_the_command_line_is_bounded(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(CONFIG), f"--gpu-memory={text}"])
    assert "expected a number of GiB" in capsys.readouterr().err
