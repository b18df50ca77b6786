"""Which SkyDNS services of one kind lie beneath which name, and which of them the name answers with. Pure.

A name with more than `most` of them answers with those whose keys have the lowest hashes: a sample that is fair, the
same on every machine, and of which one change alters one at most. Keys are kept, not services: a million of them lie
beneath one apex. A list is in the order of the hashes only once it is longer than `most`; no hash is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice

from loader.skydns_views import winning_group


def rank(key: str) -> bytes:
    """The hash that decides who is in a sample."""
    return blake2b(key.encode(errors="surrogatepass"), digest_size=7).digest()


class Beneath:
    """Name -> the keys beneath it."""

    __slots__ = ("_group_of", "_grouped", "_levels", "_most", "keys")

    def __init__(self, most: int, group_of: Callable[[str], str]) -> None:
        """group_of: key -> its group; of every key that is in here, and of none but these."""
        self._most, self._group_of = most, group_of
        self.keys: dict[bytes, str | list[str]] = {}  # one as itself; loader/_books.pyx fills it, too
        self._levels: dict[bytes, Counter[tuple[int, str]]] = {}  # of names with groups beneath them
        self._grouped: set[bytes] = set()  # while they are loaded: those that `sort` makes levels for

    def __contains__(self, name: bytes) -> bool:
        return name in self.keys

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys)

    def crowded(self) -> Iterator[tuple[bytes, int]]:
        """Names with more keys beneath them than they answer with, and how many."""
        for name, held in self.keys.items():
            if not isinstance(held, str) and len(held) > self._most:
                yield name, len(held)

    def sample(self, name: bytes) -> tuple[list[str], int]:
        """The keys that a name answers with, and how many there are to choose from."""
        held = self.keys.get(name, ())
        keys = (held,) if isinstance(held, str) else held
        levels = self._levels.get(name)
        group = winning_group(levels) if levels else ""
        if not group:
            return list(keys[: self._most]), len(keys)
        chosen = (key for key in keys if self._group_of(key) in ("", group))
        return list(islice(chosen, self._most)), 0

    def beyond(self, name: bytes, key: str) -> bool:
        """Whether a key without a group cannot be in the name's sample, whether it comes, goes or is another one."""
        held = self.keys.get(name, "")
        if isinstance(held, str) or len(held) <= self._most or name in self._levels:
            return False
        return rank(key) > rank(held[self._most - 1])

    # ------------------------------------------------------------ many at once

    def load(self, above: Iterable[bytes], key: str, group: str) -> None:
        """add() without keeping order; `sort` must follow before anything is asked."""
        for name in above:
            held = self.keys.get(name)
            if held is None:
                self.keys[name] = key
            elif isinstance(held, str):
                self.keys[name] = [held, key]
            else:
                held.append(key)
            if group:
                self._grouped.add(name)

    def sort(self) -> Iterator[None]:
        """After the last load(), in steps."""
        for held in self.keys.values():
            if not isinstance(held, str) and len(held) > self._most:
                held.sort(key=rank)
                yield
        for name in self._grouped:
            held = self.keys[name]
            self._levels[name] = Counter(map(self._level, (held,) if isinstance(held, str) else held))
        self._grouped.clear()

    # ------------------------------------------------------------ one at a time

    def add(self, name: bytes, key: str, group: str) -> None:
        """A key that is not there yet."""
        held = self.keys.get(name)
        if held is None:
            held = self.keys[name] = key
        elif isinstance(held, str):
            held = self.keys[name] = [held, key]
        else:
            held.append(key)
        if not isinstance(held, str):
            if len(held) == self._most + 1:
                held.sort(key=rank)
            elif len(held) > self._most:
                del held[-1]
                held.insert(bisect_left(held, rank(key), key=rank), key)
        levels = self._levels.get(name)
        if levels is not None:
            levels[self._level(key)] += 1
        elif group:
            self._levels[name] = Counter(map(self._level, (held,) if isinstance(held, str) else held))

    def remove(self, name: bytes, key: str) -> None:
        """A key that is there; group_of still knows it."""
        held = self.keys[name]
        if isinstance(held, str):
            del self.keys[name]
        elif len(held) > self._most:
            at = bisect_left(held, rank(key), key=rank)
            while held[at] != key:
                at += 1
            del held[at]
        else:
            held.remove(key)
        if not isinstance(held, str) and len(held) == 1:
            self.keys[name] = held[0]
        levels = self._levels.get(name)
        if levels is not None:
            levels[self._level(key)] -= 1
            levels += Counter()  # drops what is zero
            if not any(group for _, group in levels):
                del self._levels[name]

    def _level(self, key: str) -> tuple[int, str]:
        return key.count("/"), self._group_of(key)
