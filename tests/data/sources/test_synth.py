import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from trainer.cli import main
from trainer.data.sources.celeba.annotations import ATTRIBUTES, OFFICIAL_SIZES, read_attributes, read_partition
from trainer.data.sources.synthetic import generate as synth
from trainer.data.sources.synthetic.attributes import draw_attributes
from trainer.data.sources.synthetic.canvas import Dice
from trainer.data.sources.synthetic.faces import NUM_ROLLS, draw_face
from trainer.data.sources.synthetic.generate import attributes, draw_jpegs, split_codes, write_synthetic_celeba
from trainer.errors import UserError

PERCENT = """
    11.1 26.7 51.3 20.5 2.2 15.2 24.1 23.5 23.9 14.8 5.1 20.5 14.2 5.8 4.7 6.5 6.3 4.2 38.7 45.5 41.7 48.3 4.2 11.5 83.5
    28.4 4.3 27.7 8.0 6.6 5.7 48.2 20.8 32.0 18.9 4.8 47.2 12.3 7.3 77.4
"""
RATES = dict(zip(ATTRIBUTES, map(float, PERCENT.split()), strict=True))
"""How many of CelebA's images have each attribute."""


@pytest.fixture(scope="module")
def many() -> dict[str, np.ndarray]:
    table_NT = attributes(3, np.arange(60_000))
    return {name: table_NT[:, column] for column, name in enumerate(ATTRIBUTES)}


# Attributes


def test_attributes_are_as_frequent_as_celebas(many: dict[str, np.ndarray]) -> None:
    for name, rate in RATES.items():
        assert 100 * many[name].mean() == pytest.approx(rate, abs=2), name


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        ("Heavy_Makeup", "Male", -0.6),
        ("Wearing_Lipstick", "Male", -0.7),
        ("Wearing_Lipstick", "Heavy_Makeup", 0.7),
        ("No_Beard", "Male", -0.4),
        ("Goatee", "No_Beard", -0.5),
        ("Smiling", "High_Cheekbones", 0.6),
        ("Smiling", "Mouth_Slightly_Open", 0.4),
        ("Young", "Gray_Hair", -0.3),
        ("Chubby", "Double_Chin", 0.4),
        ("Attractive", "Young", 0.25),
        ("Wearing_Necktie", "Male", 0.2),
    ],
)
def test_attributes_lean_on_each_other(many: dict[str, np.ndarray], one: str, other: str, sign: float) -> None:
    correlation = np.corrcoef(many[one], many[other])[0, 1]
    assert correlation * np.sign(sign) > abs(sign)


def test_nobody_has_two_colours_of_hair_or_hair_on_a_bald_head(many: dict[str, np.ndarray]) -> None:
    colours = sum(many[f"{colour}_Hair"].astype(int) for colour in ("Black", "Blond", "Brown", "Gray"))
    assert colours.max() == 1
    bare = many["Bald"] & (many["Bangs"] | many["Wavy_Hair"] | many["Straight_Hair"] | many["Wearing_Hat"])
    assert not bare.any()


# Pictures


def test_a_picture_depends_on_its_seed_and_number_alone() -> None:
    alone, among = list(draw_jpegs(1, np.array([7]))), list(draw_jpegs(1, np.arange(9)))
    assert alone[0] == among[7]
    assert len(set(among)) == 9
    assert next(iter(draw_jpegs(2, np.array([7])))) != alone[0]


def test_pictures_are_files_like_celebas() -> None:
    jpegs = list(draw_jpegs(0, np.arange(60)))
    assert {simplejpeg.decode_jpeg_header(jpeg) for jpeg in jpegs} == {(218, 178, "YCbCr", "420")}
    assert 6_000 < np.mean([len(jpeg) for jpeg in jpegs]) < 8_500


@pytest.mark.long
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_can_be_seen(name: str) -> None:
    plain = dict.fromkeys(ATTRIBUTES, False) | {"No_Beard": True, "Young": True}
    rolls = np.full(NUM_ROLLS, 0.4)  # constant: the attribute alone makes the difference
    before, after = (draw_face(plain | {name: value}, Dice(rolls)).astype(int) for value in (False, True))
    assert (np.abs(after - before).max(axis=2) > 12).sum() > 10


def test_the_dice_suffice_for_the_richest_picture() -> None:
    for value in (False, True):
        for bald in (False, True):
            draw_face(dict.fromkeys(ATTRIBUTES, value) | {"Bald": bald}, Dice(np.zeros(NUM_ROLLS)))


