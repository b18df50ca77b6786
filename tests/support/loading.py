"""From a zone file, or from keys of the records schema, through the loader to a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loader import records, zonefile
from loader.model import Put
from loader.zone import Zones
from shm._table import Table
from tests.support.tables import make_table


def zones_of_file(path: Path) -> Zones:
    """What the file source does with one zone file; what it has left out is among the problems."""
    result = zonefile.ZoneFile()
    zonefile.read(path, (), result)
    assert not result.problems, result.problems
    zones = Zones()
    for key, given in result.records.items():
        zones.apply(key, given, 1)
    return zones


def zones_of_keys(keys: Iterable[tuple[str, bytes]]) -> Zones:
    """What the etcd source does with keys of the records schema, `/names` being the prefix; revisions count from 1."""
    zones = Zones()
    for revision, (key, value) in enumerate(keys, 1):
        zones.apply(key, records.parse("/names", Put(key, value, revision)), revision)
    return zones


def table_of(zones: Zones) -> Table:
    return make_table(list(zones.all_nodes()))
