import numpy as np
import pytest
import torch

from tests.support.tiny_data import spec
from trainer.config.sections.data import AugmentConfig
from trainer.data.format.specs import DenseRegressionSpec, FeaturesSpec, SegmentationSpec
from trainer.data.reading.augment import Draws, check_augment, draw, move, recolour
from trainer.errors import UserError

EVERYTHING = AugmentConfig(flip=True, crop_padding=2, brightness=0.2, contrast=0.3, saturation=0.4)


def drawn(positions: np.ndarray, config: AugmentConfig = EVERYTHING, seed: int = 1, epoch: int = 0) -> Draws:
    return draw(config, seed=seed, epoch=epoch, positions_B=positions)


def parts(draws: Draws) -> list[torch.Tensor]:
    assert draws.flip_B is not None
    assert draws.offset_B2 is not None
    assert draws.factors_B3 is not None
    return [draws.flip_B, draws.offset_B2, draws.factors_B3]


def test_what_a_position_gets_does_not_depend_on_its_batch() -> None:
    whole, some = parts(drawn(np.arange(100))), parts(drawn(np.array([7, 93])))
    assert all(torch.equal(a[[7, 93]], b) for a, b in zip(whole, some, strict=True))


def test_seeds_and_epochs_draw_anew() -> None:
    first = parts(drawn(np.arange(50)))
    for other in (drawn(np.arange(50), epoch=1), drawn(np.arange(50), seed=2), drawn(np.arange(50, 100))):
        assert not any(torch.equal(a, b) for a, b in zip(first, parts(other), strict=True))


def test_draws_cover_their_ranges_evenly_and_independently() -> None:
    flip_B, offset_B2, factors_B3 = parts(drawn(np.arange(20_000)))
    # Five standard deviations of 20,000 draws each.
    assert abs(flip_B.double().mean() - 0.5) < 0.018
    for column in offset_B2.T:
        assert torch.allclose(torch.bincount(column + 2) / 20_000, torch.tensor(0.2), atol=0.015)
    for factor_B, strength in zip(factors_B3.T, (0.2, 0.3, 0.4), strict=True):
        assert 1 - strength <= factor_B.min() < 1 - 0.99 * strength
        assert 1 + 0.99 * strength < factor_B.max() <= 1 + strength
        assert abs(factor_B.mean() - 1) < 5 * strength / 3**0.5 / 20_000**0.5
    columns = torch.cat([flip_B[None].double(), offset_B2.T.double(), factors_B3.T.double()])
    assert (torch.corrcoef(columns) - torch.eye(6)).abs().max() < 0.036


def test_what_is_off_draws_nothing() -> None:
    assert drawn(np.arange(3), AugmentConfig()) == Draws()
    only = drawn(np.arange(3), AugmentConfig(contrast=0.5))
    assert only.flip_B is None
    assert only.offset_B2 is None
    assert only.factors_B3 is not None
    assert (only.factors_B3[:, [0, 2]] == 1).all()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("crop", [True, False])
def test_images_and_maps_move_as_numpy_moves_them(shape: tuple[int, ...], flip: bool, crop: bool) -> None:
    values = np.random.default_rng(0).integers(0, 200, (40, *shape), np.uint8)
    draws = drawn(np.arange(40), AugmentConfig(flip=flip, crop_padding=2 if crop else 0))
    found = move(torch.from_numpy(values), draws, fill=255).numpy()
    for index, image in enumerate(values):
        padded = np.pad(image, [(2, 2), (2, 2)] + [(0, 0)] * (len(shape) - 2), constant_values=255)
        row, column = (draws.offset_B2[index] + 2).tolist() if draws.offset_B2 is not None else (2, 2)
        expected = padded[row : row + 5, column : column + 6]
        mirrored = draws.flip_B is not None and draws.flip_B[index]
        assert np.array_equal(found[index], expected[:, ::-1] if mirrored else expected)


def test_dense_numbers_get_no_label_at_the_edge() -> None:
    values = torch.ones(1, 4, 4, 2)
    moved = move(values, Draws(offset_B2=torch.tensor([[1, -1]])), fill=float("nan"))
    assert moved.isnan().all(-1).tolist() == [[[True, False, False, False]] * 3 + [[True] * 4]]


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_defined(channels: int) -> None:
    pixels = torch.rand(4, channels, 5, 6, dtype=torch.float64)
    factors_B3 = torch.tensor([[0.5, 1, 1], [1, 0.5, 1], [1, 1, 0.5], [1.5, 1.5, 1.5]], dtype=torch.float64)
    found = recolour(pixels.float(), Draws(factors_B3=factors_B3.float())).double()
    grey = lambda x: x if channels == 1 else (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)  # noqa: E731
    assert torch.allclose(found[0], pixels[0] * 0.5, atol=1e-6)
    assert torch.allclose(found[1], 0.5 * pixels[1] + 0.5 * grey(pixels[1]).mean(), atol=1e-6)
    assert torch.allclose(found[2], 0.5 * pixels[2] + 0.5 * grey(pixels[2]), atol=1e-6)
    assert found[3].min() >= 0
    assert found[3].max() <= 1
    assert not torch.allclose(found[3], pixels[3])


def test_what_cannot_be_augmented_is_refused() -> None:
    image, grey = spec("png", channels=3), spec("png")
    table = FeaturesSpec(names=("a",), mean=(0.0,), std=(1.0,))
    depth = DenseRegressionSpec(name="depth", channels=1)
    check_augment(EVERYTHING, image, [SegmentationSpec(name="map", classes=("a", "b"))])
    check_augment(AugmentConfig(crop_padding=2), image, [depth])
    check_augment(AugmentConfig(), table, [])
    with pytest.raises(UserError, match=r"data.augment.flip, data.augment.contrast: this data has no images"):
        check_augment(AugmentConfig(flip=True, contrast=0.1), table, [])
    with pytest.raises(UserError, match=r"data.augment.saturation=0.4 has no effect on grey images"):
        check_augment(EVERYTHING, grey, [])
    with pytest.raises(UserError, match=r"whether the values of depth depend on left and right"):
        check_augment(EVERYTHING, image, [depth])
    for padding in (3, 4, 10**6):  # the images have 3 rows
        with pytest.raises(UserError, match=r"data.augment.crop_padding=.* nothing but padding"):
            check_augment(AugmentConfig(crop_padding=padding), image, [])
