"""Which zones there are, which of them a name is in, and their serials."""

from __future__ import annotations

from collections.abc import Mapping

from loader.compiler import RRsets


class Zone:
    """One zone.

    references  gifts that name it, and 1 if it is configured
    rrsets      what its apex is given, merged, for that is compiled with every change in the zone; None: not known
    """

    __slots__ = ("apex", "references", "rrsets", "serial", "touched")

    def __init__(self, apex: bytes) -> None:
        self.apex = apex
        self.references = 0
        self.rrsets: RRsets | None = None
        self.serial = 0
        self.touched = 0  # the highest revision that has touched it since the serial was settled


class Apexes(dict[bytes, Zone]):
    """Apex -> zone. A serial is the highest revision that touched its zone, as of the last settle()."""

    def __init__(self) -> None:
        super().__init__()
        self._growing = False  # see continue_serials
        self._touched: set[Zone] = set()

    def around(self, name: bytes) -> Zone | None:
        """The longest zone that encloses the name."""
        zone = self.get(name)
        while zone is None:
            length = name[0]
            if not length:
                return None
            name = name[length + 1 :]
            zone = self.get(name)
        return zone

    def touch(self, zone: Zone, revision: int) -> None:
        """Something in the zone has changed."""
        if revision > zone.touched:
            zone.touched = revision
        self._touched.add(zone)

    def settle(self) -> None:
        """Serials for what was touched since the last time."""
        for zone in self._touched:
            if zone.touched > zone.serial:
                zone.serial = zone.touched
            elif zone.touched and self._growing:
                zone.serial += 1
            zone.touched = 0
        self._touched.clear()

    def continue_serials(self, floors: Mapping[bytes, int]) -> list[bytes]:
        """From now on every change makes a zone's serial grow, from at least what its floor says. The apexes whose
        serial is another one at once.

        A loader that starts anew knows the revisions of the keys that are left, not of those deleted since; and the
        revisions of a store restored from a backup begin again below. Secondaries take only what grows (RFC 1982).
        """
        self._growing = True
        raised = [zone for apex, floor in floors.items() if (zone := self.get(apex)) and zone.serial < floor]
        for zone in raised:
            zone.serial = floors[zone.apex]
        return [zone.apex for zone in raised]
