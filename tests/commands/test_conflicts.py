"""`paretrain conflicts`: what it says of gradients with and without noise, and the command on a small table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from trainer.cli import main
from trainer.commands.conflicts import blocks
from trainer.commands.conflicts_estimate import agreeing_groups, conflicts, corrected_min_norm, verdict
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import TableColumns

TASKS = ["a", "b", "c", "d"]


def noisy_grams(true_TN: np.ndarray, noise: float, batches: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    gradients_KTN = true_TN + noise * generator.standard_normal((batches, *true_TN.shape))
    return gradients_KTN @ gradients_KTN.transpose(0, 2, 1)


def test_conflicts_are_found_and_noise_is_not_taken_for_one() -> None:
    true_TN = np.zeros((4, 60))
    true_TN[:2, 0], true_TN[2:, 0], true_TN[:2, 1], true_TN[2:, 2] = 1, -0.5, 1, 2

    found = conflicts(noisy_grams(true_TN, 0.05))

    expected_TT = true_TN @ true_TN.T
    lengths_T = np.sqrt(expected_TT.diagonal())
    np.testing.assert_allclose(found.cosine_TT, expected_TT / np.outer(lengths_T, lengths_T), atol=0.1)
    assert sorted(found.opposing) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert agreeing_groups(found) == [[0, 1], [2, 3]]
    noise = conflicts(noisy_grams(np.zeros((4, 60)), 1.0))
    assert not noise.raised
    assert not noise.opposing
    assert noise.min_norm > 0.1, "what noise alone makes of it"


def test_the_sentence_says_which_space_sees_the_conflict() -> None:
    opposed_TN = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0.5, 0]])
    opposed, apart = (conflicts(noisy_grams(true_TN, 0.01)) for true_TN in (opposed_TN, 9 * np.eye(4)))
    assert opposed.raised == [3]
    assert "raises the loss of d; of 6 pairs" in verdict(opposed, opposed, TASKS)
    assert "only the parameters see it" in verdict(apart, opposed, TASKS)
    assert "the encoder's parameters do not see it" in verdict(opposed, apart, TASKS)
    assert "little to win: no two of 4 tasks" in verdict(apart, apart, TASKS)
    unlike = conflicts(noisy_grams(np.diag([100.0, 1, 1, 1]), 0.001))
    assert "evening out lengths" in verdict(unlike, unlike, TASKS)


def test_many_tasks_of_noise_seldom_seem_to_conflict() -> None:
    wrong = [conflicts(noisy_grams(np.zeros((20, 30)), 1.0, batches=6, seed=seed)).opposing for seed in range(20)]
    assert sum(map(bool, wrong)) <= 3


def test_an_absent_task_is_left_out_of_the_batches_that_lack_it() -> None:
    grams_KTT = noisy_grams(np.eye(3), 0.01)
    grams_KTT[::2, 0], grams_KTT[::2, :, 0] = 0, 0
    grams_KTT[:, 2], grams_KTT[:, :, 2] = 0, 0

    found = conflicts(grams_KTT)

    assert np.isfinite(found.cosine_TT[:2, :2]).all()
    assert np.isnan(found.cosine_TT[2]).all()
    assert found.min_norm == pytest.approx(0.75, abs=0.02), "1/2 of two orthogonal tasks, and 1 of one alone"
    assert sorted(map(len, agreeing_groups(found))) == [1, 1, 1]


def test_the_corrected_min_norm_has_no_bias() -> None:
    """The true gradients are g, 0 and -g, so that the true value is 0; noise makes the plain value large."""
    generator = np.random.default_rng(0)
    true_TN = np.outer([1.0, 0, -1], np.eye(40)[0])
    corrected, plain = [], []
    for _ in range(200):
        means_3TN = true_TN + 0.25 * generator.standard_normal((3, 3, 40))
        cross = np.einsum("atn,bsn->abts", means_3TN, means_3TN)
        corrected.append(corrected_min_norm(cross)[0])
        plain.append(conflicts(np.stack([cross[group, group] for group in range(3)])).min_norm)
    assert np.nanmean(plain) > 0.2
    assert abs(np.nanmean(corrected)) < 4 * np.nanstd(corrected) / np.sqrt(200)


def test_parts_of_an_encoder() -> None:
    assert list(blocks(["conv1.weight", "conv1.bias", "conv2.weight", "fc.weight"])) == ["conv1", "conv2", "fc"]
    assert list(blocks(["layers.0.0.weight", "layers.0.1.weight", "layers.1.0.weight", "layers.2.0.weight"])) == [
        "layers.0",
        "layers.1",
        "layers.2",
    ]
    assert list(blocks(["weight", "bias"])) == ["weight", "bias"]
    assert list(blocks([f"stage{number}.weight" for number in range(20)])) == ["encoder"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three numbers of 5 features, the first two alike, and an MLP."""
    folder = tmp_path_factory.mktemp("conflicts")
    features = np.random.default_rng(0).standard_normal((120, 5))
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{i}" for i in range(5)), "<one>", "two", "three"])
        labels = np.stack([features[:, 0], features[:, 0] + 0.1 * features[:, 1], features[:, 2]], axis=1)
        writer.writerows(np.concatenate([features, labels], axis=1).round(3))
    write_table(folder / "t.csv", folder / "data", TableColumns(["<one>", "two", "three"]))
    values = {
        "name": "small",
        "output": str(folder / "runs"),
        "data": {"path": str(folder / "data"), "workers": 0},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [6, 4]}}, "head": {"name": "linear"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "checkpoint": {"every_steps": 10},
        "train": {"steps": 10, "global_batch": 12, "log_every_steps": 5, "eval_every_steps": 5},
        "balance": {"weighting": "uniform", "space": "parameters"},
        "parallel": {"processes": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


@pytest.mark.processes
@pytest.mark.slow
def test_the_command_writes_its_page_and_its_numbers(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.html"

    assert main(["conflicts", str(config), "--batches", "6", "--steps", "2", "--out", str(out)]) == 0

    assert "6 batches of 12 samples, on one process" in capsys.readouterr().out
    found = json.loads(out.with_suffix(".json").read_text())
    assert [moment["step"] for moment in found["moments"]] == [0, 2]
    for moment in found["moments"]:
        for space in ("representation", "parameters"):
            cosines = np.array(moment[space]["cosine"], dtype=float)
            np.testing.assert_allclose(cosines.diagonal(), 1, atol=1e-6)
            np.testing.assert_allclose(cosines, cosines.T)
        assert list(moment["blocks"]) == ["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"]
        assert sorted(np.concatenate(moment["groups"]).tolist()) == [0, 1, 2]
    page = out.read_text()
    assert "&lt;one&gt;" in page
    assert "<one>" not in page
    assert not (config.parent / "runs").exists()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batches", "7"], "expected a multiple of 3, such as 9"),
        (["--out", "page.txt"], "expected a file name that ends in .html"),
        (["model.freeze=[encoder.*]"], "whole encoder is frozen"),
    ],
)
def test_what_cannot_be_measured_is_said(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["conflicts", str(config), *words]) == 2
    assert message in capsys.readouterr().err
