"""Named errors of the shared-memory layer. `str(error)` is one line for an operator and says what to do."""

from __future__ import annotations


class StandoffError(Exception):
    """Base of every error that Standoff raises on purpose."""


class SegmentError(StandoffError):
    """A shared-memory segment cannot be created or used."""


class LayoutMismatch(SegmentError):
    """A segment was made by a build with another format."""


class NotRunning(StandoffError):
    """No such instance: nothing has created its control segment."""


class NoFreeSlot(StandoffError):
    """Every reader slot of the instance is taken."""


class TableDamaged(StandoffError):
    """A table or node breaks a condition of shm/layout.py."""


class TableFull(StandoffError):
    """A put does not fit; the table must be rebuilt into a larger segment."""


class LockError(StandoffError):
    """Misuse of the lock, or a lock that could not be had."""


class LockTimeout(LockError):
    """The lock was not free within the time given."""


class WouldBlock(LockTimeout):
    """A try-variant found the lock taken."""


class NotHeld(LockError):
    """Released without having been acquired."""


class NestedRead(LockError):
    """Acquired for reading a second time by the same reader: the first section was never left."""


class UpgradeError(LockError):
    """Acquired for writing by a reader that is inside, or the other way round: it would wait for itself."""


class ClosedLock(LockError):
    """Used after `close`."""


class ForkedLock(LockError):
    """Used in a child that was forked after the lock was opened: the slot is the parent's. Open it again there."""
