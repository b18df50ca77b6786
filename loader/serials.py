"""The serials that are being answered, for a loader that starts: they must not go back (RFC 1982, RFC 1995)."""

from __future__ import annotations

import logging

from shm._table import Table
from shm.board import Board
from shm.errors import StandoffError
from shm.layout import NEGATIVE_SOA
from shm.node import unpack
from shm.reading import TableObserver

log = logging.getLogger(__name__)


def live_serials(board: Board) -> dict[bytes, int]:
    """Apex -> SOA serial in the table that is live; empty if there is none, or it cannot be read."""
    if not board.live:
        return {}
    observer = TableObserver(board)
    try:
        found: dict[bytes, int] = observer.look(_serials)
    except StandoffError as error:
        log.warning("the live table's serials cannot be read (%s): serials begin at the source's revisions", error)
        return {}
    finally:
        observer.close()
    return found


def _serials(table: Table) -> dict[bytes, int]:
    """The SOA's data ends with five 32-bit numbers, the serial first (RFC 1035 section 3.3.13)."""
    blocks = {apex: table.find(apex) for apex in table.meta.get("zones", ())}
    soas = {apex: unpack(block).rrsets.get(NEGATIVE_SOA) for apex, block in blocks.items() if block is not None}
    return {apex: int.from_bytes(soa.wire[-20:-16], "big") for apex, soa in soas.items() if soa is not None}
