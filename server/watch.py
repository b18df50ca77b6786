"""The supervisor's eye on the lock: who is inside for too long, and where it is (R6). Runs in the supervisor."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from server.culprit import StackFile, process_state
from server.supervision import LEAK_AFTER_S, Look, Role
from shm.board import Board, SlotView, WordView
from shm.lockdebug import acquired_at

log = logging.getLogger(__name__)

#: A child that can write its stack has written it by then; the condemned are killed much later.
STACK_PATIENCE_S = 0.05


@dataclass(slots=True)
class _Inquiry:
    """A report that waits for its stack."""

    pid: int
    role: Role
    slot: SlotView
    section: int
    due: float
    site: str  # of its acquire, if lock debugging is on


class LockWatch:
    """Looks at the slots of children, and tells of leaks."""

    def __init__(self, board: Board, words: WordView) -> None:
        self._board = board
        self._words = words
        self._stacks: dict[int, StackFile] = {}  # by pid
        self._inquiries: list[_Inquiry] = []
        self._questioned: set[int] = set()
        self._writer_since = 0  # the hold of the write lock that was reported last

    def adopt(self, pid: int, stack: StackFile) -> None:
        """A child was forked."""
        self._stacks[pid] = stack

    def forget(self, pid: int) -> None:
        """A child is gone."""
        self._questioned.discard(pid)
        stack = self._stacks.pop(pid, None)
        if stack is not None:
            stack.close()

    def slots(self, pids: Iterable[int]) -> list[tuple[int, SlotView]]:
        """The slots that these processes hold."""
        taken = [slot for slot in map(self._board.slot, self._board.slots) if slot.get("kind")]
        # A dead process's page keeps its pid, which may be another's by now: the page that is alive comes last.
        taken.sort(key=lambda slot: slot.get("heartbeat_ns"))
        slots = {slot.get("pid"): slot for slot in taken}
        return [(pid, slots[pid]) for pid in pids if pid in slots]

    def looks(self, pids: Iterable[int]) -> list[tuple[int, Look]]:
        """A look at each."""
        return [(pid, Look(slot.get("heartbeat_ns"), slot.get("section"))) for pid, slot in self.slots(pids)]

    def report(self, pid: int, role: Role, now: float) -> None:
        """Begin to tell of a reader that stays inside: ask it for its stack first."""
        self._words.add("leaks_reported")
        for _, slot in self.slots([pid]):
            self._stacks[pid].ask(pid)
            section = slot.get("section")
            self._inquiries.append(_Inquiry(pid, role, slot, section, now + STACK_PATIENCE_S, acquired_at(pid)))

    def question(self, pid: int) -> None:
        """Ask a silent child for its stack."""
        self._stacks[pid].ask(pid)
        self._questioned.add(pid)

    def whereabouts(self, pid: int) -> str:
        """What a child that was questioned does, and where: for the end of a line. Empty for any other."""
        if pid not in self._questioned:
            return ""
        self._questioned.discard(pid)
        return f"; it is {process_state(pid)}; now at {self._place(pid)}"

    def _place(self, pid: int) -> str:
        stack = self._stacks[pid].take() if pid in self._stacks else []
        return " < ".join(stack) or "an unknown place: it does not answer signals"

    def tell(self, now: float) -> None:
        """Log the reports that are due, and a writer that does not let go."""
        due = [inquiry for inquiry in self._inquiries if inquiry.due <= now]
        self._inquiries = [inquiry for inquiry in self._inquiries if inquiry.due > now]
        for inquiry in due:
            self._tell_reader(inquiry)
        self._tell_writer()

    def _tell_reader(self, inquiry: _Inquiry) -> None:
        pid, slot = inquiry.pid, inquiry.slot
        inside = (time.monotonic_ns() - slot.get("since_ns")) / 1e9
        log.error(
            "read lock leaked: %s (pid %d, slot %d) has been inside for %.2f s%s; it is %s; now at %s%s",
            inquiry.role,
            pid,
            slot.number,
            inside,
            "" if slot.get("section") == inquiry.section else ", and has just left",
            process_state(pid),
            self._place(pid),
            f"; acquired at {inquiry.site}" if inquiry.site else "",
        )

    def _tell_writer(self) -> None:
        since = self._board.loader.get("write_hold_since_ns")
        held = (time.monotonic_ns() - since) / 1e9
        if since and since != self._writer_since and held > LEAK_AFTER_S:
            self._writer_since = since
            self._words.add("leaks_reported")
            pid = self._board.loader.get("loader_pid")
            log.error(
                "write lock held by the loader (pid %d) for %.2f s; it is %s. Readers go past it, answers go on",
                pid,
                held,
                process_state(pid),
            )
