"""A miniature CelebA in its raw files, and the same in every layout in which it is handed out."""

import shutil
import zipfile
from pathlib import Path

import numpy as np

from trainer.data.sources.celeba.annotations import write_attributes, write_partition
from trainer.data.sources.synthetic.generate import attributes, draw_jpegs, file_name, split_codes

SAMPLES = 12
NAMES = [file_name(number) for number in range(SAMPLES)]


def write_raw(root: Path) -> Path:
    """Flat: the two text files beside img_align_celeba/."""
    numbers_N = np.arange(SAMPLES)
    (root / "img_align_celeba").mkdir(parents=True)
    for name, jpeg in zip(NAMES, draw_jpegs(0, numbers_N), strict=True):
        (root / "img_align_celeba" / name).write_bytes(jpeg)
    write_attributes(root / "list_attr_celeba.txt", NAMES, attributes(0, numbers_N))
    write_partition(root / "list_eval_partition.txt", NAMES, split_codes(SAMPLES))
    return root


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def pack(folder: Path, archive: Path, prefix: str) -> None:
    """Zips a folder away."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__MACOSX/img_align_celeba/._000001.jpg", b"rubbish")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, f"{prefix}{path.relative_to(folder)}")
    shutil.rmtree(folder)


def as_csv(path: Path) -> None:
    """Rewrites a text file as Kaggle has it."""
    lines = [line.split() for line in path.read_text().splitlines()]
    if path.stem == "list_attr_celeba":
        lines = [["image_id", *lines[1]], *lines[2:]]
    else:
        lines = [["image_id", "partition"], *lines]
    path.with_suffix(".csv").write_text("".join(",".join(fields) + "\r\n" for fields in lines))
    path.unlink()


def arrange(root: Path, layout: str) -> Path:
    """Turns the flat layout into another; returns what to point --root at."""
    images, texts = root / "img_align_celeba", [root / "list_attr_celeba.txt", root / "list_eval_partition.txt"]
    if layout.startswith("official"):
        move(texts[0], root / "Anno" / texts[0].name)
        move(texts[1], root / "Eval" / texts[1].name)
        if layout == "official, packed":
            pack(images, root / "Img" / "img_align_celeba.zip", "img_align_celeba/")
        else:
            move(images, root / "Img" / "img_align_celeba")
    elif layout == "torchvision":
        for path in (images, *texts):
            move(path, root / "celeba" / path.name)
    elif layout == "torchvision, packed":
        for path in texts:
            move(path, root / "celeba" / path.name)
        pack(images, root / "celeba" / "img_align_celeba.zip", "img_align_celeba/")
    elif layout.startswith("kaggle"):
        for path in texts:
            as_csv(path)
        move(images, root / "inner" / "img_align_celeba")
        move(root / "inner", root / "img_align_celeba")
        if layout == "kaggle, packed":
            pack(root, root.with_suffix(".zip"), "")
            return root.with_suffix(".zip")
    return root
