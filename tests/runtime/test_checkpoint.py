"""Which checkpoints stay, what is made of damaged ones, and what an evaluation leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import Classification
from tests.support.runtimes import ALONE
from trainer.data.reading.batch import Batch
from trainer.errors import UserError
from trainer.files import sha256
from trainer.runtime.checkpoints.folder import folder_of_step
from trainer.runtime.checkpoints.manifest import (
    FORMAT,
    OLDEST,
    STATE,
    Manifest,
    generators_file,
    model_file,
    optimizer_file,
)
from trainer.runtime.checkpoints.pieces import Piece, piece_of, write_pieces
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.checkpoints.writing import publish, write_files
from trainer.training.evaluate import evaluate


def save_at(folder: Path, step: int, best: int | None = None) -> list[str]:
    """The checkpoints that stand after one more."""
    saver = Saver(folder, 2, ALONE, "a run", {})
    saver.begin(step, [piece_of("w", torch.zeros(2), 0, 1)], [], {"step": step}, best)
    saver.finish()
    return sorted(path.name for path in folder.glob("step_*"))


def test_the_newest_stay(tmp_path: Path) -> None:
    found = [save_at(tmp_path, step) for step in (1, 2, 3)]
    assert found[-1] == ["step_00000002", "step_00000003"]
    assert (tmp_path / "LATEST").read_text() == "step_00000003"


def test_the_best_one_stays_and_so_does_the_one_before_as_long_as_a_checkpoint_names_it(tmp_path: Path) -> None:
    found = [save_at(tmp_path, step, best) for step, best in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4), (7, 4)]]
    of_steps = [[int(name.removeprefix("step_")) for name in names] for names in found]
    # The run may go on from step 3 after 4 is damaged, and 1 is the best one there.
    assert of_steps == [[1], [1, 2], [1, 2, 3], [1, 3, 4], [4, 5], [4, 5, 6], [4, 6, 7]]


def test_a_run_that_is_set_back_keeps_its_new_branch(tmp_path: Path) -> None:
    save_at(tmp_path, 10)
    save_at(tmp_path, 40)
    found = [save_at(tmp_path, step) for step in (20, 30)]
    assert found[-1] == ["step_00000020", "step_00000030"]


def test_a_save_that_died_does_not_keep_its_step_from_being_removed(tmp_path: Path) -> None:
    """Set back to before step 40, the run died while it saved that step anew, and does not come by it again."""
    save_at(tmp_path, 10)
    save_at(tmp_path, 40)
    (tmp_path / "step_00000040.tmp").mkdir()
    (tmp_path / "step_00000040.tmp" / STATE).write_text("torn")
    found = [save_at(tmp_path, step) for step in (20, 30)]
    assert found[-1] == ["step_00000020", "step_00000030"]


WEIGHTS = torch.arange(12.0).view(4, 3)


@pytest.fixture
def of_two(tmp_path: Path) -> Path:
    """A checkpoint as two ranks write it."""
    aside, sums = tmp_path / "step_00000007.tmp", dict[str, Any]()
    for rank in range(2):
        contents: dict[str, bytes | list[Piece]] = {
            model_file(rank): [piece_of("w", WEIGHTS, rank, 2)],
            optimizer_file(rank): [piece_of("w/momentum_buffer", -WEIGHTS, rank, 2)],
            generators_file(rank): to_bytes({"torch": torch.get_rng_state()}),
        }
        sums |= write_files(aside, contents | ({STATE: to_bytes({"step": 7})} if rank == 0 else {}))
    path = folder_of_step(tmp_path, 7)
    publish(aside, path, Manifest(format=FORMAT, step=7, world_size=2, run="a run", config={}, files=sums), keep=1)
    return path


def test_one_process_has_the_whole_of_what_two_have_saved(of_two: Path) -> None:
    snapshot = load(of_two, ALONE)
    assert torch.equal(snapshot.model["w"], WEIGHTS)
    assert torch.equal(snapshot.optimizer["w"]["momentum_buffer"], -WEIGHTS)
    assert (snapshot.state, snapshot.generators) == ({"step": 7}, None)


def rewritten(path: Path, **fields: Any) -> Path:
    """Change fields of the manifest; None removes one."""
    manifest = json.loads((path / "manifest.json").read_text()) | fields
    (path / "manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if value is not None})
    )
    return path


def test_a_checkpoint_of_the_format_before_is_read_and_any_other_is_left_to_its_version(of_two: Path) -> None:
    assert load(of_two, ALONE).format == FORMAT
    before = load(rewritten(of_two, format=OLDEST, written_by=None), ALONE)
    assert before.format == OLDEST == FORMAT - 1
    assert torch.equal(before.model["w"], WEIGHTS)
    for other in (OLDEST - 1, FORMAT + 1):
        with pytest.raises(
            UserError, match=f"has format {other}, this version of paretrain reads {OLDEST} to {FORMAT}"
        ):
            load(rewritten(of_two, format=other), ALONE)


def forge(*pieces: tuple[int, Tensor]) -> Callable[[Path], None]:
    """Put other pieces into the files, and their checksums into the manifest."""

    def do(path: Path) -> None:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        for rank, (start, values) in enumerate(pieces):
            file = path / model_file(rank)
            write_pieces(file, [Piece("w", WEIGHTS.shape, start, values)])
            manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        (path / "manifest.json").write_text(json.dumps(manifest))

    return do


def truncate(path: Path) -> None:
    file = path / optimizer_file(1)
    file.write_bytes(file.read_bytes()[:-4])


def forget(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][model_file(1)]
    (path / "manifest.json").write_text(json.dumps(manifest))


SIX = torch.zeros(6)
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda path: (path / model_file(1)).unlink(),
        "checkpoint {path} is not complete: model_00001.safetensors is missing",
    ),
    "not in the manifest": (
        forget,
        "checkpoint {path} is not complete: manifest.json: model_00001.safetensors is missing",
    ),
    "truncated": (
        truncate,
        "checkpoint {path} has changed since it was written: optimizer_00001.safetensors has {bytes} bytes, "
        "expected {more}",
    ),
    "gap": (
        forge((0, SIX), (7, SIX[:5])),
        "checkpoint {path} cannot be read: the pieces of w leave a gap: model_00001.safetensors goes on at entry 7, "
        "those before it end at 6",
    ),
    "overlap": (
        forge((0, SIX), (5, SIX)),
        "checkpoint {path} cannot be read: the pieces of w overlap: model_00001.safetensors goes on at entry 5, "
        "those before it end at 6",
    ),
    "too short": (
        forge((0, SIX), (6, SIX[:5])),
        "checkpoint {path} cannot be read: the pieces of w end at entry 11 of 12",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_refused(damage: str, of_two: Path) -> None:
    do, message = DAMAGES[damage]
    do(of_two)
    num_bytes = (of_two / optimizer_file(1)).stat().st_size
    said = message.format(path=of_two, bytes=num_bytes, more=num_bytes + 4)
    with pytest.raises(UserError) as caught:
        load(of_two, ALONE)
    assert str(caught.value) == f"{said}. To start a new run, type name=ANOTHER_NAME"


def test_a_state_that_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 1, ALONE, "a run", {})
    with pytest.raises(UserError) as caught:
        saver.begin(3, [], [], {"step": 3, "weighting": {"name": "mine", "memory": np.zeros(2)}})
    assert str(caught.value) == (
        "step 3 cannot be saved: state.safetensors['weighting']['memory'] is a numpy.ndarray, which cannot be read "
        "back safely. Expected tensors, numbers, strings, and lists and dictionaries of them"
    )
    assert not list(tmp_path.iterdir())


def test_an_evaluation_leaves_every_module_in_its_own_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))
    batch = Batch(torch.zeros(3, 4), {"a": torch.zeros(3, dtype=torch.int64)}, torch.arange(3))
    evaluate(
        _OneHead(model), {"": [batch]}, [Classification("a", 2)], {"a": ["f1"]}, lambda source, inputs: inputs, ALONE
    )
    assert [module.training for module in model] == [True, False, True]


class _OneHead(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.model(x)]
