import numpy as np
import torch

from tests.support.tiny_data import picture, spec
from trainer.data.reading.augment import Draws
from trainer.data.reading.images import to_input, to_targets


def test_pixels_are_normalised_per_channel() -> None:
    image = spec(height=5, width=6, channels=3).model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)})
    pixels_BHWC = np.stack([picture(0, image), picture(1, image)])
    found = to_input(torch.from_numpy(pixels_BHWC.copy()), image, "cpu")
    expected = (pixels_BHWC / 255 - np.array(image.mean)) / np.array(image.std)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_the_batch_is_left_as_it_was() -> None:
    images_BHWC = torch.full((1, 3, 4, 1), 200, dtype=torch.uint8)
    to_input(images_BHWC, spec(), "cpu")
    assert (images_BHWC == 200).all()


def test_images_are_augmented_before_they_are_normalised() -> None:
    image = spec(height=5, width=6, channels=3)
    pixels_BHWC = np.stack([picture(0, image), picture(1, image)])
    draws = Draws(
        flip_B=torch.tensor([True, False]),
        offset_B2=torch.tensor([[0, 0], [1, 0]]),
        factors_B3=torch.tensor([[0.5, 1, 1], [1, 1, 1]]),
    )
    found = to_input(torch.from_numpy(pixels_BHWC.copy()), image, "cpu", draws).numpy().transpose(0, 2, 3, 1)
    black = -0.5 / 0.25
    np.testing.assert_allclose(found[0], (pixels_BHWC[0, :, ::-1] / 510 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_allclose(found[1, :4], (pixels_BHWC[1, 1:] / 255 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_allclose(found[1, 4], black, atol=1e-5)


def test_targets_of_pixels_move_with_their_images_and_others_stay() -> None:
    targets = {
        "digit": torch.tensor([3, 4]),
        "map": torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3),
        "depth": torch.arange(12.0).reshape(2, 2, 3, 1),
    }
    draws = Draws(flip_B=torch.tensor([True, False]), offset_B2=torch.tensor([[0, 0], [0, 1]]))
    found = to_targets(targets, "cpu", draws)
    assert found["digit"].tolist() == [3, 4]
    assert found["map"].tolist() == [[[2, 1, 0], [5, 4, 3]], [[7, 8, 255], [10, 11, 255]]]
    assert torch.equal(found["depth"][0, :, :, 0], torch.tensor([[2.0, 1, 0], [5, 4, 3]]))
    assert found["depth"][1, :, 2].isnan().all()
    assert not found["depth"][1, :, :2].isnan().any()
