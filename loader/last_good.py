"""on_reject = keep: a key whose new value is refused goes on with its last one that was not.

What counts is a refusal by the schema: a value that cannot be understood. Names outside every zone, and keys that
contradict each other, are no matter of one value, and cost the key what they cost. A key that is deleted is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loader import records, skydns
from loader.model import Changes, Delete, Put


def refuser(schema: str, prefix: str) -> Callable[[Put], bool]:
    """Whether the schema refuses a value."""

    def refuses(put: Put) -> bool:
        try:
            if schema == "skydns":
                skydns.decode(prefix, put, lambda lease: 0)
            else:
                records.parse(prefix, put)
        except Exception:  # a Reject, or a bug: either costs the key (loader/feed.py, loader/skydns_tree.py)
            return True
        return False

    return refuses


def rounds(changes: Changes, before: int) -> Iterator[Changes]:
    """The same in several Changes, none of which names a key twice: a value that a refused one overwrites at once is
    the last good one. before: the revision until now; only the last Changes have the new one."""
    left: list[Put | Delete] = changes.events
    while True:
        now: dict[str, Put | Delete] = {}
        later: list[Put | Delete] = []
        for event in left:
            if event.key in now:
                later.append(event)
            else:
                now[event.key] = event
        yield Changes(list(now.values()), before if later else changes.revision)
        if not later:
            return
        left = later
