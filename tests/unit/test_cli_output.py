"""What comes from elsewhere, a key in etcd say, does not steer the terminal that it is shown in."""

from __future__ import annotations

import click
import pytest

from cli import output


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.data("/names/\x1b[2J\x00\x9b8m\x7f\tü\r")
    output.message("\x1b]0;title\x07")
    said = capsys.readouterr()
    assert said.out == "/names/\\x1b[2J\\x00\\x9b8m\\x7f\tü\\x0d\n"
    assert said.err == "standoff: \\x1b]0;title\\x07\n"


def test_a_key_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.line("/names/a\n/names/b  7  all is well")
    assert capsys.readouterr().out == "/names/a\\n/names/b  7  all is well\n"


def test_colours_are_ours_and_nothing_can_be_hidden() -> None:
    for colour in ("red", "green", "bright_blue"):
        text = click.style("text", fg=colour, bold=True)
        assert output.harmless(text) == text
    assert output.harmless("\x1b[8mhidden") == "\\x1b[8mhidden"
