"""Options of a table that change nothing: they are said, and refused where they are surely a mistake."""

from pathlib import Path

import pytest

from tests.support.tiny_data import picture, spec
from trainer.cli import main
from trainer.data.format.decode import encode
from trainer.data.format.manifest import read_manifest

TABLE = (
    "x1,x2,town,n,y1,y2,z,part\n"
    "1,5,Ulm,-1.0,a,0.5,0,train\n"
    "2,6,Bonn,2,unknown,1.5,1,train\n"
    "3,7,Ulm,3,b,2.5,0,train\n"
    "4,8,Bonn,4,a,3.5,1,test\n"
)


def run(folder: Path, *options: str, targets: str = "y*,z", ignore: str = "town") -> int:
    (folder / "t.csv").write_text(TABLE)
    command = ["data", "table", "--csv", f"{folder}/t.csv", "--out", f"{folder}/data", "--targets", targets]
    return main([*command, "--split", "part", *(["--ignore", ignore] if ignore else []), *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--categories", "x*"], "--categories x* has no effect: no texts in 'x1', 'x2'."),
        (["--missing", "*=?"], "--missing *=?: no cell of 'x1', 'x2', 'town', 'n', 'y1' and 3 more is '?'"),
        (["--missing", "n=-9"], "--missing n=-9: no cell of 'n' is '-9'"),
        (["--kinds", "y1=classification,y*=regression"], None),
        (["--kinds", "z*=classification,*=classification"], "--kinds z*=classification has no effect on any target."),
        (["--units", "z*=m"], "--units z*=m has no effect on any regression."),
        (["--val", "0.0001"], "no row is in the split 'val'"),
    ],
)
def test_what_has_no_effect_is_said(
    tmp_path: Path, options: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *options, targets="y1,z" if "*=classification" in str(options) else "y*,z") == 0
    out = capsys.readouterr().out
    assert said in out if said else "no effect" not in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--categories", "twon*"], "has no column 'twon*'"),
        (["--ignore", "qq*"], "has no column 'qq*'."),
        (["--features", "w*"], "has no column 'w*'."),
        (["--missing", "m=?"], "has no column 'm'."),
        (["--missing", "y1=unknwon"], "no cell of 'y1' is 'unknwon'; did you mean 'unknown'?"),
        (["--kinds", "y3=regression"], "--kinds names 'y3', which is not a target"),
        (["--units", "x*=kg"], "--units names 'x*', which is not a target.\nTargets: y1, y2, z."),
        (["--features", "x*,part"], "expected features and the column of --split to be different"),
        (["--features", "x*,town"], "expected features and ignored columns to be different, found in both: ['town']"),
        (["--features", "x*,t*"], "--features 't*' matches only columns of another role: 'town' (ignored"),
        (["--targets", "town"], "expected targets and ignored columns to be different, found in both: ['town']"),
        (["--targets", "t*"], "--targets 't*' matches only columns of another role: 'town' (ignored columns)."),
        (["--split", "*"], "--split '*' should name one column, found x1, x2, town"),
    ],
)
def test_what_is_surely_a_mistake_is_refused(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kinds", "z=regression", "--kinds", "z=classification"], "'z' has two values, 'regression' and 'class"),
        (["--split", "part", "a=train,a=test"], "argument --split: 'a' has two values, 'train' and 'test'"),
    ],
)
def test_a_name_with_two_values_is_refused(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, *options)
    assert said in capsys.readouterr().err


def test_a_missing_number_is_meant_however_it_is_written(tmp_path: Path) -> None:
    assert run(tmp_path, "--missing", "n=-1", "--missing", "y1=unknown") == 0
    manifest = read_manifest(tmp_path / "data")
    assert manifest.input.mean == (2.0, 6.0, 2.5), "the first n, -1.0, is no number of n's"
    assert manifest.tasks[0].classes == ("a", "b")  # type: ignore[union-attr]


def test_targets_of_images_that_have_another_role_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(number, spec("png")), "png"))
    (tmp_path / "t.csv").write_text(
        "file,kind,age,part\n" + "".join(f"{i}.png,{'ab'[i % 2]},{i}.5,{['train', 'test'][i // 3]}\n" for i in range(4))
    )
    command = ["data", "folder", "--images", str(tmp_path), "--csv", f"{tmp_path}/t.csv", "--split", "part"]
    command += ["--out", f"{tmp_path}/data", "--ignore", "age"]
    for target in ("age", "file", "part"):
        assert main([*command, "--targets", f"kind,{target}"]) == 2
        assert f"to be different, found in both: ['{target}']" in capsys.readouterr().err
    assert main([*command, "--missing", "kind=x"]) == 0
    assert "--missing kind=x: no cell of 'kind' is 'x'" in capsys.readouterr().out
