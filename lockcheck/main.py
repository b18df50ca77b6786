"""The command `standoff-lockcheck`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lockcheck import report, sarif
from lockcheck.check import check
from lockcheck.model import Rule

_EPILOG = """\
rules:
{rules}

A comment `# lockcheck: ok REASON` silences the line that it ends. Acquire in one function and release in another is
taken for a hand-over (and not reported) if that other function exists; see docs/lockcheck.md.

exit status: 0 nothing found, 1 something found, 2 wrong usage, or a file that cannot be read or parsed.
"""


def _parser() -> argparse.ArgumentParser:
    rules = "\n".join(f"  {rule:18} {rule.help}" for rule in Rule)
    parser = argparse.ArgumentParser(
        prog="standoff-lockcheck",
        description="List every acquire and release of a lock in Python sources, lock by lock, and what may leave "
        "one held. Knows threading, multiprocessing, asyncio, posix_ipc and Standoff's lock. Runs none of the code.",
        epilog=_EPILOG.format(rules=rules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a Python file, or a folder of them")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0")
    form.add_argument("--brief", action="store_true", help="print findings only, not the list of locks")
    parser.add_argument("--select", metavar="RULE,...", type=_rules, help="report these rules only")
    parser.add_argument("--ignore", metavar="RULE,...", type=_rules, default=(), help="do not report these rules")
    parser.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[], help="leave out files and folders of this name"
    )
    return parser


def _rules(given: str) -> tuple[Rule, ...]:
    try:
        return tuple(Rule(name.strip()) for name in given.split(",") if name.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; the rules are {', '.join(Rule)}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    rules = [r for r in (options.select or Rule) if r not in options.ignore]
    try:
        result = check(options.paths, rules, options.exclude)
    except FileNotFoundError as error:
        print(f"standoff-lockcheck: {error}: no such file or folder", file=sys.stderr)
        return 2
    if options.json:
        print(report.as_json(result))
    elif options.sarif:
        print(sarif.as_sarif(result))
    else:
        print(report.text(result, not options.brief))
    if result.findings:
        return 1
    return 2 if any("too " not in reason and "lockcheck: ok" not in reason for _, reason in result.skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
