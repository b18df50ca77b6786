"""`# lockcheck: ok REASON` silences what is found on the line that it ends. Without a reason it silences nothing."""

from __future__ import annotations

import re

from lockcheck.model import Finding, Place

_COMMENT = re.compile(r"#\s*lockcheck:\s*ok\b[\s:,-]*(?P<reason>.*)$")


def reason(line: str) -> str | None:
    """The reason that a line gives for being silenced; empty if it lacks one, None if it does not ask."""
    found = _COMMENT.search(line)
    return found["reason"].strip() if found else None


def is_silenced(finding: Finding, lines: list[str]) -> bool:
    number = finding.place.line
    return 0 < number <= len(lines) and bool(reason(lines[number - 1]))


def without_reason(path: str, lines: list[str]) -> list[tuple[Place, str]]:
    """Comments that silence nothing because they do not say why."""
    if not any("lockcheck:" in line for line in lines):
        return []
    return [
        (Place(path, number), "`lockcheck: ok` without a reason silences nothing")
        for number, line in enumerate(lines, 1)
        if reason(line) == ""
    ]
