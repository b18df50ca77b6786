"""A report as SARIF 2.1.0 (OASIS standard), for code-scanning services and editors."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from lockcheck.model import Finding, Place, Report, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
#: SARIF levels: what leaves a lock held or deadlocks for sure is an error.
LEVELS = {
    Rule.LEAK: "error",
    Rule.DOUBLE_ACQUIRE: "error",
    Rule.ORDER: "error",
    Rule.EXCEPTION_LEAK: "warning",
    Rule.UNMATCHED_RELEASE: "warning",
    Rule.BLOCKING: "note",
}


def as_sarif(report: Report) -> str:
    rules = list(Rule)
    run = {
        "tool": {
            "driver": {
                "name": "standoff-lockcheck",
                "rules": [
                    {
                        "id": str(rule),
                        "shortDescription": {"text": rule.help},
                        "defaultConfiguration": {"level": LEVELS[rule]},
                    }
                    for rule in rules
                ],
            }
        },
        "columnKind": "utf16CodeUnits",
        "results": [_result(finding, rules.index(finding.rule)) for finding in report.findings],
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": "warning", "message": {"text": reason}, "locations": [_location(place)]}
                    for place, reason in report.skipped
                ],
            }
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(finding: Finding, index: int) -> dict[str, Any]:
    return {
        "ruleId": str(finding.rule),
        "ruleIndex": index,
        "level": LEVELS[finding.rule],
        "message": {"text": finding.message},
        "locations": [{**_location(finding.place), "logicalLocations": [{"fullyQualifiedName": finding.function}]}],
        "relatedLocations": [
            {**_location(place), "id": number, "message": {"text": text}}
            for number, (place, text) in enumerate(finding.related, 1)
        ],
        "partialFingerprints": {"lockAndFunction/v1": f"{finding.rule}/{finding.lock}/{finding.function}"},
    }


def _location(place: Place) -> dict[str, Any]:
    path = PurePath(place.path)
    uri = path.as_uri() if path.is_absolute() else path.as_posix().replace(" ", "%20")
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": max(place.line, 1), "startColumn": max(place.column, 1)},
        }
    }
