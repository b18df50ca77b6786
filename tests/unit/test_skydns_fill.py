"""loader/skydns_fill.py and loader/_books.pyx: the tree moves on while its first list is still being taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader import bulk, compiler
from loader.feed import ByName, Update
from loader.model import Changes, Delete, Put, Record
from loader.skydns import Semantics
from loader.skydns_feed import change_update
from tests.support.skydns import World

H1, H2, T = '{"host":"192.0.2.1","targetstrip":1}', '{"host":"192.0.2.2"}', '{"text":"t"}'
VALUES = st.sampled_from([H1, H2, T, '{"host":"192.0.2.3","port":80}', '{"host":"192.0.2.4","group":"g"}', "{"])
PATHS = st.sampled_from(
    [f"test/example/{one}" for one in ("a", "a/x", "a/y", "a/x/z", "a/x/z/w", "b", "b/x/y", "*/x", "dns/ns/a")]
)
Steps = list[tuple[int, str, str | None]]
LISTS = st.dictionaries(PATHS, VALUES, max_size=6)
STEPS = st.lists(st.tuples(st.integers(0, 12), PATHS, st.one_of(st.none(), VALUES)), max_size=5)


class Slow(World):
    """A world whose first list is taken one name at a time, and which hears of a change before a step: (number of the
    step, key, value or None). What does not fit in comes after the list."""

    def __init__(self, keys: dict[str, str], semantics: Semantics, steps: Steps) -> None:
        self._steps = sorted(steps, key=lambda step: step[0])
        super().__init__(keys, semantics)

    def _fill(self, by_name: ByName, update: Update) -> None:
        heard: list[Update] = []
        for number, _ in enumerate(bulk.fill(self.zones, by_name, 1)):
            heard += self._hear(number)
        self._keys = {*self.zones.keys(), *update.problems}
        for key in [*by_name.left, *update.problems]:
            self.zones.apply(key, update.records[key] or (), update.revisions.get(key, update.revision))
        for one in [*heard, *self._hear(1000)]:
            for plain, owners in one.swaps:  # as the publisher does it: the model may be ahead of them
                if not bulk.give_plain(self.zones, plain, owners):
                    records = [Record(None, owner, *rr) for owner in owners for rr in compiler.rrs(plain.gift())]
                    self.zones.apply(plain.key, records, plain.revision)
            self.apply(replace(one, swaps=()))

    def _hear(self, number: int) -> Iterator[Update]:
        while self._steps and self._steps[0][0] <= number:
            _, path, value = self._steps.pop(0)
            event: Put | Delete = self.delete(path) if value is None else self.put(path, value)
            yield change_update(self.tree, Changes([event], self.revision))


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
@settings(max_examples=150, deadline=None)
@given(keys=LISTS, steps=STEPS)
@example(keys={"test/example/a": T, "test/example/b": H2}, steps=[(2, "test/example/a/x", H1)])
def test_what_changes_meanwhile(semantics: Semantics, keys: dict[str, str], steps: Steps) -> None:
    """The result is that of the keys as they are in the end, and all of it can be taken back."""
    left = dict(keys)
    for _, path, value in sorted(steps, key=lambda step: step[0]):
        left.pop(path, None)
        if value is not None:
            left[path] = value
    world, scratch = Slow(keys, semantics, steps), World(left, semantics)
    assert world.content() == scratch.content()
    left_keys = set(scratch.zones.keys())
    assert set(world.zones.keys()) == left_keys
    for key in left_keys:
        assert sorted(world.zones._gifts.names_of(key)) == sorted(scratch.zones._gifts.names_of(key))
    world.change(*(world.delete(path) for path in left))
    assert world.content() == World({}, semantics).content()
