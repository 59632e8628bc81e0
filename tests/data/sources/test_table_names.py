"""The names of a table's rows, by which predictions are mapped to the user's file."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.copies import PLENTY, copy_of
from tests.support.data_server import serving
from tests.support.loaders import eval_loader
from trainer.cli import main
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.names import load_names
from trainer.data.format.verify import verify_shards
from trainer.data.remote.folder import DataFolder, names_of, open_folder
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.errors import UserError

# An empty line and a cell with a line break, so that lines are no numbers of rows.
TABLE = 'id,x,y,part\nu 1,10,a,train\n\n"v\n2",11,b,test\nw,12,b,train\n07,13,a,train\n'


def write(folder: Path, content: str = TABLE, **options) -> Manifest:
    (folder / "t.csv").write_text(content)
    options = {"targets": ["y"], "split": SplitBy("part"), "features": ["x"]} | options
    return write_table(folder / "t.csv", folder / "data", TableColumns(**options))


def named(folder: Path) -> dict[str, float]:
    """Return name -> x of all samples."""
    manifest, found = read_manifest(folder), {}
    for split in manifest.splits:
        loader = eval_loader(folder, split=split, tasks=["y"], batch_size=manifest.num_samples(split))
        (batch,) = loader
        loader.close()
        names = load_names(folder, manifest, split)
        assert names is not None
        found |= {names[number]: float(x) for number, (x,) in zip(batch.sample_ids_B, batch.inputs, strict=True)}
    return found


def test_rows_are_numbered_from_0_below_the_header_as_pandas_does(tmp_path: Path) -> None:
    write(tmp_path)
    assert named(tmp_path / "data") == {"0": 10, "1": 11, "2": 12, "3": 13}


def test_a_column_names_the_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path, id="id")
    assert named(tmp_path / "data") == {"u 1": 10, "v\n2": 11, "w": 12, "07": 13}
    assert manifest.made_by["id_column"] == "id"
    unnamed = Manifest(
        **{
            **dict(manifest),
            "splits": {split: spec.model_copy(update={"names": None}) for split, spec in manifest.splits.items()},
        }
    )
    assert load_names(tmp_path / "data", unnamed, "train") is None
    assert unnamed.fingerprint("train") == manifest.fingerprint("train"), "runs on folders without names go on"


def test_the_name_of_a_row_is_no_feature_and_no_target(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    command = ["data", "table", "--csv", f"{tmp_path}/t.csv", "--split", "part", "--missing", "*=07", "--id", "id"]
    assert main([*command, "--targets", "y", "--out", f"{tmp_path}/data"]) == 0
    assert read_manifest(tmp_path / "data").input.names == ("x",)
    assert named(tmp_path / "data")["07"] == 13, "--missing leaves names alone"
    assert main([*command, "--targets", "*", "--features", "x", "--out", f"{tmp_path}/all"]) == 0
    assert [task.name for task in read_manifest(tmp_path / "all").tasks] == ["y"]
    with pytest.raises(UserError, match=r"targets and the column of --id to be different, found in both: \['id'\]"):
        write(tmp_path, targets=["y", "id"], id="id")


@pytest.mark.parametrize(
    ("content", "column", "said"),
    [
        (TABLE.replace("07", "w"), "id", "t.csv:7: column 'id', which --id names, has 'w' as in line 6"),
        (TABLE.replace("07", ""), "id", "t.csv:7: column 'id', which --id names, is empty"),
        (TABLE, "ids", "has no column 'ids'; did you mean 'id'?"),
        (TABLE, "*", "--id '*' should name one column, found id, x, y, part"),
    ],
)
def test_names_that_do_not_tell_rows_apart_are_refused(tmp_path: Path, content: str, column: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        write(tmp_path, content, id=column)
    assert said in str(error.value)
    assert not (tmp_path / "data").exists()


def test_names_cost_no_byte_of_a_shard(tmp_path: Path) -> None:
    manifest = write(tmp_path, id="id")
    (tmp_path / "b").mkdir()
    without = write(tmp_path / "b")
    assert [spec.shards for spec in without.splits.values()] == [spec.shards for spec in manifest.splits.values()]
    assert np.sum([spec.names.bytes for spec in manifest.splits.values() if spec.names]) < 80


def test_names_are_fetched_and_verified_where_they_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training does not read them."""
    write(tmp_path)
    with serving(tmp_path / "data") as server:
        copy = open_folder(server.url, tmp_path / "cache", PLENTY)
        manifest = read_manifest(copy)
        assert not list(copy.glob("*.names.json"))
        assert names_of(DataFolder(copy, manifest, copy_of(copy)), "train") == ["0", "2", "3"]
    names = tmp_path / "data" / "train.names.json"
    names.write_text(names.read_text().replace("2", "7"))
    verify_shards(tmp_path / "data", manifest, checksum=True)
    with pytest.raises(UserError, match=r"train\.names\.json"):
        names_of(DataFolder(tmp_path / "data", manifest), "train")
    assert main(["data", "check", str(tmp_path / "data")]) == 2
    assert "train.names.json" in capsys.readouterr().err
