"""What is kept of a test batch, and the picture that the report makes of it."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import report
from tests.support.run_folders import write_run
from tests.support.seen import CLASSES, seen
from trainer.errors import UserError
from trainer.observe.predictions import Maps, Predictions, keep_predictions, read_predictions
from trainer.observe.report.predictions import coloured, draw, legend


def test_the_first_samples_are_kept_as_they_are(tmp_path: Path) -> None:
    batch = seen()
    keep_predictions(tmp_path / "p.npz", 3, seen())
    keep_predictions(tmp_path / "p.npz", 7, batch)
    kept = read_predictions(tmp_path / "p.npz")
    assert (kept.step, [maps.task for maps in kept.maps]) == (7, ["parts", "way", "near"])
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    assert np.array_equal(kept.images_SHWC, batch.inputs[:4])
    parts, way, near = kept.maps
    assert (parts.classes, way.classes) == (CLASSES, ())
    assert np.array_equal(parts.labels, batch.targets["parts"][:4])
    assert np.array_equal(parts.answers, batch.outputs[0].argmax(1)[:4])
    assert np.array_equal(parts.known_SHW, parts.labels != 255)
    assert np.array_equal(way.answers, batch.outputs[2].permute(0, 2, 3, 1)[:4])
    assert not way.known_SHW[:, :, 0].any()
    assert way.known_SHW[:, :, 1:].all()
    assert not near.known_SHW[0].any()


def test_large_images_are_thinned(tmp_path: Path) -> None:
    batch = seen(scale=33)
    keep_predictions(tmp_path / "p.npz", 7, batch)
    kept = read_predictions(tmp_path / "p.npz")
    assert kept.images_SHWC.shape == (4, 88, 176, 3)
    assert np.array_equal(kept.maps[0].labels, batch.targets["parts"][:4, ::3, ::3])


@pytest.mark.long
@pytest.mark.drawings
def test_the_report_shows_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "scenes", ["parts", "even", "way", "near"])
    keep_predictions(run / "predictions.npz", 40, seen(channels=1))
    page = report(tmp_path / "report.html", run)
    for text in ("Predictions", "step 40", "parts", "way", "near", "road <&>", "car", "sky"):
        assert text in page.text
    pictures = [link for link in page.links if link.startswith("data:image/png")]
    assert len(pictures) == 2 * 2 + 1, "two maps of cosines with their colour bars, and this one"


def test_equal_answers_are_of_equal_colour_and_nothing_stands_where_no_label_is() -> None:
    labels_SHW = np.array([[[0, 1, 2, 255]]], np.uint8)
    ways_SHW2 = np.array([[[[3.0, 0.0], [0.0, -2.0], [0.0, 0.0], [np.nan, 1.0]]]])
    known_SHW = labels_SHW != 255
    images_SHWC = np.zeros((1, 1, 4, 3), np.uint8)
    for classes, labels in ((CLASSES, labels_SHW), ((), ways_SHW2), ((), ways_SHW2[..., :1])):
        right = Maps("x", classes, labels, np.nan_to_num(labels), known_SHW)
        tiles = coloured(right)
        assert np.array_equal(tiles[0], tiles[1])
        assert tiles[0][0, 0, :, 3].tolist() == [255, 255, 255, 0]
        assert len(np.unique(tiles[0][0, 0, :3], axis=0)) >= 2
        assert "<svg" in draw(Predictions(1, images_SHWC, (right,)))
    wrong = Maps("x", CLASSES, labels_SHW, labels_SHW * 0, known_SHW)
    assert (coloured(wrong)[0] != coloured(wrong)[1]).any(axis=-1)[0, 0].tolist() == [False, True, True, False]
    assert [name for name, _ in legend(wrong)] == list(CLASSES)
    blank = Maps("x", (), ways_SHW2 * np.nan, ways_SHW2, known_SHW & False)
    assert not coloured(blank)[1].any()


@pytest.mark.parametrize("content", [b"", b"PK torn", None])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    run = write_run(tmp_path / "scenes", ["parts"])
    kept = run / "predictions.npz"
    keep_predictions(kept, 40, seen())
    kept.write_bytes(kept.read_bytes()[:-500] if content is None else content)
    with pytest.raises(UserError, match=rf"{kept} is damaged: [\s\S]*rm {kept}"):
        report(tmp_path / "report.html", run)
