"""The vision transformer: published sizes, transformers' own as the oracle, and the three kinds of z."""

import pytest
import torch

from models import build_encoder
from models.encoders.vit import ViT

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 3.0}


@pytest.mark.parametrize(
    ("options", "published"),
    [({"embed_dim": 192, "num_heads": 3}, 5_717_416), ({}, 22_050_664)],
)
def test_as_many_parameters_as_published(options: dict[str, int], published: int) -> None:
    """ViT-Ti/16 and ViT-S/16 of timm, whose numbers include ImageNet's classifier."""
    with torch.device("meta"):
        encoder = ViT((3, 224, 224), **options)
    assert sum(parameter.numel() for parameter in encoder.parameters()) + 1000 * (encoder.width + 1) == published


def test_it_computes_what_the_vit_of_transformers_does() -> None:
    torch.manual_seed(0)
    ours = build_encoder("vit", TINY, (3, 8, 12)).double().eval()
    config = {
        "model_type": "vit",
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-6,
    }
    theirs = build_encoder("transformers", {"config": config}, (3, 8, 12)).double().eval().backbone
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    copied = dict(ours.state_dict())
    for name, tensor in ours.state_dict().items():
        if ".qkv." in name:
            del copied[name]
            copied |= {name.replace("qkv", part): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
    expected = theirs.state_dict()
    theirs.load_state_dict(
        {name: tensor for name, tensor in expected.items() if name.startswith("pooler")}
        | {(found := _theirs(name)): tensor.view(expected[found].shape) for name, tensor in copied.items()}
    )
    x_BCHW = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        expected_BD = theirs(pixel_values=x_BCHW).last_hidden_state[:, 0]
        torch.testing.assert_close(ours(x_BCHW), expected_BD, rtol=1e-10, atol=1e-10)


def _theirs(name: str) -> str:
    """The name that transformers has for a parameter of ours, whose qkv is cut into three."""
    renamed = {
        "class_token_D": "embeddings.cls_token",
        "positions_ND": "embeddings.position_embeddings",
        "embed.": "embeddings.patch_embeddings.projection.",
        "blocks.": "layers.",
        "attention_norm": "layernorm_before",
        "project.": "attention.o_proj.",
        "mlp.0": "layernorm_after",
        "mlp.1": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        **{f".{part}.": f".attention.{part}_proj." for part in "qkv"},
    }
    for old, new in renamed.items():
        name = name.replace(old, new)
    return f"layer{name}" if name.startswith("norm.") else name


@pytest.mark.parametrize(("global_pool", "tokens"), [("token", 7), ("avg", 6), (None, 6)])
def test_the_three_kinds_of_z(global_pool: str | None, tokens: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit", TINY | {"global_pool": global_pool}, (3, 8, 12))
    assert encoder.positions_ND.shape == (tokens, 16)
    x_BCHW = torch.randn(2, 3, 8, 12)
    z = encoder(x_BCHW)
    assert z.shape == ((2, 16, 2, 3) if global_pool is None else (2, 16))
    assert getattr(encoder, "stride", None) == (4 if global_pool is None else None)
    if global_pool is None:
        average = build_encoder("vit", TINY | {"global_pool": "avg"}, (3, 8, 12))
        average.load_state_dict(encoder.state_dict())
        torch.testing.assert_close(z.mean(dim=(2, 3)), average(x_BCHW))
    z.square().sum().backward()
    assert all(parameter.grad.any() for parameter in encoder.parameters())


def test_a_spatial_z_lies_as_the_image_does() -> None:
    """Without blocks a cell is its patch: nothing is transposed."""
    encoder = build_encoder("vit", TINY | {"depth": 0, "global_pool": None}, (3, 8, 12))
    torch.nn.init.zeros_(encoder.positions_ND)
    x_BCHW = torch.randn(2, 3, 8, 12)
    expected = encoder.norm(encoder.embed(x_BCHW).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(encoder(x_BCHW), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "patches of 5 x 5 do not cover an image of 8 x 12"),
        ({"num_heads": 3}, "num_heads=3 does not divide embed_dim=16"),
        ({"global_pool": "max"}, "global_pool is 'token', 'avg' or null, found 'max'"),
        ({"embed_dims": 16}, "no option 'embed_dims'. Did you mean 'embed_dim'?"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        build_encoder("vit", TINY | options, (3, 8, 12))
