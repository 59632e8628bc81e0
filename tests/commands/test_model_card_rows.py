"""The card's `row` makes of a row of the table what the converter has made of it."""

import csv
from pathlib import Path

import numpy as np

from tests.support.loaders import eval_loader
from trainer.commands.model_card_rows import row_function
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns

TABLE = """\
town,age,zone,part,y
Ulm,3,5,train,0
Bonn,,7,train,1
,1e2,5,train,0
"Köln, Süd=1",4,7,train,1
Ulm,5,5,test,0
Rome,6,,test,1
"""


def test_a_row_of_the_table_becomes_the_numbers_that_were_stored(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    made = write_table(
        tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"], split=SplitBy("part"), categories=["town", "zone"])
    )
    scope = {"inputs": made.input.model_dump(mode="json")}
    exec(row_function(made.made_by), scope)
    rows = list(csv.DictReader(TABLE.splitlines()))
    for split, of_split in (("train", rows[:4]), ("test", rows[4:])):
        (batch,) = (loader := eval_loader(tmp_path / "data", split=split, tasks=["y"], batch_size=len(of_split)))
        loader.close()
        found = np.array([scope["row"](cells) for cells in of_split], np.float32)
        np.testing.assert_array_equal(found, batch.inputs.numpy())


def test_data_of_another_source_have_no_such_row() -> None:
    assert row_function({"source": "digits"}) == ""
