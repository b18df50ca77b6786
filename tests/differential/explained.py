"""The differences to what NSD and Knot agree on that stay. Each has its reason in docs/protocol.md, under its name.

The test fails on a difference that none of these explains, and on an explanation that explains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.differential.questions import Case
from tests.differential.reading import Reading

#: Names whose replies are large: their data holds many names, or long ones.
LARGE = ("crowd.main.test.", "mxbig.main.test.", "dnlong.main.test.")
CHAOS = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """`applies(case, field, ours, theirs)`: whether this is why the field differs; `theirs` is NSD's reading."""

    name: str
    applies: Callable[[Case, str, Reading, Reading], bool]


def _uncompressed(case: Case, field: str, ours: Reading, theirs: Reading) -> bool:
    """We have sent less, and said so."""
    if field not in ("tc", "authority", "additional"):
        return False
    part = field == "tc" or getattr(ours, field) <= getattr(theirs, field)
    return ours.tc and part and case.name.endswith(LARGE)


def _zone_beneath(case: Case, field: str, ours: Reading, theirs: Reading) -> bool:
    """The same records, with the data that the zone beneath has."""
    glue, own = "c0000240", "c0000241"  # 192.0.2.64 and .65 in the zone files
    swapped = {record.replace(glue, own) for record in theirs.additional}
    return field == "additional" and ours.additional == swapped != theirs.additional


EXPLANATIONS = (
    Explanation("names-in-data-are-not-compressed", _uncompressed),
    Explanation("a-zone-beneath-is-one-table", _zone_beneath),
    Explanation(
        "identity",
        lambda case, field, ours, theirs: (
            (field == "options" and case.what.startswith("NSID"))
            or (field == "answer" and case.class_ == CHAOS and ours.answer != frozenset() != theirs.answer)
        ),
    ),
    Explanation(
        "zone-version",
        lambda case, field, ours, theirs: (
            (field == "options" and case.what == "zone version")
            or (case.what == "zone version with data" and ours.rcode == 1 and not ours.question)
        ),
    ),
    Explanation(
        "keepalive",
        lambda case, field, ours, theirs: field == "options" and case.stream and case.what.startswith("keepalive"),
    ),
    Explanation(
        "format-errors-are-a-header",
        lambda case, field, ours, theirs: field == "question" and ours.rcode == 1 and "behind" in case.what,
    ),
    Explanation(
        "aliases-into-other-zones",
        # NSD follows them, Knot does not: what little they agree on, they agree on by accident.
        lambda case, field, ours, theirs: (
            (field, case.name, case.type)
            in (("rcode", "acrossnx.main.test.", 50), ("authority", "tochild.main.test.", 1))
        ),
    ),
)
