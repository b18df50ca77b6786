"""Where zones are cut: names with NS, which delegate what is beneath them, and with DNAME, which hide it."""

from __future__ import annotations

#: What the names above one make of it.
FREE, BELOW_CUT, OCCLUDED = range(3)


class Cuts:
    """`delegations` are names with NS that are no apex; `dnames` have a DNAME. Both may be read."""

    __slots__ = ("delegations", "dnames")

    def __init__(self) -> None:
        self.delegations: set[bytes] = set()
        self.dnames: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self.delegations or self.dnames)

    def __contains__(self, name: bytes) -> bool:
        return name in self.delegations or name in self.dnames

    def set(self, name: bytes, delegates: bool, has_dname: bool) -> bool:
        """What the name is from now on; whether that is news, and for all beneath it, too."""
        if delegates == (name in self.delegations) and has_dname == (name in self.dnames):
            return False
        (self.delegations.add if delegates else self.delegations.discard)(name)
        (self.dnames.add if has_dname else self.dnames.discard)(name)
        return True

    def above(self, name: bytes, apex: bytes) -> int:
        """What the names between `name` and the apex make of it. The topmost counts: beneath a cut no DNAME is
        authoritative, beneath a DNAME there is no cut, and at one name the cut wins (RFC 6672 section 2.4)."""
        if name == apex or not self:
            return FREE
        state = FREE
        while True:
            name = name[name[0] + 1 :]
            if name == apex:
                return OCCLUDED if name in self.dnames else state
            if name in self.delegations:
                state = BELOW_CUT
            elif name in self.dnames:
                state = OCCLUDED
