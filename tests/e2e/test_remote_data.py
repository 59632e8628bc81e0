"""Real runs on data that is elsewhere, or damaged where one process alone looks."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.data.server import serving
from tests.e2e.conftest import Command
from trainer.cli import main
from trainer.observe.metrics import read_metrics


@pytest.fixture
def short(config: Path, tmp_path: Path) -> Path:
    """Two steps, and a cache of this test's own."""
    values = yaml.safe_load(config.read_text())
    values["train"] |= {"steps": 2, "eval_every_steps": 2}
    values["data"]["cache"] = {"dir": str(tmp_path / "cache")}
    config.write_text(yaml.safe_dump(values))
    return config


@pytest.mark.slow
def test_two_processes_train_on_remote_shards_and_fetch_each_once(
    short: Path, digits: Path, run_dir: Path, paretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(digits) as server:
        done = paretrain("train", short, "--processes", 2, f"data.path={server.url}")
        assert done.returncode == 0, done.stderr
        assert (run_dir / "summary.json").exists()
        use = [record["cache"] for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "train"][-1]
        assert use.keys() == {"hits"}, "what fits the cache is fetched before the first step"
        assert "cache 100.0% hits, 0 GiB fetched" in (run_dir / "log.txt").read_text()
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
    assert said[0].startswith(f"paretrain: error: {shard}: its content has changed: expected sha256 ")
    assert "(on rank 1 only)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run_dir.exists()
