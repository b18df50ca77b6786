"""Decides what of the paths seen is a finding, and what is a hand-over by design.

A **hand-over** is an acquire in one function whose release is in another: `__enter__` and `__exit__`, `acquire` and
`release` of a wrapper, a lock used as a signal. A function that takes a lock and returns with it is silent if

1. some other function releases that lock without having taken it (or mentions its `release` as a value), and
2. the function itself never releases it, or every way out by `return` holds it, or just those do whose result is known
   to be true while the others' is known to be false, or the function's name says that it acquires.

Its callers are then judged as if they had acquired the lock themselves. Leaving by exception is never a hand-over.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from lockcheck.flow import Outcome, returns_with
from lockcheck.graph import Node, Step
from lockcheck.locks import Lock, Operation
from lockcheck.model import Finding, Key, Place, Rule
from lockcheck.state import Hold, State, Status

_ACQUIRES = re.compile(r"(^|_)(acquire|lock|enter|begin|take|obtain|reserve|checkout)", re.IGNORECASE)
_SHOWN = 4

Name = tuple[str, str]


def shared_name(key: Key) -> Name:
    """What two functions may call the same lock: class or module, and attribute."""
    return key.owner, key.name


class Handovers:
    """Who releases, and who leaves with, which lock."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        #: Functions that release without having acquired: lock -> functions, by themselves or through a call.
        self.direct: dict[Name, set[str]] = defaultdict(set)
        self.indirect: dict[Name, set[str]] = defaultdict(set)
        #: The same where only the attribute's name is known, and where the lock is another object's.
        self.unresolved: dict[str, set[str]] = defaultdict(set)
        self.of_others: dict[str, set[str]] = defaultdict(set)
        self.left: set[str] = set()
        #: Attribute -> functions that acquire it outside `with`.
        self.acquired: dict[str, set[str]] = defaultdict(set)
        #: Semaphores that a function posts without having waited for them.
        self.signals: set[Key] = set()
        #: Passed on, stored, returned, or released by a nested function.
        self.captured: set[Key] = set()
        for outcome in outcomes:
            self._collect(outcome)

    def _collect(self, outcome: Outcome) -> None:
        name = outcome.function.dotted
        own = {o.lock.key for o in operations(outcome)}
        lent = {lock.key for state in outcome.ends for lock, hold in state.held if hold.status is Status.LENT}
        for (lock, _, _), statuses in outcome.releases.items():
            if lock.kind.counting or (lock.key in lent and Status.HELD not in statuses):
                self._releases(lock.key, name, lock.key in own)
            if lock.kind.counting and None in statuses:
                self.signals.add(lock.key)
        for node in outcome.graph.nodes:
            effect = outcome.effects.of(node)
            if node.step is Step.VALUE:
                for key in effect.escapes:
                    self._releases(key, name, True)
            if effect.operation is None:
                self.captured.update(effect.escapes)
            elif effect.operation.action == "acquire":
                self.acquired[effect.operation.lock.key.name].add(name)
        for state in outcome.ends:
            self.left.update(lock.key.name for lock, hold in state.holding() if not hold.by_with)

    def _releases(self, key: Key, function: str, direct: bool) -> None:
        if key.local and key.owner and key.owner != function:
            self.captured.add(key)  # a nested function releases a variable of the one around it
        (self.direct if direct else self.indirect)[shared_name(key)].add(function)
        if not key.owner:
            self.unresolved[key.name].add(function)
        if key.via:
            self.of_others[key.name].add(function)

    def partner(self, lock: Lock, outcome: Outcome) -> str:
        """Who gives back what this function leaves with; empty if nobody does."""
        key, me = lock.key, outcome.function.dotted
        if key in self.captured:
            return "whoever it was handed to"
        if key.local and key.owner:
            if key.owner != me:
                return "the function around it"
            parameters = outcome.function.node.args if outcome.function.node is not None else None
            names = {a.arg for a in ast.walk(parameters) if isinstance(a, ast.arg)} if parameters is not None else set()
            return "the caller" if key.name in names and not _releases(outcome, key) else ""
        others = set(self.indirect[shared_name(key)])
        if acquires(outcome, key):
            # Whoever took it through a wrapper is not helped by the wrapper's other half alone.
            others |= self.direct[shared_name(key)] | self.unresolved[key.name]
            if not key.owner or key.via:
                others |= self.of_others[key.name]
        others.discard(me)
        return me if not others and key in self.signals else min(others, default="")

    def is_released_around(self, lock: Lock, outcome: Outcome) -> bool:
        """Whether the function around this one releases it."""
        parent = outcome.function.parent
        return parent is not None and parent.dotted in self.direct[shared_name(lock.key)]


