import numpy as np
import torch

from tests.data.tiny import picture, spec
from trainer.data.images import to_input


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
