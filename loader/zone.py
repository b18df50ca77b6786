"""The zone model: keys and their records in, the node blocks that change out.

It knows which zones there are (configured ones, and those that records name), which names exist in them (empty
non-terminals, too), where zone cuts, wildcards and DNAMEs are, and what is wrong with which key. What the records of
one name come to is compiler.py's matter. One change costs as much as the names it touches, whatever the zone's size.

The result depends on the keys' last records and revisions alone, not on the way there, with one exception: a zone's
serial is the highest revision that touched it, and a deletion does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from loader import bulk, compiler, names
from loader._nodes import block
from loader.apexes import Apexes, Zone
from loader.compiler import Gift
from loader.cuts import BELOW_CUT, FREE, OCCLUDED, Cuts
from loader.gifts import Gifts
from loader.model import Record
from loader.rdata import DNAME, NS, SOA
from loader.tree import Tree
from shm.layout import NodeFlag

#: Types that change what other names are.
_STRUCTURAL = frozenset((NS, SOA, DNAME))


class Zones:
    """All zones that this loader serves, from all its sources."""

    def __init__(self, zones: Iterable[bytes] = (), default_ttl: int = 300) -> None:
        """`zones` are served even without data; default_ttl, in seconds, is for records whose source gives no TTL."""
        self.default_ttl = default_ttl
        self._zones = Apexes()
        self._zone_of = self._zones.around
        self._gifts = Gifts()
        # Names whose gifts or zone changed -> revision: settled before anything is told, once for a whole burst.
        self._pending: dict[bytes, int] = {}
        self._changed: set[bytes] = set()
        self._unlisted = False  # whether _changed lacks names that loader/bulk.py has added
        self._tree = Tree(self._occupied, self._changed)
        self._aggregates: set[bytes] = set()
        self._cuts = Cuts()
        self._outside: set[bytes] = set()  # names with gifts that no zone encloses
        # Names whose gifts come to nothing, with their zone; and the same by zone, for the day it comes or goes.
        self._void: dict[bytes, bytes] = {}
        self._void_in: dict[bytes, set[bytes]] = {}
        self._problems: dict[bytes, dict[str, str]] = {}
        self._warnings: dict[bytes, dict[str, str]] = {}
        self._ttls: dict[int, int] = {}  # one int object for each TTL
        for apex in zones:
            self.hold(apex, 0)

    # ------------------------------------------------------------ in

    def apply(self, key: str, records: Sequence[Record], revision: int, cause: int = 0) -> None:
        """From now on `key` gives these records, as of `revision`; none: the key is deleted or gives nothing.

        cause: the revision of a later change elsewhere that made them so; it counts for the zone's serial only.
        """
        if len(records) == 1:
            short = bulk.give_again if key in self._gifts.by_key else Zones._apply_plain
            if short(self, key, records[0], revision, cause):
                return
        before = self._gifts.names_of(key)
        after = self._as_gifts(key, records, revision)
        for gift in after.values():
            if gift[2] is not None:
                self.hold(gift[2], revision)
        # The new zones are in, the old ones still there: no zone goes and comes back within one change.
        released: list[bytes] = []
        touched: list[bytes] = []
        for owner in {*before, *after}:
            old, new = self._gifts.find(owner, key), after.get(owner)
            if old is not None and old[2] is not None:
                released.append(old[2])
            if old != new:
                self._gifts.replace(owner, old, new)
                if new is not None:
                    self._tree.link(owner)  # at once: a zone that comes before it is settled must find it
                touched.append(owner)
        self._gifts.set_names(key, after)
        for owner in touched:
            self._pend(owner, max(revision, cause))
        for apex in released:
            self.let_go(apex, revision)

    def mark(self, name: bytes, on: bool) -> None:
        """Whether the name is an aggregate: it answers questions for its children `*` and `any`, too (SkyDNS)."""
        (self._aggregates.add if on else self._aggregates.discard)(name)
        self._changed.add(name)

    def _apply_plain(self, key: str, record: Record, revision: int, cause: int) -> bool:
        """The short way for a new key that gives one record to a new name in a known zone. False: take the long way."""
        owner, type_ = record.owner, record.type
        if owner in self._gifts.by_name or type_ in _STRUCTURAL:
            return False
        zone = self._zone_of(owner)
        if zone is None or zone.apex == owner or (record.zone is not None and record.zone != zone.apex):
            return False
        named = None
        if record.zone is not None:
            named = zone.apex
            zone.references += 1
        self._gifts.add_first(owner, (key, revision, named, type_, self._ttl(record.ttl), record.rdata))
        self._tree.link(owner)
        self._changed.add(owner)
        self._touch(zone, revision)
        return True

    def _as_gifts(self, key: str, records: Sequence[Record], revision: int) -> dict[bytes, Gift]:
        content: dict[tuple[bytes, bytes | None], list[object]] = {}
        for record in records:
            content.setdefault((record.owner, record.zone), []).extend(
                (record.type, self._ttl(record.ttl), record.rdata)
            )
        # A key names one zone, if any: of a name given to two zones the first counts.
        gifts: dict[bytes, Gift] = {}
        for (owner, apex), parts in content.items():
            gifts.setdefault(owner, (key, revision, apex, *parts))
        return gifts

    def _ttl(self, ttl: int) -> int:
        return self._ttls.setdefault(ttl if ttl >= 0 else self.default_ttl, ttl if ttl >= 0 else self.default_ttl)

    # ------------------------------------------------------------ out

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Name -> its node block, or None: it is not in the table (any more). Everything touched since the last call,
        which may name what did not change in the end, and what was never there."""
        self._settle_pending()
        if self._unlisted:
            self._changed.update(self._gifts.by_name, self._tree.parents())
            self._unlisted = False
        changes = {name: self._compile(name) for name in self._changed}
        self._changed.clear()
        return changes

    def forget_changes(self) -> None:
        """For who takes all_nodes() instead: the changes so far are in them."""
        self._settle_pending()
        self._changed.clear()
        self._unlisted = False

    def all_nodes(self) -> Iterator[bytes]:
        """The node blocks of all names. Nothing may be applied meanwhile."""
        self._settle_pending()
        gifts, zones, compile_ = self._gifts.by_name, self._zones, self._compile
        yield from bulk.nodes(self)
        for name in self._tree.parents():
            if name not in gifts and name not in zones and (block := compile_(name)):
                yield block
        for name in zones:
            if name not in gifts and (block := compile_(name)):
                yield block

    def block(self, name: bytes) -> bytes | None:
        """The node block of a name, None: it is not in the table."""
        self._settle_pending()
        return self._compile(name)

    def has(self, name: bytes) -> bool:
        """Whether all_nodes() has the name."""
        self._settle_pending()
        if not self._occupied(name) and not self._tree.has_beneath(name):
            return False
        return self._zone_of(name) is not None and (not self._cuts.dnames or self._compile(name) is not None)

    def populated(self, apex: bytes) -> bool:
        """Whether there are names beneath the apex, in its zone."""
        self._settle_pending()
        return next(self._tree.beneath(apex, self._zones), None) is not None

    def grow(self, names: Iterable[bytes]) -> set[bytes]:
        """Let the serials of the zones that hold these names grow by one; their apexes."""
        self._settle_pending()
        grown = {zone for zone in map(self._zone_of, names) if zone is not None}
        for zone in grown:
            zone.serial += 1
            self._changed.add(zone.apex)
        return {zone.apex for zone in grown}

    def __len__(self) -> int:
        """Names that have records of their own (an apex always has). Occluded ones count, empty non-terminals don't."""
        self._settle_pending()
        bare = sum(1 for apex in self._zones if apex not in self._gifts.by_name or apex in self._void)
        return len(self._gifts.by_name) - len(self._void) - len(self._outside) + bare

    def apexes(self) -> dict[bytes, int]:
        """Apex -> serial, the highest revision that touched the zone."""
        self._settle_pending()
        return {zone.apex: zone.serial for zone in self._zones.values()}

    @property
    def problems(self) -> dict[str, str]:
        """Key -> why it gives nothing, to one of its names at least."""
        self._settle_pending()
        return _by_key(self._problems)

    @property
    def warnings(self) -> dict[str, str]:
        """Key -> what was changed or hidden of its records."""
        self._settle_pending()
        found = dict(self._warnings)
        for top in self._cuts.dnames:
            for name in self._tree.beneath(top, self._zones):
                zone = self._zone_of(name)
                if zone and self._occupied(name) and self._cuts.above(name, zone.apex) == OCCLUDED:
                    hidden = f"{names.to_text(name)} is hidden by a DNAME above it"
                    found[name] = {gift[0]: hidden for gift in self._gifts.to(name)}
        return _by_key(found)

    # ------------------------------------------------------------ what is known of a key

    def keys(self) -> Iterator[str]:
        """The keys that give records. Nothing may be applied meanwhile."""
        return self._gifts.keys()

    def revision_of(self, key: str) -> int | None:
        """The revision that the key's records were applied with; None if it gives none."""
        owners = self._gifts.names_of(key)
        gift = self._gifts.find(owners[0], key) if owners else None
        return None if gift is None else gift[1]

    def records_of(self, key: str) -> list[Record]:
        """What the key gives, to all its names, with TTLs."""
        gifts = [self._gifts.find(owner, key) for owner in self._gifts.names_of(key)]
        return [
            Record(gift[2], owner, *rr)
            for owner, gift in zip(self._gifts.names_of(key), gifts, strict=True)
            if gift is not None
            for rr in compiler.rrs(gift)
        ]

    def gives(self, key: str, records: Sequence[Record]) -> bool:
        """True if the key gives exactly these records already, whatever the revision."""
        wanted = self._as_gifts(key, records, 0)
        owners = self._gifts.names_of(key)
        if len(owners) != len(wanted):
            return False
        for owner in owners:
            gift = self._gifts.find(owner, key)
            if gift is None or owner not in wanted or gift[2:] != wanted[owner][2:]:
                return False
        return True

    def gifts_of(self, name: bytes) -> list[Gift]:
        """Provenance: what which key gives to a name (compiler.Gift), in the order of the keys."""
        return sorted(self._gifts.to(name), key=lambda gift: str(gift[0]))

    def said_of(self, name: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Of one name: key -> why it gives nothing there, and key -> what was changed."""
        self._settle_pending()
        return self._problems.get(name, {}), self._warnings.get(name, {})

    # ------------------------------------------------------------ zones

    def zone_of(self, name: bytes) -> bytes | None:
        """The apex of the longest zone that encloses the name."""
        zone = self._zone_of(name)
        return None if zone is None else zone.apex

    def continue_serials(self, floors: Mapping[bytes, int]) -> None:
        """See Apexes."""
        self._settle_pending()
        self._changed.update(self._zones.continue_serials(floors))

    def _touch(self, zone: Zone, revision: int) -> None:
        self._zones.touch(zone, revision)
        self._changed.add(zone.apex)

    def hold(self, apex: bytes, revision: int) -> None:
        """The zone is there from now on, until it is let go as often as it was held."""
        zone = self._zones.get(apex)
        if zone is None:
            around = self._zone_of(apex)
            self._zones[apex] = zone = Zone(apex)
            self._tree.link(apex)
            self._zone_changed(apex, around, revision)
        zone.references += 1

    def let_go(self, apex: bytes, revision: int) -> None:
        """See hold."""
        zone = self._zones[apex]
        zone.references -= 1
        if not zone.references:
            del self._zones[apex]
            self._zone_changed(apex, zone, revision)

    def _zone_changed(self, apex: bytes, before: Zone | None, revision: int) -> None:
        """The names at and beneath `apex` were in zone `before` (None: in none) and are in another now."""
        if before is not None:
            self._touch(before, revision)
        void = self._void_in.get(before.apex, ()) if before is not None else ()
        moved = [apex, *self._tree.beneath(apex, self._zones), *(name for name in void if names.is_under(name, apex))]
        for name in moved:
            self._pend(name, revision)

    def _pend(self, name: bytes, revision: int) -> None:
        if name in self._zones:
            self._zones[name].rrsets = None
        self._pending[name] = max(revision, self._pending.get(name, 0))

    def _settle_pending(self) -> None:
        while self._pending:
            self._settle(*self._pending.popitem())
        self._zones.settle()

    # ------------------------------------------------------------ names

    def _occupied(self, name: bytes) -> bool:
        return name in self._zones or (name in self._gifts.by_name and name not in self._void)

    def _settle(self, name: bytes, revision: int) -> None:
        """Brings everything that is known of one name in line with its gifts and the zones."""
        zone = self._zone_of(name)
        gifts = self._gifts.to(name)
        merged = compiler.merge(name, gifts, zone.apex if zone else None)
        self._note(self._problems, name, merged.problems)
        self._note(self._warnings, name, merged.warnings)
        self._set_void(name, zone.apex if zone and gifts and not merged.rrsets else None)
        if gifts and zone is None:
            self._outside.add(name)
        else:
            self._outside.discard(name)
        is_cut = NS in merged.rrsets and zone is not None and zone.apex != name
        if self._cuts.set(name, is_cut, DNAME in merged.rrsets):
            self._changed.update(self._tree.beneath(name, self._zones))
        if self._occupied(name):
            self._tree.link(name)
        else:
            self._tree.unlink(name)
        self._changed.add(name)
        if zone:
            self._touch(zone, revision)

    @staticmethod
    def _note(book: dict[bytes, dict[str, str]], name: bytes, found: dict[str, str]) -> None:
        if found:
            book[name] = found
        else:
            book.pop(name, None)

    def _set_void(self, name: bytes, zone: bytes | None) -> None:
        old = self._void.pop(name, None)
        if old is not None:
            self._void_in[old].remove(name)
            if not self._void_in[old]:
                del self._void_in[old]
        if zone is not None:
            self._void[name] = zone
            self._void_in.setdefault(zone, set()).add(name)

    def is_plain(self, name: bytes) -> bool:
        """Whether a name is in a zone and below its apex, with no cut and no DNAME above: its siblings are, too."""
        zone = self._zone_of(name)
        return zone is not None and zone.apex != name and self._cuts.above(name, zone.apex) == FREE

    def _compile(self, name: bytes) -> bytes | None:
        zone = self._zone_of(name)
        if zone is None:
            return None
        state = self._cuts.above(name, zone.apex)
        held = self._gifts.by_name.get(name) if name not in self._void else None
        beneath = self._tree.has_beneath(name)
        if state == OCCLUDED or (held is None and not beneath and name != zone.apex):
            return None
        flags = self._flags(name, zone.apex, state) if beneath or self._cuts else 0
        if name in self._aggregates:
            flags |= NodeFlag.AGGREGATE
        if held is not None and name != zone.apex:
            made = block(name, int(flags), held)
            if made is not None:
                return made
        if name == zone.apex:
            if zone.rrsets is None:
                zone.rrsets = compiler.merge(name, self._gifts.to(name), name).rrsets
            return compiler.apex_node(name, flags, zone.rrsets, zone.serial)
        if held is None:
            return compiler.node(name, flags | NodeFlag.EMPTY, {})
        return compiler.node(name, flags, compiler.merge(name, self._gifts.to(name), zone.apex).rrsets)

    def _flags(self, name: bytes, apex: bytes, state: int) -> int:
        flags = 0
        if state == BELOW_CUT:
            flags |= NodeFlag.BELOW_CUT
        elif name in self._cuts.delegations:
            flags |= NodeFlag.DELEGATION
        elif name in self._cuts.dnames:
            return int(flags | NodeFlag.DNAME)
        if self._tree.has_child(name, names.STAR + name):
            flags |= NodeFlag.WILDCARD_CHILD
        return int(flags)


def _by_key(book: dict[bytes, dict[str, str]]) -> dict[str, str]:
    """Key -> what is said of it; of a key that several names say something of, what the first in order says."""
    said: dict[str, str] = {}
    for name in sorted(book):
        for key, text in book[name].items():
            said.setdefault(key, text)
    return said
