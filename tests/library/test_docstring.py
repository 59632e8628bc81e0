"""The example that `help(paretrain)` shows runs."""

import textwrap

import pytest

import paretrain


def test_the_example_of_the_package_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = paretrain.__doc__.split("\n\n", 1)[1].split("\n\nThe lines are", 1)[0]
    exec(textwrap.dedent(example), {})
    assert capsys.readouterr().out.count("tensor") == 3
