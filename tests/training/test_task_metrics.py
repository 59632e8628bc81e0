"""Every metric against scikit-learn's, where one is defined; and null where none is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from scipy.stats import spearmanr

from models import Classification, DenseRegression, Regression, Segmentation
from trainer.config.metrics import METRICS, metrics_of
from trainer.training import task_metrics
from trainer.training.collect import Predicted
from trainer.training.task_metrics import pixel_metrics, sample_metrics


def predicted_of(answers: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Predicted:
    """Predictions of some tasks, from (N, C) answers and (N,) labels of each."""
    return Predicted(
        sample_ids_N=np.arange(len(next(iter(labels.values())))),
        widths={name: answers_NC.shape[1] for name, answers_NC in answers.items()},
        labels_TN=np.stack([labels[name] for name in answers]),
        answers_WN=np.concatenate([answers_NC.T for answers_NC in answers.values()]),
    )


def classification_metrics(
    probabilities_NC: np.ndarray, labels_N: np.ndarray, names: Sequence[str]
) -> dict[str, float | None]:
    task = Classification("one", probabilities_NC.shape[1])
    return sample_metrics([task], predicted_of({"one": probabilities_NC}, {"one": labels_N}), {"one": names})["one"]


def regression_metrics(
    answers_N: np.ndarray, labels_N: np.ndarray, names: Sequence[str], scale: float
) -> dict[str, float | None]:
    task = Regression("one", scale=scale)
    return sample_metrics([task], predicted_of({"one": answers_N[:, None]}, {"one": labels_N}), {"one": names})["one"]


def answers(num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Imbalanced labels, a fifth of them missing, and probabilities with many ties."""
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(num_classes, 300, p=(shares := np.arange(1, num_classes + 1) ** 2) / shares.sum())
    logits_NC = rng.normal(0, 1, (300, num_classes)).round(1) + (np.eye(num_classes)[labels_N])
    labels_N[rng.random(300) < 0.2] = -1
    odds_NC = np.exp(logits_NC)
    return (odds_NC / odds_NC.sum(axis=1, keepdims=True)).astype(np.float32), labels_N.astype(np.float32)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_metrics_of_a_classification_are_those_of_scikit_learn(num_classes: int) -> None:
    probabilities_NC, labels_N = answers(num_classes)
    found = classification_metrics(probabilities_NC, labels_N, metrics_of("classification", num_classes))
    known_N = labels_N >= 0
    y, p = labels_N[known_N].astype(int), probabilities_NC[known_N].astype(np.float64)
    answer, classes = p.argmax(axis=1), range(num_classes)
    expected = {
        "accuracy": reference.accuracy_score(y, answer),
        "majority_accuracy": reference.accuracy_score(y, np.full_like(y, np.bincount(y).argmax())),
        "balanced_accuracy": reference.balanced_accuracy_score(y, answer),
        "f1_macro": reference.f1_score(y, answer, average="macro"),
        "log_loss": reference.log_loss(y, p / p.sum(axis=1, keepdims=True)),
        "auroc": reference.roc_auc_score(y, p[:, 1])
        if num_classes == 2
        else np.mean([reference.roc_auc_score(y == one, p[:, one]) for one in classes]),
        "average_precision": np.mean(
            [reference.average_precision_score(y == one, p[:, one]) for one in ([1] if num_classes == 2 else classes)]
        ),
    }
    if num_classes == 2:
        expected["f1"] = reference.f1_score(y, answer)
    bins = np.digitize(p.max(axis=1), np.linspace(0, 1, 16)[1:-1])
    gaps = [abs((answer == y)[bins == b].mean() - p.max(axis=1)[bins == b].mean()) for b in set(bins)]
    expected["calibration_error"] = np.average(gaps, weights=[(bins == b).mean() for b in set(bins)])
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_classification_with_one_class_has_no_curve() -> None:
    probabilities_NC, labels_N = answers(2)
    found = classification_metrics(probabilities_NC, labels_N.clip(max=0), ["auroc", "f1", "accuracy"])
    assert (found["auroc"], found["f1"]) == (None, 0.0)
    assert classification_metrics(probabilities_NC, -np.ones_like(labels_N), ["accuracy"]) == {"accuracy": None}
    assert classification_metrics(probabilities_NC * np.nan, labels_N, ["accuracy"]) == {"accuracy": None}


