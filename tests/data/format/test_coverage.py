"""Tasks from which nothing can be learnt: refused where they are trained on, told of where data are made."""

import json
from pathlib import Path

import pytest

from tests.support.rich_data import write_rich
from tests.support.tiny_data import picture, spec, write_tiny
from trainer.cli import main
from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.config.sections.data import DataConfig
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.format.coverage import check_trainable
from trainer.data.format.decode import encode
from trainer.data.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec, RegressionSpec
from trainer.data.format.tables import load_index
from trainer.errors import UserError
from trainer.runtime.distributed import joined
from trainer.training.prepare_data import open_data, open_split

TASKS = [ClassificationSpec(name=name, classes=("no", "yes")) for name in ("some", "none", "always")]


def write(folder: Path) -> Manifest:
    image = spec()
    samples = [Sample(encode(picture(i, image), "npy"), {"some": i % 2, "always": 1}) for i in range(6)]
    splits = {"train": samples, "test": [Sample(samples[0].inputs, {"none": 1})]}
    return write_shards(folder, name="x", made_by={}, inputs=image, tasks=TASKS, splits=splits)


def test_what_the_tasks_of_a_run_lack_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write(tmp_path)
    tables = load_index(tmp_path, manifest, "train")
    said = caplog.text
    assert "no sample of the train split has a label of task 'none'" in said
    assert "all labels of task 'always' in the train split are 'yes'" in said
    assert "of task 'some'" not in said
    with pytest.raises(UserError, match="no sample of the train split has a label of task 'none'"):
        check_trainable(tmp_path, manifest, None, load_index(tmp_path, manifest, "train"))
    assert not check_trainable(tmp_path, manifest, ["some"], tables)
    (warning,) = check_trainable(tmp_path, manifest, ["some", "always"], tables)
    assert "task 'always'" in warning


def test_training_refuses_and_evaluation_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    caplog.clear()
    with joined(ParallelConfig(device="cpu")) as runtime:
        with pytest.raises(UserError, match="has a label of task 'none'"):
            open_data(_experiment(tmp_path, "null").data, runtime)
        open_data(_experiment(tmp_path, "[always]").data, runtime)
        assert open_split(_experiment(tmp_path, "[none]").data, "test", runtime).only.path == tmp_path
    assert "all labels of task 'always'" in caplog.text


@pytest.mark.parametrize("split", ["test", None])
def test_evaluation_and_export_verify_the_data(tmp_path: Path, split: str | None) -> None:
    write_tiny(tmp_path)
    path = tmp_path / "test.labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with (
        joined(ParallelConfig(device="cpu")) as runtime,
        pytest.raises(UserError, match=r"test.labels.npy: its content is not that of manifest.json"),
    ):
        open_split(DataConfig(path=str(tmp_path), verify="size"), split, runtime)


@pytest.mark.long
def test_data_check_tells_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "has a label of task 'none'" in said
    assert "all labels of task 'always'" in said


def test_a_target_a_pixel_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    manifest = write_rich(tmp_path, train=1)  # a single sample, which has no depth
    with pytest.raises(UserError, match="has a label of tasks 'depth', 'weight'"):
        check_trainable(tmp_path, manifest, None, load_index(tmp_path, manifest, "train"))


@pytest.mark.parametrize(("mean", "std"), [(1e29, 5.0), (10.0, 1e-20), (10.0, 1e20)])
def test_a_mean_and_a_std_of_other_labels_are_refused(tmp_path: Path, mean: float, std: float) -> None:
    write_rich(tmp_path)
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    content["tasks"][3] |= RegressionSpec(name="weight", mean=mean, std=std).model_dump()
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    manifest = read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"labels of task 'weight' in the train split range from 0.5 to 5.5"):
        check_trainable(tmp_path, manifest, None, load_index(tmp_path, manifest, "train"))


def _experiment(folder: Path, tasks: str) -> Experiment:
    return load_config(Path("configs/digits.yaml"), [f"data.path={folder}", f"data.tasks={tasks}"])
