"""A user's mistake gets one clear message and exit code 2, before any step; never a traceback."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import Command
from trainer.cli import main
from trainer.observe.metrics import read_metrics

Say = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Say:
    """What the command says when it refuses `arguments`."""

    def say(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("paretrain: error: ")
        assert len(errors.splitlines()) <= 12, "more than a screen"
        return errors

    return say


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", "unknown key 'train.stpes'; did you mean 'steps'?"),
        ("trian.steps=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.steps=many", "train.steps: input should be a valid integer, found 'many'"),
        ("train.steps=0", "train.steps: input should be greater than 0, found 0"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: input should be greater than 0, found -1"),
        ("parallel.processes=3", "train.global_batch=40 cannot be divided among parallel.processes=3"),
        ("train.global_batch=500", "400 samples, less than one global batch of 500"),
        ("data.path=nowhere", "No data folder nowhere"),
        ("data.tasks=[lefft]", "has no task 'lefft'; did you mean 'left'?"),
        ("balance.weighting=fixed", "weighting=fixed needs weights"),
        ("balance={weighting: fixed, weights: {left: 1.0}}", "expected one weight for each of left, right"),
        ("balance={weighting: fixed, weights: {left: 1.0, right: 1.0}}", "must sum to 1"),
        ("model.encoder.name=lenett", "no encoder 'lenett'. Did you mean 'lenet'?"),
        ("model.encoder.name=my.own.Encoder", "encoder 'my.own.Encoder' cannot be imported"),
        ("model.encoder.options={drop: 0.1}", "encoder 'lenet' has no option 'drop'. Did you mean 'dropout'?"),
        ("model.encoder.options={dropout: 7}", "encoder 'lenet' cannot be built with dropout=7"),
        (
            "model.encoder={name: tests.support.faulty.Tied}",
            "encoder.features.0.weight and encoder.again.weight are one parameter under two names, which can be "
            "neither sharded nor saved as two. Leave one of the names out of the module, or give it a parameter of its "
            "own: torch.nn.Parameter(other.detach().clone())",
        ),
        (
            "balance.weighting=tests.support.faulty.RemembersAnArray",
            "balance.weighting=tests.support.faulty.RemembersAnArray: state_dict()['memory']['losses_T'] is a "
            "numpy.ndarray, which no checkpoint can hold: it could not be read back safely. Expected tensors, numbers, "
            "strings, and lists and dictionaries of them; of a NumPy array, torch.from_numpy(array) makes a tensor",
        ),
        ("parallel.device=cuda", "torch finds no GPU here"),
        ("optimizer.schedule=step", "schedule=step needs decay_every_steps and decay_factor"),
        ("output=/dev/null", "the run's folder /dev/null/run cannot be written"),
        ("model.head.options={hidden: 0}", "has no entries"),
        ("name=../elsewhere", "name: expected letters, digits"),
        ("steps", "found 'steps', expected key=value"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_written(
    override: str, message: str, config: Path, run_dir: Path, refusal: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cuda" in override:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # `check` knows how to divide among more processes than it runs on; `train` would launch them. Without a GPU,
    # as on a login node, `check` looks at all else.
    command = "train" if "cuda" in override else "check"
    assert message in refusal(command, config, override)
    assert not run_dir.exists()


def test_a_mistake_can_be_mended_and_the_same_run_started(config: Path, run_dir: Path, refusal: Say) -> None:
    """A run that could not even be built leaves no folder that would refuse the mended configuration."""
    assert "no encoder 'lenett'" in refusal("train", config, "model.encoder.name=lenett")
    assert not run_dir.exists()
    assert main(["train", str(config), "train.steps=1"]) == 0


def test_a_configuration_that_is_none(tmp_path: Path, refusal: Say) -> None:
    assert "no configuration file" in refusal("train", tmp_path / "missing.yaml")
    for text, message in {
        "train: [": "is not YAML",
        "- a": "must hold keys and values, such as name: digits, found ['a']",
        "name: a\nname: b": "key given twice: name",
    }.items():
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        assert message in refusal("train", path)


@pytest.fixture
def own_data(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "own"))


def test_shards_that_disagree_with_their_manifest(own_data: Path, config: Path, run_dir: Path, refusal: Say) -> None:
    shard = next(own_data.glob("train-*.tar"))
    override = f"data.path={own_data}"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    assert shard.name in refusal("train", config, override)
    shard.write_bytes(content[:-1024])
    assert shard.name in refusal("train", config, override)
    shard.unlink()
    assert shard.name in refusal("train", config, override)
    (own_data / "manifest.json").write_text("{")
    assert "is not JSON" in refusal("train", config, override)
    assert not run_dir.exists()


def test_a_run_folder_of_another_configuration_prints_the_difference(config: Path, run_dir: Path, refusal: Say) -> None:
    assert main(["train", str(config), "train.steps=1"]) == 0
    overrides = ["train.steps=2", "seed=7", "optimizer.learning_rate=0.1", "checkpoint.keep=9"]
    said = refusal("train", config, *overrides)
    assert said == refusal("check", config, *overrides), "the same verdict"
    assert "seed: 0 -> 7" in said
    assert "optimizer.learning_rate: 0.05 -> 0.1" in said
    assert "keep" not in said, "how many checkpoints are kept decides no number"
    assert "train.steps" not in said, "a longer run goes on from a shorter one"


@pytest.fixture
def checkpoints(config: Path, run_dir: Path) -> Path:
    """Two complete checkpoints, of steps 3 and 6."""
    assert main(["train", str(config)]) == 0
    return run_dir / "checkpoints"


def test_a_damaged_checkpoint_is_passed_over_and_kept(checkpoints: Path, config: Path, refusal: Say) -> None:
    newest = checkpoints / "step_00000006"
    model = newest / "model_00000.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    said = refusal("eval", checkpoints.parent)
    assert "has changed since it was written: model_00000.safetensors has SHA-256" in said
    assert f"echo step_00000003 > {checkpoints / 'LATEST'}" in said
    assert main(["train", str(config), "train.steps=9"]) == 0
    assert (checkpoints / "step_00000006.aside" / model.name).read_bytes() == content
    assert (checkpoints / "LATEST").read_text() == "step_00000009"
    (note,) = [
        record["text"] for record in read_metrics(checkpoints.parent / "metrics.jsonl") if record["kind"] == "note"
    ]
    assert "goes on from step_00000003" in note
    assert note in (checkpoints.parent / "log.txt").read_text()
    assert json.loads((checkpoints.parent / "summary.json").read_text())["damaged_checkpoints"] == 1


def test_a_checkpoint_knows_its_configuration(checkpoints: Path, config: Path, refusal: Say) -> None:
    run_dir = checkpoints.parent
    (run_dir / "config.yaml").write_text("data: {path: [")
    assert f"{run_dir / 'config.yaml'} is not YAML" in refusal("train", config, "train.steps=9")
    (run_dir / "config.yaml").unlink()
    said = refusal("train", config, "train.steps=9", "optimizer={name: adamw, learning_rate: 0.05}")
    assert "optimizer.name: sgd -> adamw" in said
    shutil.copytree(run_dir, run_dir.with_name("copy"))
    said = refusal("train", config, "name=copy", "train.steps=9", "model.encoder.options={dropout: 0.5}")
    assert "model.encoder.options.dropout: 0.25 -> 0.5" in said
    assert main(["train", str(config), "name=copy", "train.steps=9"]) == 0


def test_metrics_without_their_checkpoints_are_never_lost(checkpoints: Path, config: Path, refusal: Say) -> None:
    run_dir = checkpoints.parent
    metrics = (run_dir / "metrics.jsonl").read_text()
    shutil.rmtree(checkpoints)
    assert "has reached step 6 and saved checkpoints" in refusal("train", config)
    assert (run_dir / "metrics.jsonl").read_text() == metrics
    # As a run leaves it that is killed before its first checkpoint.
    (run_dir / "summary.json").unlink()
    (run_dir / "metrics.jsonl").write_text(metrics.splitlines(keepends=True)[0])
    assert main(["train", str(config)]) == 0
    assert (run_dir / "metrics.1.jsonl").read_text() == metrics.splitlines(keepends=True)[0]
    assert "its metrics are in" in (run_dir / "log.txt").read_text()


def test_a_checkpoint_of_other_data_or_another_model(
    checkpoints: Path, config: Path, tmp_path: Path, refusal: Say
) -> None:
    assert main(["data", "digits", "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    said = refusal("train", config, "train.steps=9", f"data.path={tmp_path / 'other'}")
    assert "was trained on other data" in said


def test_eval_of_what_is_not_there(checkpoints: Path, tmp_path: Path, refusal: Say) -> None:
    assert "is not a run's folder" in refusal("eval", tmp_path / "nowhere")
    assert "has no checkpoint step_00000005; found: step_00000003, step_00000006" in refusal(
        "eval", checkpoints.parent, "--step", 5
    )
    assert "has no split 'tset'; did you mean 'test'?" in refusal("eval", checkpoints.parent, "--split", "tset")


def test_a_run_in_place_of_a_configuration_and_one_in_place_of_a_run(
    checkpoints: Path, config: Path, refusal: Say
) -> None:
    run = checkpoints.parent
    for command in ("eval", "report"):
        assert f"Expected the folder of a run, which is {run} for this configuration" in refusal(command, config)
        assert "did you mean 'run'?" in refusal(command, run.with_name("rum"))
    assert f"Expected a configuration, this run's: {run / 'config.yaml'}" in refusal("check", run)
    assert f"did you mean '{config.name}'?" in refusal("check", config.with_name(f"{config.stem}.yml"))


def test_a_full_disk_while_saving_leaves_the_last_checkpoint(config: Path, run_dir: Path, paretrain: Command) -> None:
    """No file may grow beyond 20 kB, less than half the model: the write itself fails, as on a full disk."""
    assert paretrain("train", config, "train.steps=3").returncode == 0
    before = {path.name for path in (run_dir / "checkpoints").iterdir()}
    limit = (20_000, resource.RLIM_INFINITY)
    done = paretrain(
        "train", config, "--processes", 2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert done.returncode == 3
    assert "the checkpoint of step 6 could not be written" in done.stderr
    assert "step_00000003. " in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == before
    again = paretrain("train", config, "--processes", 2)
    assert again.returncode == 0, again.stderr
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 6
