"""The section `tasks`: which one a task gets, what it builds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tests.support.tiny_data import write_tiny
from trainer.config.file import load_config
from trainer.config.sections.tasks import TaskConfig
from trainer.data.format.manifest import read_manifest
from trainer.data.format.tables import load_index
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.training.tasks import build_tasks, deciding_metrics, metric_names, section_of

OWN = """
from models import Classification

class Own(Classification):
    def loss(self, output, target):
        loss, count = super().loss(output, target)
        return 2 * loss, count

class Other:
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks `even`, of two classes, and `digit`, of ten."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


def built(folder: Path, **sections: TaskConfig):
    return build_tasks(read_manifest(folder), None, sections, [DataFolder(folder, read_manifest(folder))])


def test_a_name_counts_before_a_pattern_and_that_before_a_kind() -> None:
    by_name, pattern, later, kind = (TaskConfig(delta=delta) for delta in (1.0, 2.0, 3.0, 4.0))
    sections = {"regression": kind, "a*": pattern, "ab*": later, "abc": by_name}
    assert section_of("abc", "regression", sections) is by_name
    assert section_of("abd", "regression", sections) is pattern
    assert section_of("x", "regression", sections) is kind
    assert section_of("x", "classification", sections) == TaskConfig()


def test_balanced_weights_are_those_of_scikit_learn(folder: Path) -> None:
    _, digit = built(folder, digit=TaskConfig(class_weights="balanced"))
    labels_N = load_index(folder, read_manifest(folder), "train")[1][:, 1]
    known_N = labels_N[labels_N >= 0]
    expected = dict(
        zip(np.unique(known_N), compute_class_weight("balanced", classes=np.unique(known_N), y=known_N), strict=True)
    )
    assert digit.objective.class_weights == pytest.approx([expected.get(float(one), 1.0) for one in range(10)])


def test_metrics_are_chosen_by_task(folder: Path) -> None:
    sections = {"*": TaskConfig(metrics=["f1", "log_loss"]), "even": TaskConfig(decides="auroc")}
    tasks = built(folder, **sections)
    names = metric_names(tasks, sections)
    assert names["digit"] == ["accuracy", "log_loss"], "f1 is of two classes; accuracy decides"
    assert {"auroc", "f1", "calibration_error"} <= set(names["even"])
    assert deciding_metrics(tasks, sections) == {"even": "auroc", "digit": "accuracy"}


def test_a_task_of_the_users_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    even, digit = built(folder, even=TaskConfig(loss="mine.py:Own"))
    assert (type(even).__name__, even.name, even.num_classes, type(digit).__name__) == (
        "Own",
        "even",
        2,
        "Classification",
    )
    with pytest.raises(UserError, match="expected a subclass of models"):
        built(folder, even=TaskConfig(loss="mine.py:Other"))
    with pytest.raises(UserError, match="unexpected keyword argument"):
        built(folder, even=TaskConfig(loss="mine.py:Own", options={"depth": 3}))


@pytest.mark.parametrize(
    ("key", "section", "said"),
    [
        ("evn", TaskConfig(), "did you mean 'even'"),
        ("even", TaskConfig(loss="l1"), "expected cross_entropy or focal"),
        ("even", TaskConfig(delta=2.0), "delta is not for task 'even'"),
        ("even", TaskConfig(class_weights={"yess": 2.0}), "did you mean 'yes'"),
        ("even", TaskConfig(metrics=["mae"]), "none of the metrics mae"),
        ("digit", TaskConfig(decides="f1"), "of 10 classes"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, section: TaskConfig, said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said):
        metric_names(built(folder, **{key: section}), {key: section})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks.left.loss=focl", "did you mean 'focal'"),
        ("tasks.left.los=focal", "did you mean 'loss'"),
        ("tasks.left.metrics=[aurok]", "did you mean 'auroc'"),
        ("tasks.left={loss: focal, delta: 2.0}", "it belongs to huber"),
        ("tasks.left.options={a: 1}", "it belongs to your own task"),
    ],
)
def test_a_configuration_says_what_to_type(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(Path("configs/digits.yaml"), [override])
