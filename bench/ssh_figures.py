"""What the SSH benchmarks have in common: how much is done, what is measured, and the table of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "MIB", "QUICK", "Effort", "Metric", "Results", "table"]

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: `rounds` of every measurement, of the sizes given."""

    rounds: int
    transfer_bytes: int
    """Of what a command sends or takes, of the large file, and of what goes through a forward."""
    sequential: int
    parallel: int
    small_files: int
    forwarded: int
    """Connections through a forward, one by one, and as many again several at a time."""


FULL: Final = Effort(rounds=9, transfer_bytes=768 * MIB, sequential=12, parallel=48, small_files=1000, forwarded=400)
QUICK: Final = Effort(rounds=2, transfer_bytes=192 * MIB, sequential=6, parallel=16, small_files=1000, forwarded=100)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table. Where less is better too, the ratio is alknet's figure over the other's."""

    name: str
    unit: str
    less_is_better: bool = False


Results = dict[tuple[str, Metric], list[float]]
"""Every round's figure, by server name and metric."""


def table(results: Results, metrics: Sequence[Metric], names: Sequence[str], *, markdown: bool = False) -> str:
    """The medians, and those of the rounds' ratios of alknet to each of the others: what one round measures is a
    second or two apart, and a machine that is busy then is so for all. As Markdown it fits into `README.md`."""
    others = [name for name in names if name != "alknet"] if "alknet" in names else []
    lines = [["", "", *names, *(f"alknet/{name}" for name in others)]]
    for metric in metrics:
        if not results[names[0], metric]:
            continue  # a part that was left out
        figures = {name: results[name, metric] for name in names}
        unit = metric.unit + (" (less is better)" if metric.less_is_better else "")
        medians = (_shown(statistics.median(figures[name])) for name in names)
        ratios = (_ratio(figures["alknet"], figures[name]) for name in others)
        lines.append([metric.name, unit, *medians, *ratios])
    if markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> str:
    if not all(theirs):
        return ""
    return f"{statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f}"


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"
