"""`paretrain data ...`: one function per subcommand, which imports what it needs when it runs."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.commands.arguments import Subparsers, whole
from trainer.commands.data_columns import add_columns, add_file, columns, fraction, names

if TYPE_CHECKING:
    from trainer.data.format.manifest import Manifest

MAX_PAIRS = 20
"""Pairs of each MNIST image at most: 1.2 million pictures, which are composed in memory."""


def add_data_commands(commands: Subparsers) -> None:
    """Add `data` and its subcommands to the `paretrain` command."""
    data = commands.add_parser("data", help="convert data to a folder of WebDataset shards, or check one")
    sources = data.add_subparsers(title="sources", required=True, metavar="SOURCE")
    for add in (
        _add_digits,
        _add_multimnist,
        _add_celeba,
        _add_synth,
        _add_cityscapes,
        _add_mtan,
        _add_folder,
        _add_table,
        _add_from,
        _add_index,
        _add_check,
    ):
        add(sources)


def _timed(run: "Callable[[argparse.Namespace], Manifest]") -> Callable[[argparse.Namespace], None]:
    """Return a function that runs a converter and prints how many samples it wrote in which time."""

    def run_timed(options: argparse.Namespace) -> None:
        from trainer.terminal import Terminal

        started = time.perf_counter()
        manifest = run(options)
        samples = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in manifest.splits)
        seconds = time.perf_counter() - started
        Terminal(soft_wrap=True).print(f"{manifest.name}: {samples} samples in {seconds:.1f} s")

    return run_timed


def _add_digits(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.digits import write_digits

        return write_digits(options.out, seed=options.seed)

    parser = sources.add_parser(
        "digits", help="pairs of the handwritten digits that scikit-learn includes; no download"
    )
    _add_out(parser)
    _add_seed(parser, "the pairs")
    parser.set_defaults(run=_timed(run))


def _add_multimnist(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.multimnist import write_multimnist

        return write_multimnist(
            options.mnist, options.out, seed=options.seed, val=options.val, pairs_per_image=options.pairs
        )

    parser = sources.add_parser("multimnist", help="pairs of MNIST digits, as in Sener & Koltun 2018")
    parser.add_argument("--mnist", type=Path, required=True, metavar="DIR", help="folder with the four IDX files")
    _add_out(parser)
    _add_seed(parser, "the pairs and the split val")
    parser.add_argument(
        "--val",
        type=fraction,
        default=0.0,
        metavar="FRACTION",
        help="make a split val of this fraction of the train images, such as 0.1, to choose settings by",
    )
    parser.add_argument(
        "--pairs",
        type=whole(1, MAX_PAIRS),
        default=1,
        metavar="K",
        help="train pairs of each image, with other right digits (default: 1, as in the paper)",
    )
    parser.set_defaults(run=_timed(run))


def _add_celeba(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.celeba.convert import write_celeba

        return write_celeba(
            options.root, options.out, size=options.size, store=options.store, skip_missing=options.skip_missing
        )

    parser = sources.add_parser("celeba", help="CelebA: 202,599 faces with 40 attributes, each a task")
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="CelebA as downloaded: a folder, or one zip file"
    )
    _add_out(parser)
    parser.add_argument(
        "--size", type=_side, default=64, metavar="N", help="height and width of the images in pixels (default: 64)"
    )
    store = parser.add_mutually_exclusive_group()
    store.add_argument(
        "--resized",
        dest="store",
        action="store_const",
        const="resized",
        default="resized",
        help="store the resized images: fastest to train on (default)",
    )
    store.add_argument(
        "--jpeg",
        dest="store",
        action="store_const",
        const="jpeg",
        default="resized",
        help="store the original files and resize them while training: takes less disk",
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="skip images that are missing, damaged or unlabelled, and print their number",
    )
    parser.set_defaults(run=_timed(run))


def _add_synth(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> None:
        from trainer.data.sources.synthetic.generate import write_synthetic_celeba

        write_synthetic_celeba(options.out, samples=options.samples, seed=options.seed)

    parser = sources.add_parser("synth", help="generate synthetic data in the raw format of a licensed data set")
    parser.add_argument("--kind", choices=["celeba"], required=True, help="the data set to imitate")
    parser.add_argument(
        "--samples", type=whole(1, 10_000_000), required=True, metavar="N", help="number of samples; CelebA has 202599"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to create, for `paretrain data celeba --root`"
    )
    _add_seed(parser, "every picture")
    parser.set_defaults(run=run)


def _add_table(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.table import write_table
        from trainer.data.sources.tables.options import TableColumns

        inputs = {"features": options.features, "categories": options.categories, "id": options.id}
        return write_table(options.csv, options.out, TableColumns(**inputs, **columns(options)))

    parser = sources.add_parser("table", help="rows of a table: predict some columns from the others")
    add_file(parser, "table with the names of its columns")
    add_columns(parser, targets="columns to predict", required=True)
    parser.add_argument(
        "--features",
        type=names,
        action="extend",
        metavar="A,B*",
        help="columns to predict from (default: all that are neither targets nor ignored)",
    )
    parser.add_argument(
        "--categories",
        type=names,
        action="extend",
        default=[],
        metavar="A,B*",
        help="columns whose values become a feature each",
    )
    parser.add_argument(
        "--id",
        metavar="COLUMN",
        help="column that names each row in the table of paretrain predict (default: the row's number, from 0)",
    )
    _add_out(parser)
    parser.set_defaults(run=_timed(run))


def _add_folder(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.image_folder import write_image_folder
        from trainer.data.sources.tables.options import Columns

        return write_image_folder(
            options.images, options.csv, options.out, Columns(**columns(options)), size=options.size
        )

    parser = sources.add_parser("folder", help="a folder of images with a table of labels")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of JPEG or PNG files")
    add_file(parser, "table whose first column names the image files")
    add_columns(parser, targets="columns to predict (default: all but the first)", required=False)
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="resize the images to this size when they are decoded"
    )
    _add_out(parser)
    parser.set_defaults(run=_timed(run))


def _add_cityscapes(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.cityscapes import write_cityscapes

        return write_cityscapes(options.root, options.out, size=options.size)

    parser = sources.add_parser("cityscapes", help="Cityscapes: 19 classes, instance centres and disparity per pixel")
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder with leftImg8bit, gtFine and disparity"
    )
    parser.add_argument(
        "--size", type=_size, default=(256, 512), metavar="HxW", help="size of images and targets (default: 256x512)"
    )
    _add_out(parser)
    parser.set_defaults(run=_timed(run))


def _add_mtan(sources: Subparsers) -> None:
    for name, what in (
        ("nyuv2", "13 classes, depth and surface normals of rooms"),
        ("cityscapes2", "7 classes and depth of street scenes"),
    ):

        def run(options: argparse.Namespace, name: str = name) -> "Manifest":
            from trainer.data.sources.mtan import write_mtan

            return write_mtan(name, options.root, options.out)

        parser = sources.add_parser(name, help=f"{what} per pixel, as preprocessed for MTAN")
        parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with train and val")
        _add_out(parser)
        parser.set_defaults(run=_timed(run))


def _add_from(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.custom import write_custom

        return write_custom(options.function, options.overrides, options.out)

    parser = sources.add_parser("from", help="samples from a Python function of your own")
    parser.add_argument("function", metavar="FILE.py:FUNCTION", help="or MODULE.FUNCTION; returns a Source")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="its keyword arguments")
    _add_out(parser)
    parser.set_defaults(run=_timed(run))


def _add_index(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> "Manifest":
        from trainer.data.sources.webdataset.index import index_folder

        return index_folder(options.folder, options.tasks, options.out)

    parser = sources.add_parser("index", help="use existing WebDataset shards in place")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the shards")
    parser.add_argument(
        "--tasks", type=Path, metavar="FILE", help="YAML file that describes the members (default: ask)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the manifest here, with links to the shards (default: DIR)"
    )
    parser.set_defaults(run=_timed(run))


def _add_check(sources: Subparsers) -> None:
    def run(options: argparse.Namespace) -> int:
        from trainer.data.inspect.check import check_folder

        return check_folder(options.folder)

    parser = sources.add_parser("check", help="verify every byte of a data folder, count labels, and draw some samples")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data folder")
    parser.set_defaults(run=run)


def _size(text: str) -> tuple[int, int]:
    height, found, width = text.partition("x")
    if not found:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 224x224, found {text[:40]!r}")
    return _side(height), _side(width)


def _side(text: str) -> int:
    from trainer.data.format.specs import MAX_SIDE

    return whole(1, MAX_SIDE)(text)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="data folder to create")


def _add_seed(parser: argparse.ArgumentParser, decides: str) -> None:
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help=f"decides {decides} (default: 0)")
