"""Changes that are not published: which names keep which old node block, and what else has to wait for them. Pure.

While a name keeps its old block, the published table is a mixture of two versions of the model. It must be one that the
server can walk: every name's ancestors are there, `*` and the flag of its parent agree, and what lies beneath a zone
cut, an apex or a DNAME knows. So a change waits, too, if
  1. a name above it is held, and would come, or become or cease to be an apex, a delegation or a DNAME;
  2. it removes a name that has a held one beneath, or makes it one of those or no longer one of those;
  3. it is about a `*` that comes or goes, or about the parent's flag for it, and the other one is held.
`arrange` finds these and adds them to the held change that they wait for.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from loader import names
from loader.apex import is_apex, with_serial
from loader.tree import Tree
from shm.layout import NodeFlag
from shm.node import flags_of

Pair = tuple[bytes | None, bytes | None]

#: What a name is, if it decides how the names beneath it are answered.
_STRUCTURE = int(NodeFlag.APEX | NodeFlag.DELEGATION | NodeFlag.DNAME)


class State(enum.Enum):
    """What has been decided."""

    PENDING = "pending"
    REJECTED = "rejected"
    PINNED = "pinned"


@dataclass(slots=True, eq=False)
class Held:
    """A change that is kept aside.

    number    for people
    state     what has been decided of it
    reasons   why, a line each
    since     when it began, seconds of CLOCK_REALTIME
    revision  of the source, then
    kept      name -> the node block that readers keep, None: readers have no such name
    refused   of a rejected change: name -> digest of the block that was rejected
    lasting   its reasons hold as long as anything differs
    drip      it is one of many small ones: later losses join it
    growth    how many times a burst has joined it
    since_s   when it began or a burst joined it last, CLOCK_MONOTONIC
    judged    how many names it had when it was judged last
    """

    number: int
    state: State
    reasons: list[str]
    since: float
    revision: int
    kept: dict[bytes, bytes | None] = field(default_factory=dict)
    refused: dict[bytes, bytes] = field(default_factory=dict)
    lasting: bool = False
    drip: bool = False
    growth: int = 0
    since_s: float = 0.0
    judged: int = 0


def digest(block: bytes | None) -> bytes:
    """Tells blocks apart, in a file, too; but not serials, which move with every change in the zone."""
    if is_apex(block):
        block = with_serial(block, 0)
    return b"" if block is None else blake2b(block, digest_size=8).digest()


class Holdings:
    """All held changes, and which name is in which."""

    def __init__(self) -> None:
        self.all: list[Held] = []
        self.version = 0  # grows whenever something joins or leaves
        self._covers: dict[bytes, Held] = {}  # held names of rule 1
        self._scrap: set[bytes] = set()
        self._tree = Tree(self._is_kept, self._scrap)  # the held names that readers have

    def holder(self, name: bytes) -> Held | None:
        """The held change that has the name."""
        return next((held for held in self.all if name in held.kept), None)

    def kept(self, name: bytes) -> bytes | None:
        """The block that readers keep of a held name."""
        held = self.holder(name)
        return None if held is None else held.kept[name]

    def join(self, held: Held, name: bytes, old: bytes | None, new: bytes | None) -> None:
        """From now on readers keep `old`, though the model says `new`. The name may be held already, by this one."""
        self.version += 1
        if held.kept.get(name) is not None and old is None:
            held.kept[name] = old
            self._tree.unlink(name)
        held.kept[name] = old
        if old is not None:
            self._tree.link(name)
        self._scrap.clear()
        self.revise(held, name, new)

    def join_all(self, held: Held, burst: Mapping[bytes, Pair]) -> None:
        """join() for a burst of names that nothing holds, of which there may be very many."""
        self.version += 1
        held.kept.update((name, old) for name, (old, _) in burst.items())
        link = self._tree.link
        for name, (old, new) in burst.items():
            if old is not None:
                link(name)
            if old is None or is_structural(old, new):
                self._covers[name] = held
        self._scrap.clear()

    def revise(self, held: Held, name: bytes, new: bytes | None) -> None:
        """The model says something else of a held name."""
        old = held.kept[name]
        if old is None or is_structural(old, new):
            self._covers[name] = held
        else:
            self._covers.pop(name, None)

    def leave(self, held: Held, name: bytes) -> bytes | None:
        """The name is held no longer; the block that readers have."""
        self.version += 1
        old = held.kept.pop(name)
        held.refused.pop(name, None)
        self._covers.pop(name, None)
        if old is not None:
            self._tree.unlink(name)
            self._scrap.clear()
        return old

    def drop(self, held: Held) -> dict[bytes, bytes | None]:
        """The whole change is held no longer; what readers have of its names."""
        self.version += 1
        self.all.remove(held)
        kept, held.kept = held.kept, {}
        if not self.all:
            self._covers.clear()
            self._tree = Tree(self._is_kept, self._scrap)
            return kept
        for name, old in kept.items():
            self._covers.pop(name, None)
            if old is not None:
                self._tree.unlink(name)
        self._scrap.clear()
        return kept

    def _is_kept(self, name: bytes) -> bool:
        return any(held.kept.get(name) is not None for held in self.all)

    # ------------------------------------------------------------ what must wait

    def arrange(self, burst: dict[bytes, Pair]) -> None:
        """Take out of the burst, and hold, what must not be published before what is held."""
        while self.all and burst and self._arrange_once(burst):
            pass

    def _arrange_once(self, burst: dict[bytes, Pair]) -> bool:
        found = False
        for name in sorted(burst, key=len):  # from above: what waits may be waited for
            held = self._waits_for(name, *burst[name])
            if held is not None:
                self.join(held, name, *burst.pop(name))
                found = True
        return found

    def _waits_for(self, name: bytes, old: bytes | None, new: bytes | None) -> Held | None:
        if self._covers:
            for above in names.ancestors(names.parent(name)):
                if above in self._covers:
                    return self._covers[above]
        if name.startswith(names.STAR) and (old is None or new is None):
            held = self.holder(names.parent(name))
            if held is not None:
                return held
        if (_flags(old) ^ _flags(new)) & NodeFlag.WILDCARD_CHILD:
            held = self.holder(names.STAR + name)
            if held is not None:
                return held
        if old is not None and is_structural(old, new) and self._tree.has_beneath(name):
            return self.holder(next(iter(self._kept_beneath(name))))
        return None

    def _kept_beneath(self, name: bytes) -> Iterator[bytes]:
        return (one for one in self._tree.beneath(name, ()) if self._is_kept(one))


def _flags(block: bytes | None) -> int:
    return 0 if block is None else flags_of(block)


def is_structural(old: bytes, new: bytes | None) -> bool:
    """Whether the change matters for the names beneath."""
    return new is None or bool((_flags(old) ^ _flags(new)) & _STRUCTURE)


def count(changes: Iterable[Held]) -> int:
    """Names in them."""
    return sum(len(held.kept) for held in changes)
