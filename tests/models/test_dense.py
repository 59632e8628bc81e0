"""The pyramid head: outputs of the image's size, each sample for itself, even alone; and where it is refused."""

import re

import pytest
import torch

from models import Classification, DenseRegression, Segmentation, Tower, build_encoder, build_model

TASKS = (Segmentation("parts", tuple("abcde")), DenseRegression("depth", 2), Classification("even", 2))
DENSE_VIT = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "global_pool": None}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {"pool": None, "output_stride": 8, "norm": "group"}), ("vit", DENSE_VIT)],
)
def test_a_pyramid_on_a_spatial_z(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model(build_encoder(name, options, (3, 16, 24)), TASKS, "pyramid", {"hidden": 32})
    x_BCHW = torch.randn(2, 3, 16, 24)
    outputs = model(x_BCHW)
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 16, 24), (2, 2, 16, 24), (2, 2)]
    for output, alone in zip(outputs, model(x_BCHW[:1]), strict=True):
        torch.testing.assert_close(output[:1], alone, rtol=1e-4, atol=1e-5)
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad.any() for parameter in model.heads.parameters())


def test_a_pyramid_sees_the_whole_image_from_each_of_its_corners() -> None:
    """Through the average over one cell; the 3 x 3 convolution alone reaches no further than the neighbours."""
    torch.manual_seed(0)
    model = build_model(
        build_encoder("vit", DENSE_VIT | {"depth": 0}, (3, 32, 32)), TASKS[:1], "pyramid", {"hidden": 32}
    )
    x_BCHW = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(x_BCHW)[0][0, :, 0, 0].square().sum().backward()
    assert x_BCHW.grad[0, :, -1, -1].any()


def test_a_pyramid_where_it_cannot_stand_is_refused() -> None:
    vector, spatial = (build_encoder("vit", DENSE_VIT | {"global_pool": pool}, (3, 16, 16)) for pool in ("avg", None))
    with pytest.raises(ValueError, match="task 'parts' has a target for every pixel and needs a spatial z"):
        build_model(vector, TASKS, "pyramid", {})
    with pytest.raises(ValueError, match="tower 'pyramid' needs a spatial z"):
        build_model(vector, TASKS[2:], "linear", {}, Tower("pyramid"))
    with pytest.raises(ValueError, match=r"head 'pyramid' has no option 'hiden'. Did you mean 'hidden'\?"):
        build_model(spatial, TASKS, "pyramid", {"hiden": 32})


@pytest.mark.parametrize(("name", "widths"), [("upsampling", (8, 7)), ("pyramid", (8 + 4 * 32, 7))])
def test_a_dense_head_has_options(name: str, widths: tuple[int, int]) -> None:
    encoder = build_encoder("vit", DENSE_VIT, (3, 16, 24))
    model = build_model(encoder, TASKS, name, {"hidden": 32, "kernel_size": 7})
    assert [tuple(output.shape[2:]) for output in model(torch.zeros(1, 3, 16, 24))[:2]] == [(16, 24), (16, 24)]
    first, last = [layer for layer in model.heads[0] if isinstance(layer, torch.nn.Conv2d)]
    assert (first.in_channels, first.kernel_size[0]) == widths
    assert (first.out_channels, last.in_channels, last.out_channels) == (32, 32, 5)


@pytest.mark.parametrize(
    ("tasks", "name", "options", "message"),
    [
        (TASKS[2:], "pyramid", {}, "tasks with a target for every pixel, and this data has none"),
        (TASKS[:2], "mlp", {"hidden": 9}, "one target a sample, and this data has none that could use its options"),
        (TASKS, "linear", {"kernel_size": 3}, "head 'linear' has no option 'kernel_size'. Its options: none. "
         "'kernel_size' belongs to: upsampling, pyramid"),
        (TASKS, "upsampling", {"kernel_size": 4}, "kernel_size is odd, such as 1 or 3, found 4"),
        (TASKS, "pyramid", {"hidden": 48}, "hidden is a multiple of 32, found 48"),
    ],
)  # fmt: skip
def test_what_no_head_would_use_is_refused(tasks: tuple, name: str, options: dict[str, int], message: str) -> None:
    encoder = build_encoder("vit", DENSE_VIT, (3, 16, 16))
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model(encoder, tasks, name, options)
