"""Real runs on data that is elsewhere, or damaged where one process alone looks."""

import json
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import Command
from tests.support.data_server import serving
from tests.support.tiny_data import spec, write_tiny
from trainer.cli import main
from trainer.data.reading import workers
from trainer.data.reading.ahead import groups_from
from trainer.data.reading.batch import Batch
from trainer.data.reading.order import Cursor
from trainer.errors import EXIT_UNFINISHED
from trainer.observe.metrics import read_metrics
from trainer.runtime.stopping import Request
from trainer.training import loop
from trainer.training import next_batch as waiting


@pytest.fixture
def short(config: Path, tmp_path: Path) -> Path:
    """Two steps, and a cache of this test's own."""
    values = yaml.safe_load(config.read_text())
    values["train"] |= {"steps": 2, "eval_every_steps": 2}
    values["data"]["cache"] = {"dir": str(tmp_path / "cache")}
    config.write_text(yaml.safe_dump(values))
    return config


def test_data_that_comes_slower_than_it_is_trained_on_is_waited_for(
    short: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups of two shards, through a cache that cannot hold all; a shard of the third comes a byte at a time."""
    monkeypatch.setattr(waiting, "REPORT_EVERY_TURNS", 2)
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.2)
    manifest = write_tiny(tmp_path / "remote", train=60, test=8, image=spec(height=28, width=28))
    shards = manifest.split("train").shards
    _, group = next(islice(groups_from(Cursor(0, 0), shards, seed=0, group_samples=10), 2, None))
    late = group[0].file
    log = run_dir / "log.txt"

    def is_told() -> bool:
        return log.exists() and "waiting for data" in log.read_text()

    with serving(tmp_path / "remote") as server:
        server.faults[late] = [("length", 0), ("trickle", is_told)]  # at the start it is only looked for
        options = ["train.global_batch=5", "train.steps=8", "data.shuffle_samples=10", "data.cache.max_gib=0.0002"]
        assert main(["train", str(short), f"data.path={server.url}", *options]) == 0
        asked = [name for name, _ in server.requests]
    assert re.search(rf"step \d: waiting for data for \d+ s: {late}, .* MB/s \(rank 0\)", log.read_text())
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert max(record["data_wait_percent"] for record in records) > 30
    sizes = {shard.file: shard.bytes for split in manifest.splits.values() for shard in split.shards}
    fetched = [record["cache"]["fetched_bytes"] for record in records]
    assert fetched[0] >= sum(shard.bytes for shard in manifest.split("test").shards), "before step 1, too"
    assert max(asked.count(name) for name in sizes) == 2, "looked for, and fetched"
    capsys.readouterr()


def test_a_run_that_is_stopped_while_it_waits_is_saved_and_goes_on(
    short: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`test_waiting.py` shows when there is no batch."""
    late_at, call = [1], 0
    command = ["train", str(short), "train.log_every_steps=9"]  # Step 1 is not told of.

    def next_batch(*arguments: Any) -> tuple[Batch | None, Request]:
        nonlocal call
        call += 1
        return (None, Request.STOP) if call in late_at else waiting.next_batch(*arguments)

    monkeypatch.setattr(loop, "next_batch", next_batch)
    assert main(command) == EXIT_UNFINISHED
    assert capsys.readouterr().err == (
        "paretrain: error: stopped while it waited for its first batch; there is nothing to save yet\n"
    )
    late_at, call = [2], 0
    assert main(command) == EXIT_UNFINISHED
    assert (run_dir / "checkpoints" / "LATEST").read_text() == "step_00000001"
    assert "step 1: asked to stop: saved; type the same command to resume\n" in capsys.readouterr().out
    late_at = []
    assert main(command) == 0
    assert "goes on after step 1\n" in capsys.readouterr().out


def test_a_data_folder_that_says_it_is_a_copy_costs_its_siblings_nothing(
    short: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else made it: with a mark, and without a shard."""
    precious, evil = (Path(shutil.copytree(digits, tmp_path / name)) for name in ("precious", "evil"))
    before = {path.name for path in precious.iterdir()}
    (evil / "train-000000.tar").unlink()
    with serving(digits) as server:
        (evil / "origin.json").write_text(json.dumps({"url": server.url, "max_bytes": 1}))
        assert main(["check", str(short), f"data.path={evil}"]) == 2
        assert not server.requests
    assert f"{evil / 'train-000000.tar'}" in capsys.readouterr().err
    assert {path.name for path in precious.iterdir()} == before


@pytest.mark.slow
def test_two_processes_train_on_remote_shards_and_fetch_each_once(
    short: Path, digits: Path, run_dir: Path, paretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(digits) as server:
        done = paretrain("train", short, "--processes", 2, f"data.path={server.url}")
        assert done.returncode == 0, done.stderr
        assert (run_dir / "summary.json").exists()
        use = [record["cache"] for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"][-1]
        num_bytes = sum(path.stat().st_size for path in digits.glob("*.tar"))
        assert use.keys() == {"hits", "fetched_bytes"}, "what fits the cache is fetched before the first step"
        assert use["fetched_bytes"] == num_bytes
        assert f"cache 100.0% hits, {num_bytes / 2**30:.3g} GiB fetched" in (run_dir / "log.txt").read_text()
        assert "Shards from the cache" in (run_dir / "report.html").read_text()
        asked = {path.name: server.asked_for(path.name) for path in digits.iterdir()}
        assert asked.pop("manifest.json") == [0, 0], "each process asks whether the data is still the same"
        assert set(map(tuple, asked.values())) == {(0,)}
        assert main(["eval", str(run_dir)]) == 0
        assert main(["check", str(short), f"data.path={server.url}"]) == 0
        for name in asked:
            assert server.asked_for(name) == [0]
    capsys.readouterr()
    assert main(["train", str(short), "data.path=pipe:cat shards"]) == 2
    assert "data.path=pipe:cat shards: expected a folder, or an address that starts with" in capsys.readouterr().err


def test_a_shard_that_one_process_finds_bad_stops_both_with_one_line(
    short: Path, digits: Path, run_dir: Path, tmp_path: Path, paretrain: Command
) -> None:
    """Each process verifies its share of the shards: the second one, that of the test split, is the second's."""
    data = Path(shutil.copytree(digits, tmp_path / "own"))
    shard = data / "test-000000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    done = paretrain("train", short, "--processes", 2, f"data.path={data}")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("paretrain: error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"paretrain: error: {shard}: its content is not that of manifest.json: expected sha256 ")
    assert "(on rank 1 only)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run_dir.exists()
