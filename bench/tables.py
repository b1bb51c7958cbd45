"""Figures of several rounds as tables, and goals as ratios with what came of each."""

import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Figures", "goal", "median", "ratios", "report", "shown", "table"]

Figures = dict[tuple[str, str], list[float]]
"""By (who was measured, what): one for each round."""


def ratios(
    figures: Figures, name: str, other: str, what: str, *, best: Callable[[Sequence[float]], float] = max
) -> tuple[float, float]:
    """The median of the rounds' ratios, and the ratio of the best rounds: other programs' work only slows down, but not
    everybody equally."""
    mine, theirs = figures[name, what], figures[other, what]
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), best(mine) / best(theirs)


def goal(what: str, reached: Sequence[float], *, at_least: float = 0.0, at_most: float = float("inf")) -> str:
    """A line that says what was wanted and whether every figure reached it."""
    wanted = f"at least {at_least:g}" if at_least else f"at most {at_most:g}"
    verdict = "pass" if all(at_least <= figure <= at_most for figure in reached) else "MISS"
    return f"{verdict}  {what}: {', best rounds '.join(map(shown, reached))} ({wanted})"


def shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def median(figures: Sequence[float]) -> str:
    return shown(statistics.median(figures)) if figures else ""


def table(title: str, rows: dict[str, str], columns: dict[str, Callable[[str], str]]) -> str:
    lines = [[title, *columns]] + [[text, *(show(name) for show in columns.values())] for name, text in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def report(measures: Iterable[Callable[[Path, Any], str]], effort: Any, libraries: Iterable[str]) -> None:
    """Print what was measured and with what, each part as it comes, in a directory of its own."""
    began = time.monotonic()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    print(f"{versions}; {os.cpu_count()} processors; {effort}")
    for measure in measures:
        with tempfile.TemporaryDirectory(prefix="alknet-bench-") as directory:
            print(f"\n{measure(Path(directory), effort)}", flush=True)
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"\ntook {time.monotonic() - began:.0f} s; load at the end {load}")
