"""Serials that are above the source's revision (after a rollback, a resume, an approved change, a draw of a filter): a
listing does not tell them again. What has been answered must not be undercut after a power cut, nor have other content
(RFC 1982), so a bound that is some thousand changes ahead is kept on disk (loader/held_file.py): a start without the
memory goes on from the bound. It is written once in thousands of changes, and exactly at a clean end. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

#: How far ahead of a serial its bound is when it is made. There are some hundred changes a second at most.
AHEAD = 10_000
#: A bound that is nearer than this is made anew: room for the changes that are published until that is on disk.
NEAR = AHEAD // 2


class Reserve:
    """Of the zones whose serial is above the revision. Numbers are 0..2**32-1."""

    def __init__(self) -> None:
        #: Apex -> what its serial does not exceed before another bound is on disk.
        self.bounds: dict[bytes, int] = {}
        self._last: dict[bytes, int] = {}

    def begin(self, serials: Mapping[bytes, int]) -> None:
        """These are answered, or about to be."""
        self._last = dict(serials)
        self.bounds = {apex: number + AHEAD for apex, number in serials.items()}

    def note(self, apex: bytes, number: int, revision: int) -> bool:
        """A serial is answered, or about to be, at a revision of the source. Whether the bounds have changed."""
        bound = self.bounds.get(apex, 0)
        if max(number, bound) <= revision:
            self._last.pop(apex, None)
            return self.bounds.pop(apex, None) is not None
        self._last[apex] = number
        if number <= max(revision, bound - NEAR):
            return False
        self.bounds[apex] = number + AHEAD
        return True

    def end(self, apex: bytes) -> int:
        """The zone is gone: the last serial that is known here, 0 if none is."""
        self.bounds.pop(apex, None)
        return self._last.pop(apex, 0)

    def settle(self) -> bool:
        """Nothing is published any more: the bounds are the serials. Whether they have changed."""
        before, self.bounds = self.bounds, {apex: self._last.get(apex, bound) for apex, bound in self.bounds.items()}
        return self.bounds != before
