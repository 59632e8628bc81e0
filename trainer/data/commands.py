"""`paretrain data ...`: one function a subcommand. Each imports what it needs when it runs, so that --help is quick."""

import argparse
from pathlib import Path


def add_data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` and its subcommands to the `paretrain` command."""
    data = commands.add_parser("data", help="make a data folder of WebDataset shards")
    sources = data.add_subparsers(title="sources", required=True, metavar="SOURCE")
    for add in (_add_digits, _add_multimnist):
        add(sources)


def _add_digits(sources: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def run(options: argparse.Namespace) -> None:
        from trainer.data.sources.digits import write_digits

        write_digits(options.out, seed=options.seed)

    parser = sources.add_parser(
        "digits", help="pairs of scikit-learn's bundled handwritten digits, nothing to download"
    )
    _add_out(parser)
    _add_seed(parser, "the pairs")
    parser.set_defaults(run=run)


def _add_multimnist(sources: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def run(options: argparse.Namespace) -> None:
        from trainer.data.sources.multimnist import write_multimnist

        write_multimnist(options.mnist, options.out, seed=options.seed)

    parser = sources.add_parser("multimnist", help="pairs of MNIST digits, as in Sener & Koltun 2018")
    parser.add_argument("--mnist", type=Path, required=True, metavar="DIR", help="folder of the four IDX files")
    _add_out(parser)
    _add_seed(parser, "the pairs")
    parser.set_defaults(run=run)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data folder to make")


def _add_seed(parser: argparse.ArgumentParser, decides: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"decides {decides} (default: 0)")
