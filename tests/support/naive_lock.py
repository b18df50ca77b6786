"""The lock of 2015, which the drills have as well."""

from __future__ import annotations

from drill.naive import PERMITS, NaiveLock

__all__ = ["PERMITS", "NaiveLock"]
