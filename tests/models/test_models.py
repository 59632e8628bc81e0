"""Encoder, heads and tasks, without any process or file."""

import pytest
import torch
from torch import nn

from models import Classification, build_encoder, build_model
from models.tasks import MISSING


def test_the_papers_lenet() -> None:
    """Conv 1-10-20, 320-50 = z, one head 50-50-10 a task: the authors' MultiMNIST network."""
    encoder = build_encoder("lenet", {}, (1, 28, 28))
    tasks = [Classification(name, 10) for name in ("left", "right")]
    model = build_model(encoder, tasks, "mlp", {})
    shapes = [tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert shapes == [(10, 1, 5, 5), (20, 10, 5, 5), (50, 320)]
    # Both tasks' heads, as one stack.
    shapes = [tuple(parameter.shape) for parameter in model.heads.parameters()]
    assert shapes == [(2, 50, 50), (2, 50), (2, 10, 50), (2, 10)]
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 2, 10)


def test_separate_heads_get_their_own_views_and_the_encoder_runs_once() -> None:
    encoder = build_encoder("lenet", {"dropout": 0.0}, (3, 32, 32))
    tasks = [Classification(f"t{task}", 2 + task) for task in range(3)]
    model = build_model(encoder, tasks, "linear", {})
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    seen = []

    class Views:
        def split(self, z_BD: torch.Tensor) -> list[torch.Tensor]:
            seen.append(z_BD)
            return [z_BD, 2 * z_BD, 0 * z_BD]

    x_BCHW = torch.randn(4, 3, 32, 32)
    outputs = model(x_BCHW, Views())
    assert calls == ["encoder"]
    assert seen[0].shape == (4, encoder.width)
    torch.testing.assert_close(outputs[1], model.heads[1](2 * seen[0]))
    assert torch.equal(model.eval()(x_BCHW)[0], model.heads[0](model.encoder(x_BCHW)))


def test_inputs_of_several_shapes_go_through_the_encoder_one_by_one_and_the_heads_at_once() -> None:
    encoder = build_encoder("resnet18", {"stem": "cifar", "norm": "group"}, (1, 8, 8))
    model = build_model(encoder, [Classification("a", 2), Classification("b", 3)], "linear", {})
    small, large = torch.randn(2, 1, 8, 8), torch.randn(3, 1, 8, 16)
    calls: list[int] = []
    encoder.register_forward_hook(lambda module, inputs, z: calls.append(len(z)))
    outputs = model((small, large))
    assert calls == [2, 3]
    for found, first, second in zip(outputs, model(small), model(large), strict=True):
        torch.testing.assert_close(found, torch.cat([first, second]))


def test_sums_and_counts_of_a_classification_leave_missing_labels_out() -> None:
    task = Classification("digit", 3)
    logits_BC = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    target_B = torch.tensor([0, 1, 0, MISSING])
    loss, count = task.loss(logits_BC, target_B)
    assert count == 3
    expected = nn.functional.cross_entropy(logits_BC[:3], target_B[:3], reduction="sum")
    torch.testing.assert_close(loss, expected)
    error, count = task.measure(logits_BC, target_B)
    assert float(task.scale * error / count) == pytest.approx(100 / 3)


def test_no_label_at_all_is_a_zero_that_still_has_a_gradient() -> None:
    logits_BC = torch.randn(2, 3, requires_grad=True)
    loss, count = Classification("digit", 3).loss(logits_BC, torch.full((2,), MISSING))
    loss.backward()
    assert (float(loss.detach()), int(count)) == (0, 0)
    assert torch.equal(logits_BC.grad, torch.zeros(2, 3))


class NoWidth(nn.Module):
    """An encoder that forgot to say how wide z is."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()


def test_an_encoder_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="has no attribute `width`"):
        build_encoder(NoWidth, {}, (1, 8, 8))


@pytest.mark.processes
def test_models_know_nothing_of_processes_and_of_the_trainer() -> None:
    import subprocess
    import sys

    program = (
        "import sys, models; print([m for m in sys.modules if m.split('.')[0] in ('trainer', 'launch', 'accelerate')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