@pytest.mark.long
def test_every_attribute_can_be_learned() -> None:
    """Ridge regression on 24 x 24 pixels ranks unseen faces far better than chance."""
    train, samples = 700, 1000
    pictures = (simplejpeg.decode_jpeg(jpeg, min_height=24, min_width=24) for jpeg in draw_jpegs(0, np.arange(samples)))
    pixels_ND = np.stack([cv2.resize(picture, (24, 24), interpolation=cv2.INTER_AREA).ravel() for picture in pictures])
    signs_NT = attributes(0, np.arange(samples)) * 2.0 - 1
    scaled_ND = (pixels_ND - pixels_ND[:train].mean(0)) / (pixels_ND[:train].std(0) + 1)
    kernel_NN = scaled_ND @ scaled_ND[:train].T / pixels_ND.shape[1]
    weights_NT = np.linalg.solve(kernel_NN[:train] + 0.3 * np.eye(train), signs_NT[:train] - signs_NT[:train].mean(0))
    scores_NT = kernel_NN[train:] @ weights_NT
    ranking = {
        name: area_under_curve(scores_NT[:, column], signs_NT[train:, column] > 0)
        for column, name in enumerate(ATTRIBUTES)
    }
    assert min(ranking.values()) > 0.54, ranking
    assert sum(area > 0.75 for area in ranking.values()) >= 33, ranking
    assert np.mean(list(ranking.values())) > 0.88, ranking


def area_under_curve(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    ranks_N = np.argsort(np.argsort(scores_N)) + 1
    positives = positive_N.sum()
    above = ranks_N[positive_N].sum() - positives * (positives + 1) / 2
    return above / (positives * (len(scores_N) - positives))


def test_rolls_at_their_ends_draw_as_well() -> None:
    for roll in (0.0, 1 - 2**-53):
        assert draw_attributes(np.full((1, 40), roll)).shape == (1, 40)
        draw_face(dict.fromkeys(ATTRIBUTES, True), Dice([roll] * NUM_ROLLS))


# Files


def test_the_full_scale_has_celebas_splits() -> None:
    codes = split_codes(202_599)
    assert [codes.count(code) for code in range(3)] == list(OFFICIAL_SIZES.values())
    assert codes == sorted(codes)


draw_chunk = synth._draw_chunk


def draw_deaf(folder: Path, numbers: range, seed: int) -> int:
    """Ctrl-C reaches the workers too, and is none of their business."""
    signal.raise_signal(signal.SIGINT)
    return draw_chunk(folder, numbers, seed)


@pytest.mark.processes
def test_the_command_writes_what_celeba_is_read_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synth, "_draw_chunk", draw_deaf)
    out = tmp_path / "raw"
    command = ["data", "synth", "--kind", "celeba", "--out", str(out), "--seed", "5", "--samples"]
    assert main([*command, "20"]) == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert sorted(path.name for path in out.iterdir()) == [
        "img_align_celeba",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    ]
    text = out / "list_attr_celeba.txt"
    names, values_NT = read_attributes(text.read_bytes(), text)
    assert np.array_equal(values_NT, attributes(5, np.arange(20)))
    for name, jpeg in zip(names, draw_jpegs(5, np.arange(20)), strict=True):
        assert (out / "img_align_celeba" / name).read_bytes() == jpeg
    text = out / "list_eval_partition.txt"
    assert list(read_partition(text.read_bytes(), text).values()) == [0] * 16 + [1] * 2 + [2] * 2

    assert main([*command, "20"]) == 2
    assert "already contains a data set" in capsys.readouterr().err
    assert main([*command, "9"]) == 2
    assert "Expected at least 10 samples, found 9." in capsys.readouterr().err


def test_an_interrupted_call_does_not_look_whole_and_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "raw"

    def some(folder: Path, samples: int, seed: int) -> None:
        (folder / "000099.jpg").write_bytes(b"half")
        raise KeyboardInterrupt

    def all_of_them(folder: Path, samples: int, seed: int) -> None:
        synth._draw_chunk(folder, range(samples), seed)

    monkeypatch.setattr(synth, "_draw_all", some)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_celeba(out, samples=12)
    assert [path.name for path in out.iterdir()] == [".partial"]
    monkeypatch.setattr(synth, "_draw_all", all_of_them)
    write_synthetic_celeba(out, samples=12)
    assert len(list((out / "img_align_celeba").iterdir())) == 12


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, samples: int, seed: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synth, "_draw_all", full)
    with pytest.raises(UserError, match=r"raw failed: .*No space left on device.\nIt is unfinished. Fix that and run"):
        write_synthetic_celeba(tmp_path / "raw", samples=12)
