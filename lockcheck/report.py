"""A report as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter

from lockcheck.model import Finding, LockUse, Place, Report


def text(report: Report, with_locks: bool = True) -> str:
    lines: list[str] = []
    if with_locks:
        for use in report.locks:
            lines += _lock_lines(use)
        if report.locks and report.findings:
            lines.append("")
    for finding in report.findings:
        lines += _finding_lines(finding)
    lines += [f"{place}: skipped: {reason}" for place, reason in report.skipped]
    lines.append(_summary(report))
    return "\n".join(lines)


def _lock_lines(use: LockUse) -> list[str]:
    lines = [f"{use.key}  [{use.kind.name}]"]
    for site in use.sites:
        note = f"  ({', '.join(filter(None, (site.mode, site.note)))})" if site.mode or site.note else ""
        lines.append(f"    {site.action:8} {site.place}  {site.function}{note}")
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    place = finding.place
    return [f"{place.path}:{place.line}:{place.column}: {finding.rule}: {finding.message} [in {finding.function}]"]


def _summary(report: Report) -> str:
    counts = Counter(str(f.rule) for f in report.findings)
    sites = sum(len(use.sites) for use in report.locks)
    parts = ", ".join(f"{n} {rule}" for rule, n in sorted(counts.items())) or "no findings"
    silenced = f", {report.suppressed} silenced" if report.suppressed else ""
    return f"{report.files} files, {len(report.locks)} locks, {sites} acquires and releases: {parts}{silenced}"


def as_json(report: Report) -> str:
    def place(p: Place) -> dict[str, object]:
        return {"path": p.path, "line": p.line, "column": p.column}

    document = {
        "version": 1,
        "files": report.files,
        "suppressed": report.suppressed,
        "locks": [
            {
                "lock": str(use.key),
                "kind": use.kind.name,
                "family": use.kind.family,
                "sites": [
                    {**place(s.place), "action": s.action, "mode": s.mode, "function": s.function, "note": s.note}
                    for s in use.sites
                ],
            }
            for use in report.locks
        ],
        "findings": [
            {
                **place(f.place),
                "rule": str(f.rule),
                "lock": f.lock,
                "function": f.function,
                "message": f.message,
                "related": [{**place(p), "message": m} for p, m in f.related],
            }
            for f in report.findings
        ],
        "skipped": [{**place(p), "reason": reason} for p, reason in report.skipped],
    }
    return json.dumps(document, indent=2)
