"""A latency timeline as text, and as a PNG where matplotlib is installed."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drill.scene import Report, Seen, Step
from drill.timeline import MS, Outcome, Timeline
from shm.errors import StandoffError

#: Lines of the plot, by latency in ms: two a decade.
LEVELS_MS = (1000.0, 316.0, 100.0, 31.6, 10.0, 3.16, 1.0, 0.316, 0.1)
WIDTH = 68
_LABELS = {1000.0: "1 s", 100.0: "100 ms", 10.0: "10 ms", 1.0: "1 ms", 0.1: "0.1 ms"}


class NoMatplotlib(StandoffError):
    """A PNG was asked for and cannot be drawn."""


def text(seen: Seen, steps: Sequence[Step], width: int = WIDTH) -> list[str]:
    """A column is a slice of time: `#` up to the slowest query that was sent in it, x one or more that were lost, ! one
    or more that were refused, ~ the machine itself stood still. Letters are the drill's steps."""
    line = seen.timeline
    span = max(1, line.end_ns - line.start_ns)
    columns = [_Column() for _ in range(width)]
    for asked in line.asked:
        column = columns[min(width - 1, (asked.sent_ns - line.start_ns) * width // span)]
        if asked.outcome is Outcome.LOST:
            column.lost += 1
        else:
            column.slowest_ms = max(column.slowest_ms, asked.took_ns / MS)
            column.refused += asked.outcome is not Outcome.ANSWERED
    rows = [f"  {'lost':>7} |{''.join('x' if c.lost else '!' if c.refused else ' ' for c in columns)}|"]
    for level in LEVELS_MS:
        marks = "".join("#" if c.slowest_ms >= level else "·" if level == 100.0 else " " for c in columns)
        rows.append(f"  {_LABELS.get(level, ''):>7} |{marks}|")
    stalls = "".join("~" if _stalled(line, i, width, span) else "-" for i in range(width))
    rows.append(f"  {'':>7} +{stalls}+")
    letters, legend = _letters(steps, line, width, span)
    rows.append(f"  {'':>7}  {letters}")
    return [f"  {seen.title}: {_summary(line)}", *rows, *legend]


class _Column:
    def __init__(self) -> None:
        self.lost = self.refused = 0
        self.slowest_ms = 0.0


def _stalled(line: Timeline, column: int, width: int, span: int) -> bool:
    """Whether the machine stood still for some of the column's time that could be seen in the plot."""
    start = line.start_ns + column * span // width
    return line.stalls.within(start, start + span // width) > 10 * MS


def _letters(steps: Sequence[Step], line: Timeline, width: int, span: int) -> tuple[str, list[str]]:
    marks, legend = [" "] * width, []
    inside = [step for step in steps if line.start_ns <= step.at_ns <= line.end_ns]
    for letter, step in zip(string.ascii_lowercase, inside, strict=False):
        at = min(width - 1, (step.at_ns - line.start_ns) * width // span)
        while at < width - 1 and marks[at] != " ":
            at += 1
        marks[at] = letter
        legend.append(f"  {letter:>7}  {(step.at_ns - line.start_ns) / 1e9:5.2f} s  {step.text}")
    return "".join(marks), legend


def _summary(line: Timeline) -> str:
    p50, p99, slowest = line.percentile(0.5) * 1e3, line.percentile(0.99) * 1e3, line.slowest()
    return (
        f"{len(line.asked)} asked, {len(line.lost)} lost; p50 {p50:.2f} ms, p99 {p99:.1f} ms, slowest {slowest}"
        if line.of(Outcome.ANSWERED)
        else f"{len(line.asked)} asked, none answered"
    )


def check_matplotlib() -> None:
    """Raises NoMatplotlib: before the drills, not after them."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise NoMatplotlib("--plot needs matplotlib, which is not installed: pip install matplotlib") from None


def png(report: Report, path: Path) -> None:
    """The same as a picture: a dot for each query."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4 * len(report.seen)), layout="constrained")
    axes = figure.subplots(len(report.seen), 1, squeeze=False)
    for (axis,), seen in zip(axes, report.seen, strict=True):
        _draw(axis, seen, report.steps)
    figure.suptitle(f"{report.name}: {'passed' if report.passed else 'failed'}")
    figure.savefig(path, dpi=110)


def _draw(axis: Any, seen: Seen, steps: Sequence[Step]) -> None:
    line = seen.timeline

    def seconds(at_ns: int) -> float:
        return (at_ns - line.start_ns) / 1e9

    for outcome, colour in ((Outcome.ANSWERED, "tab:blue"), (Outcome.SERVFAIL, "tab:orange"), (Outcome.OTHER, "m")):
        if asked := line.of(outcome):
            points = [seconds(a.sent_ns) for a in asked], [a.took_ns / MS for a in asked]
            axis.plot(*points, ".", ms=2, color=colour, label=outcome.name.lower())
    if lost := line.lost:
        axis.plot([seconds(a.sent_ns) for a in lost], [2000.0] * len(lost), "rx", ms=4, label="lost")
    for i, step in enumerate(step for step in steps if line.start_ns <= step.at_ns <= line.end_ns):
        axis.axvline(seconds(step.at_ns), color="grey", lw=0.7)
        axis.text(seconds(step.at_ns), 10 ** (3.1 - 0.4 * (i % 6)), " " + step.text[:80], fontsize=6, va="top")
    axis.axhline(100, color="orange", lw=0.8)
    axis.set(yscale="log", ylim=(0.05, 4000), xlabel="s", ylabel="ms until the answer", title=seen.title)
    axis.set_xlim(0, seconds(line.end_ns))
    axis.legend(loc="lower right", fontsize=7)