def operations(outcome: Outcome) -> Iterator[Operation]:
    for node in outcome.graph.nodes:
        operation = outcome.effects.of(node).operation
        if operation is not None:
            yield operation


def _releases(outcome: Outcome, key: Key) -> bool:
    return any(lock.key == key for lock, _, _ in outcome.releases)


def hands_over(outcome: Outcome, lock: Lock, partner: str) -> tuple[bool, bool]:
    """Whether leaving with the lock is by design, and whether only a true result says that it is held."""
    held, free = returns_with(outcome.ends, lock.key)
    if not held or not partner:
        return False, False
    if not free:
        return True, False
    if all(_result(s) for s in held) and all(_result(s) is False for s in free):
        return True, True
    return bool(_ACQUIRES.search(outcome.function.qualname.rpartition(".")[2])), False


def _result(state: State) -> bool | None:
    """What is returned: true, false, or not known."""
    return state.way.result if state.way is not None and state.way.reason == "return" else None


def leaks(outcome: Outcome, handovers: Handovers) -> list[Finding]:
    ways: dict[tuple[Lock, int, int], list[tuple[bool, str, int]]] = defaultdict(list)

    def note(lock: Lock, hold: Hold, explicit: bool, text: str, line: int) -> None:
        entry = (explicit, text, line)
        if entry not in ways[(lock, hold.line, hold.column)]:
            ways[(lock, hold.line, hold.column)].append(entry)

    for state in outcome.ends:
        for lock, hold in state.holding():
            partner = handovers.partner(lock, outcome)
            if hold.by_with or hands_over(outcome, lock, partner)[0]:
                continue
            if _is_handed_on_quietly(outcome, lock, partner) or _is_signal(outcome, lock, handovers):
                continue
            note(lock, hold, True, *_way_out(state, outcome))
    for state in outcome.fails:
        for lock, hold in state.holding():
            if not hold.by_with and not _gone_elsewhere(lock, outcome, handovers):
                note(lock, hold, *_exception_way(state))
    for (lock, hold), way in outcome.rebound.items():
        if not _gone_elsewhere(lock, outcome, handovers):
            text = f"{way.reason}" if way is not None else "the next turn of the loop"
            note(lock, hold, True, text, way.line if way is not None else hold.line)
    return [_leak(outcome, *key, found) for key, found in ways.items()]


def _is_handed_on_quietly(outcome: Outcome, lock: Lock, partner: str) -> bool:
    """A semaphore that others post, a lock that only others release: that is their business."""
    return bool(partner) and (lock.kind.counting or not _releases(outcome, lock.key))


def _is_signal(outcome: Outcome, lock: Lock, handovers: Handovers) -> bool:
    """Taken twice, where the second time waits for another function to release it."""
    return any(double.key == lock.key for double, _, _ in outcome.doubles) and bool(handovers.partner(lock, outcome))


def _gone_elsewhere(lock: Lock, outcome: Outcome, handovers: Handovers) -> bool:
    """Someone else releases it and this function never does: an exception does not change whose business it is."""
    if _is_signal(outcome, lock, handovers):
        return True
    if _releases(outcome, lock.key) and lock.key not in handovers.signals:
        return False
    if handovers.is_released_around(lock, outcome):
        return True
    if lock.kind.counting or lock.key.local or not acquires(outcome, lock.key):
        return bool(handovers.partner(lock, outcome))
    return False


def _way_out(state: State, outcome: Outcome) -> tuple[str, int]:
    if state.way is None:
        last = outcome.function.body[-1]
        return "the end of the function", last.end_lineno or last.lineno
    return state.way.reason, state.way.line


def _exception_way(state: State) -> tuple[bool, str, int]:
    raised = state.raised
    if raised is None:
        return False, "an exception", 0
    if raised.kind in ("yield", "await"):
        text = "a generator closed at its yield" if raised.kind == "yield" else "an exception or cancellation at await"
        return True, text, raised.line
    if raised.kind == "raise":
        return True, "raise", raised.line
    return False, "an exception from the call", raised.line


def _leak(outcome: Outcome, lock: Lock, line: int, column: int, ways: list[tuple[bool, str, int]]) -> Finding:
    explicit = [w for w in ways if w[0]]
    shown = sorted(explicit or ways, key=lambda w: w[2])
    texts = [f"{text} (line {at})" for _, text, at in shown[:_SHOWN]]
    if len(shown) > _SHOWN:
        texts.append(f"{len(shown) - _SHOWN} more")
    rule = Rule.LEAK if explicit else Rule.EXCEPTION_LEAK
    path = outcome.function.module.path
    related = tuple((Place(path, at), text) for _, text, at in shown)
    message = f"{_short(lock)} stays held by {', '.join(texts)}"
    return Finding(rule, Place(path, line, column), str(lock.key), message, outcome.function.qualname, related)


