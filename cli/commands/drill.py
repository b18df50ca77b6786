"""`standoff drill`: break a throw-away instance on purpose, and tell what clients saw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.options import Command
from cli.output import Exit

if TYPE_CHECKING:
    from drill.catalogue import Drill
    from drill.scene import Report, Step

EXAMPLES = """\
Examples:
  standoff drill --list
  standoff drill leaked-read-lock
  standoff drill all --json > drills.json
  standoff drill leaked-read-lock --plot /tmp/drills"""


@click.command("drill", cls=Command, epilog=EXAMPLES, short_help="Break a throw-away instance on purpose, and watch.")
@click.argument("names", nargs=-1, metavar="[NAME... | all]")
@click.option("--list", "as_list", is_flag=True, help="Name every drill, and what it does.")
@click.option(
    "--plot", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Draw what clients saw into NAME.png there; needs matplotlib.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], as_list: bool, plot: Path | None, as_json: bool) -> None:
    """Perform failure drills, each on an instance of its own: other shared memory, ports on 127.0.0.1, a temporary
    folder, lower priority. A live instance beside it is not touched, and nothing is left behind, after Ctrl-C neither.

    Each drill prints what it did, what clients saw (a client asks steadily from 16 ports; the plot shows the slowest
    query by the time it was sent) and whether the promises were kept. Time in which the machine itself stood still is
    measured beside and not blamed on the server; a drill that failed while it did so for more than a tenth of the time
    is repeated, twice at most. All drills take less than three minutes.

    Exit status 0 if all passed, 1 if one failed. A drill that cannot be done here, for want of an etcd for instance
    (one on PATH, or $STANDOFF_ETCD), is skipped, and fails only if it was asked for by name.
    """
    if as_list:
        _list(as_json)
        ctx.exit(Exit.DONE)
    ctx.exit(_perform(_chosen(ctx, names), plot, as_json, strict="all" not in names))


def _list(as_json: bool) -> None:
    from drill.catalogue import DRILLS

    if as_json:
        output.json([{"name": drill.name, "summary": drill.summary} for drill in DRILLS])
        return
    for drill in DRILLS:
        output.data(f"{drill.name:<18} {drill.summary}")


def _chosen(ctx: click.Context, names: tuple[str, ...]) -> list[Drill]:
    """In the order asked for. Ends with a usage error for a name that is none."""
    from cli.origins import suggest
    from drill import catalogue

    if not names:
        ctx.fail(f"name a drill, or all: {', '.join(catalogue.NAMES)}")
    if "all" in names:
        return list(catalogue.DRILLS)
    for name in names:
        if name not in catalogue.NAMES:
            ctx.fail(f"there is no drill {name!r}{suggest(name, catalogue.NAMES)}")
    return [catalogue.named(name) for name in dict.fromkeys(names)]


def _perform(drills: list[Drill], plot: Path | None, as_json: bool, *, strict: bool) -> int:
    """`strict`: each was asked for by name."""
    from drill import plot as plots
    from drill.runner import Interrupted, interruptible, perform

    if plot is not None:
        plots.check_matplotlib()
        plot.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    try:
        with interruptible():
            for drill in drills:
                if not as_json:
                    output.data(f"== {drill.name}: {drill.summary}")
                report = perform(drill, _whisper)
                reports.append(report)
                if plot is not None and report.seen:
                    plots.png(report, plot / f"{drill.name}.png")
                if not as_json:
                    _show(report)
    except Interrupted as interrupted:
        output.message("interrupted; everything that was started is gone")
        return 128 + interrupted.number
    skipped = sum(bool(report.skipped) for report in reports)
    passed = sum(report.passed for report in reports)
    failed = len(reports) - skipped - passed
    good = not failed and not (strict and skipped)
    if as_json:
        output.json({"passed": good, "drills": [_as_json(report) for report in reports]})
    else:
        seconds = sum(report.seconds for report in reports)
        output.data(f"{passed} passed, {failed} failed, {skipped} skipped, {seconds:.0f} s")
    return Exit.DONE if good else Exit.FAILED


def _whisper(step: Step) -> None:
    """To somebody who watches: a drill takes some seconds."""
    if sys.stderr.isatty():
        output.message(step.text)


def _show(report: Report) -> None:
    """For people, once it is over: steps are the legend of the plot."""
    from drill import plot

    if report.skipped:
        output.data(f"  skipped: {report.skipped}\n")
        return
    for step in report.steps if not report.seen else ():
        output.data(f"  {(step.at_ns - report.started_ns) / 1e9:8.2f} s  {step.text}")
    for seen in report.seen:
        output.data("\n".join(plot.text(seen, report.steps)) + "\n")
    for check in report.checks:
        output.data(f"  {'pass' if check.passed else 'FAIL'}  {check.promise}: {check.measured}")
    if report.error:
        output.data(f"  FAIL  {report.error}")
    if not report.passed:
        output.data("\n".join(f"  log   {line}" for line in report.log))
    again = f", attempt {report.attempts}: the machine had stood still" if report.attempts > 1 else ""
    output.data(f"{report.name}: {'passed' if report.passed else 'FAILED'} ({report.seconds:.1f} s{again})\n")


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "name": report.name,
        "passed": report.passed,
        "skipped": report.skipped,
        "error": report.error,
        "log": [] if report.passed or report.skipped else report.log,
        "seconds": round(report.seconds, 2),
        "attempts": report.attempts,
        "steps": [{"at": round((step.at_ns - report.started_ns) / 1e9, 3), "text": step.text} for step in report.steps],
        "checks": [{"promise": c.promise, "passed": c.passed, "measured": c.measured} for c in report.checks],
        "clients": [{"title": seen.title, **seen.timeline.summary()} for seen in report.seen],
    }
