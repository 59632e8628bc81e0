import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from trainer.config.sections.tracking import WandbConfig
from trainer.errors import UserError
from trainer.observe import wandb as ours
from trainer.observe.tracker import MAX_CURVES, flatten
from trainer.observe.wandb import open_wandb

TRAIN = {"kind": "train", "step": 7, "losses": {"left": 0.5, "right": None}, "min_norm": 0.25, "gradient_norm": None}


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key and no settings of this machine's user; wandb keeps state in the process, so it is torn down after."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    yield
    if getattr(sys.modules.get("wandb"), "teardown", None):
        sys.modules["wandb"].teardown()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)


@pytest.mark.processes
def test_auto_without_a_key_is_offline_and_a_resume_goes_on_with_the_same_run(run_dir: Path) -> None:
    import wandb

    said: list[str] = []
    for summary in (None, {"final_errors": {"left": 3.0}}):  # stopped early, then resumed to its end
        opened = open_wandb(
            WandbConfig(mode="auto", project="project", group="a sweep"), "name", run_dir, {"seed": 1}, said.append
        )
        opened.log(TRAIN)
        opened.log({"kind": "gram", "step": 7, "gram": [[1.0]]})
        opened.close(summary)
        wandb.teardown()  # as at the end of a process: the resumed part runs in another one

    run_id = (run_dir / "wandb_id").read_text().strip()
    files = sorted(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    assert all(b"train/losses/left" in file.read_bytes() and b"a sweep" in file.read_bytes() for file in files)
    assert len(said) == 2
    assert all("offline" in line and "\n" not in line and "wandb sync" in line for line in said)


@pytest.mark.processes
def test_auto_is_offline_when_wandb_cannot_be_reached(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(ours, "INIT_TIMEOUT_SECONDS", 1)
    said: list[str] = []
    opened = open_wandb(WandbConfig(mode="auto"), "name", run_dir, {}, said.append)
    opened.log(TRAIN)
    opened.close({})
    assert len(list(run_dir.glob("wandb/offline-run-*"))) == 1
    assert len(said) == 1
    assert "offline (" in said[0]


@pytest.mark.processes
def test_online_that_cannot_be_reached_is_an_error(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(ours, "INIT_TIMEOUT_SECONDS", 1)
    with pytest.raises(UserError, match=r"wandb\.mode=offline"):
        open_wandb(WandbConfig(mode="online"), "name", run_dir, {})


@pytest.mark.processes
def test_a_key_that_is_none_is_an_error_even_for_auto(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"key.*\n.*wandb login"):
        open_wandb(WandbConfig(mode="auto"), "name", run_dir, {})


def test_off_does_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_wandb(WandbConfig(), "name", run_dir, {})
    opened.log(TRAIN)
    opened.close({})
    assert not list(run_dir.iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("without_wandb")
def test_auto_without_wandb_says_so_once_and_goes_on(run_dir: Path) -> None:
    said: list[str] = []
    opened = open_wandb(WandbConfig(mode="auto"), "name", run_dir, {}, said.append)
    opened.log(TRAIN)
    opened.close({})
    assert len(said) == 1
    assert "pip install 'paretrain[wandb]'" in said[0]


@pytest.mark.usefixtures("without_wandb")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_asked_for_but_not_installed_is_an_error(run_dir: Path, mode: Literal["online", "offline"]) -> None:
    with pytest.raises(UserError, match=r"pip install 'paretrain\[wandb\]'"):
        open_wandb(WandbConfig(mode=mode), "name", run_dir, {})


def test_a_folder_named_wandb_does_not_pass_for_the_package(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd" / "wandb").mkdir(parents=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "cwd")])
    with pytest.raises(UserError, match="cannot be imported"):
        open_wandb(WandbConfig(mode="offline"), "name", run_dir, {})


@pytest.mark.processes
def test_wandb_breaking_in_mid_run_is_said_once_and_stops_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    said: list[str] = []
    opened = open_wandb(WandbConfig(mode="offline"), "name", run_dir, {}, said.append)

    def lose_connection(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(wandb.Run, "log", lose_connection)
    for _ in range(3):
        opened.log(TRAIN)
    opened.close({})
    assert len(said) == 2
    assert "Connection lost" in said[1]


def test_flatten_keeps_the_numbers_under_wandbs_section_names() -> None:
    assert flatten(TRAIN) == {"step": 7, "train/losses/left": 0.5, "train/min_norm": 0.25}
    many = {"kind": "eval", "step": 1, "errors": {f"task{index}": float(index) for index in range(MAX_CURVES + 1)}}
    assert flatten(many) == {
        "step": 1,
        "eval/errors/min": 0.0,
        "eval/errors/mean": MAX_CURVES / 2,
        "eval/errors/max": float(MAX_CURVES),
    }
