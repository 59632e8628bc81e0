"""An encoder starts from a file of somebody else's: names are matched, and every tensor is accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.runtimes import ALONE
from trainer.config.sections.model import EncoderConfig
from trainer.errors import UserError
from trainer.files import sha256
from trainer.training.network.start_encoder import EncoderStart, start_encoder
from trainer.training.network.weights import open_weights


def an_encoder(wrapped: bool = False) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return nn.ModuleDict({"backbone": plain}) if wrapped else plain


def tensors(prefix: str, **others: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    named = {f"{prefix}{name}": torch.rand_like(value.float()) for name, value in an_encoder().state_dict().items()}
    named[f"{prefix}1.num_batches_tracked"] = torch.tensor(7)
    return named | others


def started(path: Path, encoder: nn.Module, **config: Any) -> EncoderStart:
    return start_encoder(encoder, open_weights(path, ALONE), EncoderConfig(name="mlp", weights=path, **config))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "encoder.", "module.vit."])
def test_names_match_after_a_prefix_there_and_one_here(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    path = tmp_path / "found.safetensors"
    others = {"heads.0.weight": torch.ones(2, 4), "heads.0.bias": torch.ones(2)} if prefix else {}
    there = tensors(prefix, **others)
    save_file({name: value.half() if value.is_floating_point() else value for name, value in there.items()}, path)
    encoder = an_encoder(wrapped)
    found = started(path, encoder)
    assert (found.prefix, found.num_tensors, found.left_out) == (prefix, 7, sorted(others))
    assert found.sha256 == {path.name: sha256(path)}
    for name, value in encoder.state_dict().items():
        assert value.dtype == (torch.int64 if name.endswith("tracked") else torch.float32)
        torch.testing.assert_close(value, there[prefix + name.removeprefix("backbone.")], rtol=1e-3, atol=0)
    assert ("heads (2)" in found.sentence) == bool(others)


def test_what_is_missing_left_over_or_of_another_shape_is_listed_and_can_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    there = tensors("", **{"head.weight": torch.ones(2, 4)})
    del there["0.bias"]
    save_file(there | {"1.weight": torch.ones(5)}, path)
    with pytest.raises(UserError) as caught:
        started(path, an_encoder())
    for said in ("lacks 1: 0.bias", "left over, 1: head.weight", "weights_ignore='[head.*]'", "1.weight (5,)"):
        assert said in str(caught.value)
    save_file(there, path)
    encoder = an_encoder()
    before = encoder[0].bias.clone()
    found = started(path, encoder, weights_ignore=("head.*",), weights_missing=("*.bias",))
    assert (found.left_out, found.at_random) == (["head.weight"], ["0.bias"])
    assert torch.equal(encoder[0].bias, before)
    assert torch.equal(encoder[0].weight, there["0.weight"])


def test_a_folder_of_hugging_face_may_have_several_files(tmp_path: Path) -> None:
    there = tensors("vit.")
    halves = {"a.safetensors": list(there)[:3], "b.safetensors": list(there)[3:]}
    for file, names in halves.items():
        save_file({name: there[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = started(tmp_path, an_encoder())
    assert (found.num_tensors, list(found.sha256)) == (7, list(halves))


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"pickle")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    for name, said in {
        "net.pth": "is a pickle",
        "torn.safetensors": "is not a safetensors file",
        "nowhere": "no such file or folder",
        ".": "it holds net.pth, other.safetensors",
        "other.safetensors": "ends like one of the encoder's",
    }.items():
        with pytest.raises(UserError, match=said):
            started(tmp_path / name, an_encoder())
