"""What which key gives to which name, looked up both ways. What it comes to is zone.py's and compiler.py's matter.

A million keys are kept: most give one gift to one name, and each is kept as itself, without a container around it, or
as a Plain, which is smaller; several Plains in a list of their own. Whoever asks is given the gifts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

from loader._short import Plain
from loader.compiler import Gift

#: Gifts to one name that are kept in a list; more go into a dictionary by key. Lists are smaller, and most names have
#: one or two gifts; but a SkyDNS service aggregates thousands.
_FEW = 8

Held = Plain | Gift | list[Plain] | list[Gift] | dict[str, Gift]


class Gifts:
    """The books of both ways. `by_name` and `by_key` may be read; only the methods here write them."""

    __slots__ = ("by_key", "by_name")

    def __init__(self) -> None:
        # The names that a key gives to, one as itself. That of a Plain goes without saying, if it is given the same.
        self.by_key: dict[str, bytes | tuple[bytes, ...]] = {}
        self.by_name: dict[bytes, Held] = {}  # one gift as itself, or a Plain; see _FEW

    def names_of(self, key: str) -> tuple[bytes, ...]:
        """The names that a key gives to."""
        owners = self.by_key.get(key, ())
        if not isinstance(owners, bytes):
            return owners
        plain = next((one for one in _plains(self.by_name.get(owners)) if one.key == key), None)
        if plain is not None and (own := plain.name) != owners and self.by_name.get(own) is plain:
            return own, owners
        return (owners,)

    def set_names(self, key: str, owners: Collection[bytes]) -> None:
        """From now on these are the names that a key gives to."""
        if owners:
            several = tuple(owners)
            self.by_key[key] = several if len(several) > 1 else several[0]
        else:
            self.by_key.pop(key, None)

    def keys(self) -> Iterator[str]:
        """The keys that give something. Nothing may be changed meanwhile."""
        return iter(self.by_key)

    def to(self, name: bytes) -> Collection[Gift]:
        """The gifts to a name, in no order."""
        held = self.by_name.get(name, ())
        if isinstance(held, dict):
            return held.values()
        if plains := _plains(held):
            return [one.gift(len(plains)) for one in plains]
        return (held,) if held and isinstance(held, tuple) else cast(Collection[Gift], held)

    def find(self, name: bytes, key: str) -> Gift | None:
        """What a key gives to a name."""
        held = self.by_name.get(name)
        if isinstance(held, dict):
            return held.get(key)
        return next((gift for gift in self.to(name) if gift[0] == key), None)

    def add_first(self, name: bytes, gift: Gift) -> None:
        """Of a new key to a new name, and to no other."""
        self.by_name[name] = gift
        self.by_key[gift[0]] = name

    def put(self, name: bytes, gift: Gift) -> None:
        """In place of what its key gives to the name, if anything; the key may give to others, too."""
        self.replace(name, self.find(name, gift[0]), gift)
        self.add_name(gift[0], name)

    def add_name(self, key: str, name: bytes) -> None:
        """The key gives to the name, too."""
        owners = self.names_of(key)
        if name not in owners:
            self.set_names(key, (*owners, name))

    def replace(self, name: bytes, old: Gift | None, new: Gift | None) -> None:
        """The name gets `new` in place of `old`, which is one of its gifts; of the same key. None: nothing."""
        held = self.by_name.get(name)
        for plain in _plains(held):  # what went without saying is to be said from now on
            self.set_names(plain.key, self.names_of(plain.key))
        if isinstance(held, dict):
            if old is not None:
                del held[old[0]]
            if new is not None:
                held[new[0]] = new
            if len(held) <= _FEW // 2:
                self.by_name[name] = list(held.values())
            return
        gifts = [gift for gift in self.to(name) if old is None or gift[0] != old[0]]
        if new is not None:
            gifts.append(new)
        if len(gifts) > _FEW:
            self.by_name[name] = {gift[0]: gift for gift in gifts}
        elif gifts:
            self.by_name[name] = gifts if len(gifts) > 1 else gifts[0]
        else:
            self.by_name.pop(name, None)


def _plains(held: Held | None) -> list[Plain]:
    """Those that are kept instead of gifts."""
    if isinstance(held, Plain):
        return [held]
    return [one for one in held if isinstance(one, Plain)] if isinstance(held, list) else []