def test_metrics_of_a_regression_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels_N = rng.normal(0, 1, 200).round(1).astype(np.float32)
    answers_N = (labels_N + rng.normal(0, 1, 200)).astype(np.float32)
    labels_N[::7] = np.nan
    found = regression_metrics(answers_N, labels_N, metrics_of("regression", 1), scale=12.0)
    known_N = ~np.isnan(labels_N)
    y, answer = 12.0 * labels_N[known_N].astype(np.float64), 12.0 * answers_N[known_N].astype(np.float64)
    assert found == pytest.approx(
        {
            "mae": reference.mean_absolute_error(y, answer),
            "rmse": reference.root_mean_squared_error(y, answer),
            "r2": reference.r2_score(y, answer),
            "spearman": spearmanr(y, answer).statistic,
        },
        abs=1e-6,
    )
    constant = regression_metrics(np.zeros(3), np.ones(3), ["mae", "r2", "spearman"], scale=1.0)
    assert constant == {"mae": 1.0, "r2": None, "spearman": None}


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_tasks_are_measured_alone_and_together_alike(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside tasks without a label, with a prediction of NaN, and with other metrics."""
    monkeypatch.setattr(task_metrics, "MAX_NUMBERS", at_once)
    found = {f"{kind}{seed}": answers(kind, seed) for seed in range(3) for kind in (2, 4)}
    found["blind"] = found["20"][0], -np.ones(300)
    found["broken"] = found["20"][0] * np.float32(np.nan), found["20"][1]
    tasks = [Classification(name, given.shape[1]) for name, (given, _) in found.items()]
    names = {task.name: metrics_of("classification", task.num_classes) for task in tasks} | {"22": ["auroc"]}
    answers_of, labels_of = ({name: pair[place] for name, pair in found.items()} for place in (0, 1))
    numbers = [Regression(f"number{seed}", scale=seed + 1.0) for seed in range(2)]
    for task in numbers:
        answers_of[task.name], labels_of[task.name] = found["20"][0][:, :1], found[f"2{int(task.scale)}"][0][:, 0]
        names[task.name] = metrics_of("regression", 1)
    together = sample_metrics([*tasks, *numbers], predicted_of(answers_of, labels_of), names)
    for name, (given, labels) in found.items():
        assert together[name] == pytest.approx(classification_metrics(given, labels, names[name]), abs=1e-12), name
    for task in numbers:
        alone = regression_metrics(answers_of[task.name][:, 0], labels_of[task.name], names[task.name], task.scale)
        assert together[task.name] == pytest.approx(alone, abs=1e-12)
    assert set(together["blind"].values()) == set(together["broken"].values()) == {None}


def test_metrics_of_pixels_follow_from_counts() -> None:
    task = Segmentation("parts", ("road", "car", "sky", "never"))
    rng = np.random.default_rng(2)
    output_BCHW = torch.tensor(rng.normal(0, 1, (2, 4, 5, 6)))
    output_BCHW[:, 3] = -10
    target_BHW = torch.tensor(rng.choice([0, 1, 2, 255], (2, 5, 6)))
    found = pixel_metrics(task, *task.measure(output_BCHW, target_BHW), ["miou", "pixel_accuracy"])
    label, answer = (values[target_BHW != 255].numpy() for values in (target_BHW, output_BCHW.argmax(dim=1)))
    expected = {
        "miou": reference.jaccard_score(label, answer, average="macro"),
        "pixel_accuracy": reference.accuracy_score(label, answer),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    depth = DenseRegression("depth", 1, "m", 3.0)
    assert pixel_metrics(depth, torch.tensor([4.0]), torch.tensor([8]), ["mae"]) == {"mae": 1.5}
    assert pixel_metrics(depth, torch.tensor([0.0]), torch.tensor([0]), ["mae"]) == {"mae": None}


def test_every_metric_is_computed() -> None:
    num_classes = {"classification": 2}
    kinds = {kind for metric in METRICS.values() for kind in metric.kinds}
    assert {name for kind in kinds for name in metrics_of(kind, num_classes.get(kind, 1))} == set(METRICS)


def test_the_page_explains_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in page] == []
