"""Losses and errors of every kind of task, against numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import (
    Classification,
    DenseRegression,
    Regression,
    Segmentation,
    Task,
    build_encoder,
    build_model,
    ratios,
    task_losses,
    task_measures,
)
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.tasks import SPREAD, UNLABELLED

B, H, W, C = 5, 4, 3, 3
CLASSES = ("left", "right", "dark")


def huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= 1, size**2 / 2, size - 0.5)


def test_a_regression_is_huber_and_mean_absolute_error_in_its_unit() -> None:
    output_B1 = torch.tensor([[0.0], [1.0], [5.0], [2.0]], requires_grad=True)
    target_B = torch.tensor([0.5, 1.0, 0.0, math.nan])
    loss, count = (task := Regression("age", "years", scale=12.0)).loss(output_B1, target_B)
    residual = np.array([-0.5, 0.0, 5.0])
    assert (float(loss.detach()), int(count)) == (pytest.approx(huber(residual).sum()), 3)
    loss.backward()
    assert output_B1.grad.flatten().tolist() == [-0.5, 0.0, 1.0, 0.0], "an outlier pulls no harder than one σ"
    ((error,),) = ratios([task], *task_measures([task], [output_B1.detach()], {"age": target_B}))
    assert error == pytest.approx(12 * np.abs(residual).mean())
    assert (Regression("age").unit, Regression("age").scale) == (SPREAD, 1.0)


def test_stacked_regressions_keep_their_own_units() -> None:
    """Hundreds of targets: one batched loss, and each error in its own unit."""
    rng = np.random.default_rng(0)
    num_tasks = 300
    output_BT1 = rng.normal(0, 2, (B, num_tasks, 1))
    target_BT = np.where(rng.random((B, num_tasks)) < 0.3, np.nan, rng.normal(0, 2, (B, num_tasks)))
    target_BT[:, 7] = np.nan
    tasks = [Regression(f"t{t}", "m", scale=t + 1.0) for t in range(num_tasks)]
    targets = {task.name: torch.tensor(target_BT[:, t]) for t, task in enumerate(tasks)}
    residual_BT = output_BT1[..., 0] - target_BT
    for measure, expected_BT in ((task_losses, huber(residual_BT)), (task_measures, np.abs(residual_BT))):
        sums_T, counts_T = measure(tasks, torch.tensor(output_BT1), targets)
        np.testing.assert_allclose(sums_T, np.nansum(expected_BT, axis=0), rtol=1e-12)
        assert counts_T.tolist() == (~np.isnan(target_BT)).sum(axis=0).tolist()
    errors_T = np.array(ratios(tasks, sums_T, counts_T), dtype=float)[:, 0]
    expected_T = np.ma.masked_invalid(residual_BT * np.arange(1, num_tasks + 1))
    np.testing.assert_allclose(errors_T, np.abs(expected_T).mean(axis=0).filled(np.nan), rtol=1e-12)
    assert np.isnan(errors_T[7])


def test_a_segmentation_is_cross_entropy_of_its_labelled_pixels() -> None:
    rng = np.random.default_rng(1)
    logits_BCHW = rng.normal(size=(B, C, H, W))
    target_BHW = rng.integers(0, C, (B, H, W)).astype(np.uint8)
    target_BHW[rng.random((B, H, W)) < 0.4] = UNLABELLED
    target_BHW[2] = UNLABELLED
    labelled = target_BHW != UNLABELLED
    at = np.moveaxis(logits_BCHW, 1, -1)[labelled]
    expected = np.log(np.exp(at).sum(axis=1)) - at[np.arange(len(at)), target_BHW[labelled]]
    tasks, targets = [Segmentation("parts", CLASSES)], {"parts": torch.tensor(target_BHW)}
    (loss,), (count,) = task_losses(tasks, [torch.tensor(logits_BCHW)], targets)
    assert (float(loss), int(count)) == (pytest.approx(expected.sum()), labelled.sum())


@pytest.mark.parametrize("seed", range(5))
def test_a_segmentation_is_measured_by_the_confusion_of_all_pixels(seed: int) -> None:
    """Against counting by hand; a class that is neither in a label nor in an answer is left out, not zero."""
    rng = np.random.default_rng(seed)
    classes = [f"c{c}" for c in range(rng.integers(3, 20))]
    logits_BCHW = rng.normal(size=(B, len(classes), H, W))
    logits_BCHW[:, -1] = -9
    target_BHW = rng.integers(0, len(classes) - 1, (B, H, W)).astype(np.uint8)
    target_BHW[rng.random((B, H, W)) < 0.4] = UNLABELLED
    confusion_CC = np.zeros((len(classes), len(classes)), int)
    for place in np.ndindex(B, H, W):
        if target_BHW[place] != UNLABELLED:
            answer = logits_BCHW[place[0], :, *place[1:]].argmax()
            confusion_CC[target_BHW[place], answer] += 1
    tasks = [Classification("even", 2), Segmentation("parts", classes), DenseRegression("depth", 2)]
    sums_N, counts_N = 0, 0
    for batch in (slice(0, 2), slice(2, 5)):  # as two ranks would
        outputs = [torch.zeros(1, 2), torch.tensor(logits_BCHW[batch]), torch.ones(1, 2, 1, 1)]
        targets = {
            "even": torch.ones(1, dtype=torch.long),
            "parts": torch.tensor(target_BHW[batch]),
            "depth": torch.zeros(1, 1, 1, 2),
        }
        sums, counts = task_measures(tasks, outputs, targets)
        sums_N, counts_N = sums_N + sums, counts_N + counts
    even, parts, depth = ratios(tasks, sums_N, counts_N)
    assert (even, depth) == ([100.0], [1.0])
    for c in range(len(classes)):
        union = confusion_CC[c].sum() + confusion_CC[:, c].sum() - confusion_CC[c, c]
        assert parts[c] == (pytest.approx(100 * confusion_CC[c, c] / union, rel=1e-14) if union else None)
    assert parts[-1] is None
    assert Segmentation("parts", classes).parts == classes


def test_a_dense_regression_is_the_absolute_error_where_there_is_a_number() -> None:
    rng = np.random.default_rng(2)
    output_BCHW = torch.tensor(rng.normal(size=(B, 2, H, W)), requires_grad=True)
    target_BHWC = rng.normal(size=(B, H, W, 2)).astype(np.float32)
    target_BHWC[rng.random(target_BHWC.shape) < 0.4] = np.nan
    residual = np.moveaxis(output_BCHW.detach().numpy(), 1, -1) - target_BHWC
    tasks, targets = [DenseRegression("depth", 2, "m", scale=30.0)], {"depth": torch.tensor(target_BHWC)}
    (loss,), (count,) = task_losses(tasks, [output_BCHW], targets)
    assert float(loss.detach()) == pytest.approx(np.nansum(np.abs(residual)))
    assert int(count) == (~np.isnan(target_BHWC)).sum()
    loss.backward()
    assert np.array_equal(np.moveaxis(output_BCHW.grad.numpy(), 1, -1), np.nan_to_num(np.sign(residual)))
    ((error,),) = ratios(tasks, *task_measures(tasks, [output_BCHW.detach()], targets))
    assert error == pytest.approx(30 * np.nanmean(np.abs(residual)))


@pytest.mark.parametrize(
    ("task", "output", "target"),
    [
        (Regression("x"), torch.randn(B, 1), torch.full((B,), math.nan)),
        (Segmentation("x", CLASSES), torch.randn(B, C, H, W), torch.full((B, H, W), UNLABELLED, dtype=torch.uint8)),
        (DenseRegression("x", 2), torch.randn(B, 2, H, W), torch.full((B, H, W, 2), math.nan)),
    ],
)
def test_no_label_at_all_is_a_zero_that_still_has_a_gradient(
    task: Task, output: torch.Tensor, target: torch.Tensor
) -> None:
    output.requires_grad_()
    loss, count = task.loss(output, target)
    loss.backward()
    assert (float(loss.detach()), int(count)) == (0, 0)
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize(
    ("task", "output", "target"),
    [
        (Regression("x"), torch.randn(B, 1), torch.randn(B)),
        (Segmentation("x", CLASSES), torch.randn(B, C, H, W), torch.zeros(B, H, W, dtype=torch.uint8)),
        (DenseRegression("x", 2), torch.randn(B, 2, H, W), torch.randn(B, H, W, 2)),
    ],
)
def test_narrow_outputs_are_summed_in_float32(task: Task, output: torch.Tensor, target: torch.Tensor) -> None:
    narrow = output.bfloat16()
    loss, _ = task.loss(narrow, target)
    expected, _ = task.loss(narrow.float(), target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


# The networks behind them

MIXED = (Classification("even", 2), Segmentation("parts", CLASSES), DenseRegression("depth", 2), Regression("weight"))


@pytest.mark.long
def test_a_spatial_z_serves_every_kind_of_task() -> None:
    encoder = build_encoder("resnet18", {"stem": "cifar", "pool": None}, (3, 16, 24))
    assert (encoder.width, encoder.stride) == (512, 8)
    model = build_model(encoder, MIXED, "linear", {}).eval()
    outputs = model(torch.zeros(2, 3, 16, 24))
    assert [tuple(output.shape) for output in outputs] == [(2, 2), (2, C, 16, 24), (2, 2, 16, 24), (2, 1)]
    pooled = build_encoder("resnet18", {"stem": "cifar", "pool": 1}, (3, 16, 24)).eval()
    pooled.load_state_dict(encoder.state_dict())
    expected = model.heads[0][2](pooled(torch.ones(2, 3, 16, 24)))
    torch.testing.assert_close(model(torch.ones(2, 3, 16, 24))[0], expected)


def test_a_dense_task_on_a_vector_z_is_refused() -> None:
    encoder = build_encoder("lenet", {}, (1, 16, 16))
    with pytest.raises(ValueError, match="task 'parts' has a target for every pixel and needs a spatial z: an encoder"):
        build_model(encoder, MIXED, "linear", {})


def test_alike_regressions_are_one_stack() -> None:
    encoder = build_encoder("mlp", {"hidden": [8]}, (6,))
    alike = [Regression(f"t{t}", "m", scale=t + 1.0) for t in range(3)]
    model = build_model(encoder, alike, "mlp", {"hidden": 4})
    assert isinstance(model.heads, StackedHeads)
    assert model(torch.zeros(2, 6)).shape == (2, 3, 1)
    mixed = build_model(encoder, [*alike, Classification("x", 2)], "mlp", {})
    assert isinstance(mixed.heads, SeparateHeads)


def test_the_multilayer_perceptron() -> None:
    encoder = build_encoder("mlp", {"hidden": [8, 5], "dropout": 0.5}, (6,)).eval()
    linear = [(layer.in_features, layer.out_features) for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert (encoder.width, linear) == (5, [(6, 8), (8, 5)])
    x_BF = torch.randn(4, 6)
    torch.testing.assert_close(encoder(x_BF)[:1], encoder(x_BF[:1]), msg="each sample for itself")
    assert build_encoder("mlp", {}, (2, 3, 4))(torch.zeros(1, 2, 3, 4)).shape == (1, 256)
    with pytest.raises(ValueError, match="hidden needs one width or more"):
        build_encoder("mlp", {"hidden": []}, (6,))


def test_two_classes_have_the_probabilities_of_a_softmax_wherever_a_sample_is_in_its_batch() -> None:
    logits_BC = torch.randn(103, 2) * 30
    task = Classification("one", 2)
    torch.testing.assert_close(task.predict(logits_BC), logits_BC.softmax(-1))
    assert (task.predict(logits_BC[:1].expand(103, 2)) == task.predict(logits_BC)[0]).all()
