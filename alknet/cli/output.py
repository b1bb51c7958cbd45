"""How results are shown: tables on a terminal, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from alknet.logs import printable

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """One line of JSON."""
    click.echo(json.dumps(value, separators=(",", ":")))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table; plain columns when nobody looks at it on a terminal."""
    lines = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if not lines:
        click.echo(empty)
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headings, box=None, pad_edge=False, header_style="bold")
        for line in lines:
            table.add_row(*map(Text, line))
        Console().print(table)
    else:
        click.echo("\t".join(headings))
        for line in lines:
            click.echo("\t".join(line))
