"""Which names lie beneath which, from the root down: for empty non-terminals, and for walks beneath a name.

Only links are kept: a dictionary from a name to its children. One child is kept as itself, several as a set, because
most parents in reverse and service zones have one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from loader.names import ROOT, STAR


class Tree:
    """Links of the names that exist: occupied ones, and those with something occupied beneath them."""

    def __init__(self, occupied: Callable[[bytes], bool], changed: set[bytes]) -> None:
        """`occupied` tells of a name whether it exists by itself. `changed` collects the names that come or go, and
        the parents of a `*` that does."""
        self._children: dict[bytes, bytes | set[bytes]] = {}
        self._occupied = occupied
        self._changed = changed

    def link(self, name: bytes) -> None:
        """`name` is occupied from now on: it and its ancestors exist."""
        children = self._children
        while name != ROOT:
            up = name[name[0] + 1 :]
            siblings = children.get(up)
            if siblings is None:
                children[up] = name
            elif isinstance(siblings, bytes):
                if siblings == name:
                    return
                children[up] = {siblings, name}
            elif name in siblings:
                return
            else:
                siblings.add(name)
            self._changed.add(name)
            if name.startswith(STAR):
                self._changed.add(up)
            if siblings is not None or self._occupied(up):
                return
            name = up

    def unlink(self, name: bytes) -> None:
        """`name` may be occupied no longer: it goes, and so do the ancestors that existed for it alone."""
        children = self._children
        while name != ROOT and name not in children and not self._occupied(name):
            up = name[name[0] + 1 :]
            siblings = children.get(up)
            if isinstance(siblings, set):
                if name not in siblings:
                    return
                siblings.remove(name)
                if len(siblings) == 1:
                    children[up] = siblings.pop()
            elif siblings == name:
                del children[up]
            else:
                return
            self._changed.add(name)
            if name.startswith(STAR):
                self._changed.add(up)
            name = up

    def has_beneath(self, name: bytes) -> bool:
        """True if a name beneath this one exists."""
        return name in self._children

    def has_child(self, name: bytes, child: bytes) -> bool:
        """True if `child`, whose parent is `name`, exists."""
        siblings = self._children.get(name)
        return child in siblings if isinstance(siblings, set) else child == siblings

    def parents(self) -> Iterator[bytes]:
        """Every name with another beneath it. The tree must not change meanwhile."""
        return iter(self._children)

    def beneath(self, name: bytes, stop: Container[bytes]) -> Iterator[bytes]:
        """The names beneath `name`; those in `stop` and what is beneath them are left out."""
        waiting = [name]
        while waiting:
            siblings = self._children.get(waiting.pop())
            if siblings is None:
                continue
            for child in (siblings,) if isinstance(siblings, bytes) else tuple(siblings):
                if child not in stop:
                    yield child
                    waiting.append(child)
