"""Encoders of timm, which stands aside here: what is asked of it, and what is made of the answer."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_encoder
from trainer.user_code import is_user_code

ASKED: list[dict[str, Any]] = []


class Features(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 3, 2, 2), nn.Conv2d(3, 5, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x)
        return [fine, self.second(fine)]


def create_model(name: str, **keywords: Any) -> nn.Module:
    ASKED.append(keywords)
    channels = keywords["in_chans"]
    if keywords.get("features_only"):
        return Features(channels)
    if "img_size" in keywords and name == "net":
        raise TypeError("unexpected keyword argument 'img_size'")
    layers = nn.Sequential(nn.Conv2d(channels, 4, 4, 4))
    return layers if keywords.get("global_pool") == "" else layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(list_models=lambda: ["net", "vit"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", found)  # type: ignore[arg-type]


def test_a_model_is_asked_for_without_its_classifier_and_for_these_images() -> None:
    assert not is_user_code("timm/net")
    ASKED.clear()
    assert build_encoder("timm/net", {}, (1, 8, 8)).width == 4
    assert build_encoder("timm/vit", {"drop_rate": 0.1}, (1, 8, 8)).training
    expected = {"in_chans": 1, "num_classes": 0}
    assert ASKED[1:] == [expected, {**expected, "img_size": (8, 8), "drop_rate": 0.1}]


@pytest.mark.parametrize(
    ("options", "width", "stride"), [({"global_pool": ""}, 4, 4), ({"features_only": True}, (3, 5), (2, 4))]
)
def test_maps_have_a_stride(options: dict[str, Any], width: Any, stride: Any) -> None:
    encoder = build_encoder("timm/net", options, (3, 8, 8))
    assert (encoder.width, encoder.stride) == (width, stride)
    z = encoder(torch.zeros(2, 3, 8, 8))
    assert isinstance(z, tuple) == isinstance(width, tuple)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/nett", {}, "no model 'nett'; near it: net"),
        ("timm/net", {"pretrained": True}, "model.encoder.weights"),
    ],
)
def test_what_cannot_be_had_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, options, (1, 8, 8))


def test_without_timm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pip install 'paretrain\[timm\]'"):
        build_encoder("timm/net", {}, (1, 8, 8))