def _short(lock: Lock) -> str:
    return f"{lock.key.via}.{lock.key.name}" if lock.key.via and not lock.key.name.endswith("[]") else lock.key.name


def doubles(outcome: Outcome, handovers: Handovers) -> list[Finding]:
    path, name = outcome.function.module.path, outcome.function.qualname
    found = []
    for (lock, line, column), hold in outcome.doubles.items():
        if _is_signal(outcome, lock, handovers):
            continue
        first = Place(path, hold.line, hold.column)
        where = "in an earlier turn of the loop" if hold.line == line else f"at line {hold.line}"
        message = (
            f"{_short(lock)} is taken again; it is held already, taken {where}, and {lock.kind.name} is not reentrant"
        )
        found.append(Finding(Rule.DOUBLE_ACQUIRE, Place(path, line, column), str(lock.key), message, name,
                             ((first, "first acquire"),)))  # fmt: skip
    for (lock, line, column), (hold, callee) in outcome.calls_in.items():
        first = Place(path, hold.line, hold.column)
        message = (f"{callee.qualname}() takes {_short(lock)}, which is held here since line {hold.line}; "
                   f"{lock.kind.name} is not reentrant")  # fmt: skip
        found.append(Finding(Rule.DOUBLE_ACQUIRE, Place(path, line, column), str(lock.key), message, name,
                             ((first, "first acquire"),)))  # fmt: skip
    return found


def unmatched(outcome: Outcome, handovers: Handovers) -> list[Finding]:
    path, name = outcome.function.module.path, outcome.function.qualname
    found = []
    for (lock, line, column), statuses in outcome.releases.items():
        reason = _unmatched_reason(lock, statuses, outcome, handovers)
        if reason:
            message = f"{_short(lock)} is released {reason}"
            found.append(Finding(Rule.UNMATCHED_RELEASE, Place(path, line, column), str(lock.key), message, name))
    return found


def _unmatched_reason(lock: Lock, statuses: set[Status | None], outcome: Outcome, handovers: Handovers) -> str:
    if Status.GONE in statuses or Status.OPEN in statuses:
        return ""
    if lock.kind.counting and _tries(outcome, lock.key):
        return ""
    if Status.HELD in statuses and None in statuses:
        return "on a path that has not acquired it, too"
    if lock.kind.counting:
        return ""
    if Status.FREE in statuses:
        return "on a path that has released it already"
    if statuses != {None} or not lock.kind.known or acquires(outcome, lock.key):
        return ""
    key = lock.key
    if key.local:
        is_own = key.owner == outcome.function.dotted and key not in handovers.captured
        given = any(s.annotation for s in outcome.function.variables.get(key.name, []))
        return "but never acquired" if is_own and not given else ""
    others = handovers.acquired[key.name] - {outcome.function.dotted}
    if key.name in handovers.left or others:
        return ""
    return "but nothing under check leaves it held for this function"


def acquires(outcome: Outcome, key: Key) -> bool:
    return any(o.lock.key == key and o.action in ("acquire", "with") for o in operations(outcome))


def _tries(outcome: Outcome, key: Key) -> bool:
    """Whether the function takes a lock only if it is free."""
    return any(o.lock.key == key and o.how == "maybe" for o in operations(outcome))


def blocking(outcome: Outcome) -> list[Finding]:
    """One finding for each call that blocks, whatever number of locks is held."""
    path, name = outcome.function.module.path, outcome.function.qualname
    calls: dict[int, list[tuple[Lock, Hold]]] = defaultdict(list)
    about: dict[int, tuple[Node, str]] = {}
    for (lock, call), (node, what, hold) in outcome.blocked.items():
        calls[call].append((lock, hold))
        about[call] = node, what
    found = []
    for call, locks in calls.items():
        node, what = about[call]
        locks.sort(key=lambda pair: (pair[1].line, pair[1].column))
        held = ", ".join(f"{_short(lock)} (since line {hold.line})" for lock, hold in locks)
        related = tuple((Place(path, hold.line, hold.column), "acquired here") for _, hold in locks)
        keys = ", ".join(str(lock.key) for lock, _ in locks)
        place = Place(path, node.line, node.column)
        found.append(Finding(Rule.BLOCKING, place, keys, f"{what} while holding {held}", name, related))
    return found
